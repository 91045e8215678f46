package lease

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

var (
	// ErrHeld reports that another process owns the pipeline.
	ErrHeld = errors.New("another process holds the pipeline's lock")
	// ErrLost is the cause with which a held context is cancelled when the
	// session that holds its lock can no longer be trusted.
	ErrLost = errors.New("lease lost")
	// ErrNoSession reports that there is no connection to hold a lock on.
	ErrNoSession = errors.New("no session with PostgreSQL to hold leases on")
)

// Instance is a process that shares the pipelines of a group.
type Instance = store.Instance

// Conn is the session's connection. One goroutine uses it, except for Interrupt.
type Conn interface {
	// Beat returns the live instances of the group.
	Beat(ctx context.Context) ([]Instance, error)
	// Idle waits. It returns nil at a time or after Interrupt, and an error as soon
	// as the connection is closed.
	Idle(until time.Time) error
	// Interrupt ends the current Idle, or the next one. Any goroutine may call it.
	Interrupt()
	// TryLock takes the locks of those pipelines that are free, and returns their raised
	// epochs. If it fails, none is held.
	TryLock(ctx context.Context, keys []store.Key) (epochs map[store.Key]int64, err error)
	Unlock(ctx context.Context, key store.Key) error
	// Drain asks the other instances to take over.
	Drain(ctx context.Context) error
	// Broken reports whether the connection can no longer be used.
	Broken() bool
	// Close deregisters the instance, if the connection still works.
	Close(ctx context.Context)
}

// Config holds the parameters of a [Keeper].
type Config struct {
	Connect func(ctx context.Context) (Conn, error) // dials, probes, registers
	Beat    time.Duration                           // 0 means 200ms
	Trust   time.Duration                           // 0 means 4s
	Logger  *slog.Logger
	// Changed is called from one goroutine when a beat finds other members than the
	// one before, and when a session opens or ends. It must not block.
	Changed func()
}

const (
	defaultBeat  = 200 * time.Millisecond
	defaultTrust = 4 * time.Second
	// serverPatience is how long the server keeps the locks of a silent session. It
	// must exceed the trust by more than the latency of a reply.
	serverPatience = 6 * time.Second

	connectTimeout = 10 * time.Second
)

// Keeper keeps a session for as long as it runs and holds leases on it.
type Keeper struct {
	cfg     Config
	session atomic.Pointer[session]
	err     atomic.Pointer[error] // why there is no session
}

// New returns a keeper that does nothing until [Keeper.Run].
func New(cfg Config) *Keeper {
	if cfg.Beat == 0 {
		cfg.Beat = defaultBeat
	}
	if cfg.Trust == 0 {
		cfg.Trust = defaultTrust
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Keeper{cfg: cfg}
}

// Run keeps a session until ctx ends, and then closes it. By then all holders of
// leases must have returned. Run ends with a [store.HeldError] if another process with
// this instance's id does not go away.
func (k *Keeper) Run(ctx context.Context) error {
	retry := backoff.Backoff{Min: 100 * time.Millisecond, Max: 5 * time.Second}
	failure := ""           // the last one logged
	var heldSince time.Time // when the instance's lock was first found held
	for ctx.Err() == nil {
		s, err := k.open(ctx)
		if err == nil {
			if failure != "" {
				k.cfg.Logger.Info("lease session opened")
			}
			retry.Reset()
			heldSince = time.Time{}
			failure = k.serve(ctx, s)
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		err = pg.Explain(err)
		k.err.Store(&err)
		delay := retry.Next()
		held, twin := errors.AsType[*store.HeldError](err)
		switch {
		case !twin:
			if err.Error() != failure { // once for each change of state
				k.cfg.Logger.Error("cannot open lease session, will retry", "err", err)
			}
			failure = err.Error()
		case heldSince.IsZero():
			heldSince, failure = time.Now(), err.Error()
			k.cfg.Logger.Warn("instance id in use, waiting",
				"instance", held.ID, "holder_pid", held.PID, "holder_address", held.Address, "holder_started", held.Started, "at_most", patience)
		case time.Since(heldSince) >= patience:
			return err
		}
		if twin {
			delay = backoff.Jitter(heldRetry)
		}
		k.cfg.Changed()
		_ = backoff.Sleep(ctx, delay) // the loop looks at ctx
	}
	return nil
}

const (
	// patience is how long a process waits for the lock of its instance id. The server
	// releases that of a killed, suspended or disconnected process in half the time.
	patience  = 2 * serverPatience
	heldRetry = 250 * time.Millisecond
)

// serve publishes a session for as long as it can be trusted, and ends it. It returns
// the reason of the end, or "" if ctx has ended.
func (k *Keeper) serve(ctx context.Context, s *session) (failure string) {
	k.err.Store(nil)
	k.session.Store(s)
	k.cfg.Changed()

	err := s.run(ctx)

	k.session.Store(nil)
	if ctx.Err() == nil {
		failure = err.Error()
		k.err.Store(&err)
		k.cfg.Logger.Error("lease session lost, all pipelines stop", "err", err)
	}
	s.lose(err)
	k.cfg.Changed()

	// The holders must have returned before a new session terminates what is left of
	// this one on the server.
	s.holds.Wait()
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	s.conn.Close(closing)
	return failure
}

func (k *Keeper) open(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := k.cfg.Connect(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{
		conn: conn, cfg: &k.cfg, base: time.Now(),
		requests: make(chan request, 16), locks: make(chan request, 16), ended: make(chan struct{}),
		held: make(map[*Lease]context.CancelCauseFunc),
	}
	asked := time.Now()
	members, err := conn.Beat(ctx)
	if err != nil {
		conn.Close(ctx)
		return nil, fmt.Errorf("list instances: %w", err)
	}
	s.trust(asked)
	s.setMembers(members)
	return s, nil
}

// Members returns the live instances as of the last beat, or an error without a
// session.
func (k *Keeper) Members() ([]Instance, error) {
	s := k.session.Load()
	if s == nil {
		if err := k.err.Load(); err != nil {
			return nil, *err
		}
		return nil, ErrNoSession
	}
	return *s.members.Load(), nil
}

// Drain announces to the other instances that this one releases its pipelines.
func (k *Keeper) Drain(ctx context.Context) error {
	s := k.session.Load()
	if s == nil {
		return ErrNoSession
	}
	return s.do(ctx, func(ctx context.Context) error { return s.conn.Drain(ctx) })
}

// Lease is the lock of a pipeline while it is held.
type Lease struct {
	Key   store.Key
	Epoch int64
	s     *session
}

// Valid reports whether the lock can be trusted at this moment. The engine asks before
// it publishes, because the process may have been suspended.
func (l *Lease) Valid() bool { return l.s.valid() }

// Hold takes the pipeline's lock, calls fn, and releases the lock when fn has
// returned. The context of fn is cancelled with cause [ErrLost] as soon as the lock can
// no longer be trusted. Then fn must stop at once.
func (k *Keeper) Hold(ctx context.Context, key store.Key, fn func(context.Context, *Lease) error) error {
	s := k.session.Load()
	if s == nil {
		return ErrNoSession
	}
	l := &Lease{Key: key, s: s}
	if err := s.ask(ctx, s.locks, request{lease: l}); err != nil {
		if errors.Is(err, ErrHeld) {
			return err
		}
		return fmt.Errorf("acquire lease: %w", err)
	}
	held, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !s.enter(l, cancel) {
		return ErrLost
	}
	defer s.leave(l)

	err := fn(held, l)

	if cause := context.Cause(held); errors.Is(cause, ErrLost) {
		return cause
	}
	release, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	// The end of the session releases a lock that could not be released here.
	unlockErr := s.do(release, func(ctx context.Context) error { return s.conn.Unlock(ctx, key) })
	if err == nil && unlockErr != nil && !errors.Is(unlockErr, ErrLost) {
		err = fmt.Errorf("release lease: %w", unlockErr)
	}
	return err
}

// request is a call of fn, or for the lock of lease.
type request struct {
	fn    func(context.Context) error
	lease *Lease
	done  chan error
}

// session is the life of one connection.
type session struct {
	conn     Conn
	cfg      *Config
	base     time.Time
	until    atomic.Int64 // trust ends at base + until
	members  atomic.Pointer[[]Instance]
	requests chan request  // buffered, so that a request is queued before the interrupt
	locks    chan request  // requests for locks
	single   []request     // those for locks that are answered one by one
	ended    chan struct{} // closed when run returns
	holds    sync.WaitGroup

	mu   sync.Mutex
	lost error
	held map[*Lease]context.CancelCauseFunc
}

// trust extends the window from the time when an answered request was sent.
func (s *session) trust(asked time.Time) {
	s.until.Store(int64(asked.Add(s.cfg.Trust).Sub(s.base)))
}

func (s *session) deadline() time.Time { return s.base.Add(time.Duration(s.until.Load())) }

func (s *session) valid() bool {
	select {
	case <-s.ended:
		return false
	default:
		return time.Now().Before(s.deadline())
	}
}

// setMembers stores the members and reports whether they have changed.
func (s *session) setMembers(members []Instance) bool {
	slices.SortFunc(members, func(a, b Instance) int { return cmp.Compare(a.ID, b.ID) })
	before := s.members.Swap(&members)
	return before == nil || !slices.EqualFunc(*before, members, func(a, b Instance) bool {
		return a.ID == b.ID && a.Draining == b.Draining && slices.Equal(a.Backends, b.Backends)
	})
}

// enter registers a holder. It returns false if the session is lost.
func (s *session) enter(l *Lease, cancel context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return false
	}
	s.held[l] = cancel
	s.holds.Add(1)
	return true
}

func (s *session) leave(l *Lease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.held, l)
	s.holds.Done()
}

// lose cancels every holder.
func (s *session) lose(reason error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lost = fmt.Errorf("%w: %w", ErrLost, reason)
	for _, cancel := range s.held {
		cancel(s.lost)
	}
}

// do has the session's goroutine run fn.
func (s *session) do(ctx context.Context, fn func(context.Context) error) error {
	return s.ask(ctx, s.requests, request{fn: fn})
}

func (s *session) ask(ctx context.Context, queue chan<- request, r request) error {
	r.done = make(chan error, 1)
	select {
	case queue <- r:
		s.conn.Interrupt()
	case <-s.ended:
		return ErrLost
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-r.done:
		return err
	case <-s.ended:
		return ErrLost
	}
}

// opContext bounds one statement by the trust. It does not end with ctx, nor with the
// caller's context. A cancelled statement closes the connection, and then every lease
// of the process is lost.
func (s *session) opContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(context.WithoutCancel(ctx), s.deadline())
}

// run uses the connection until ctx ends or the session is lost, and returns the reason.
func (s *session) run(ctx context.Context) error {
	defer close(s.ended)
	defer context.AfterFunc(ctx, s.conn.Interrupt)()
	next := s.nextBeat()
	for ctx.Err() == nil {
		if time.Until(next) <= 0 { // before requests, which could delay it without end
			asked := time.Now()
			if err := s.beat(ctx); err != nil {
				return err
			}
			s.trust(asked)
			next = s.nextBeat()
		}
		var err error
		if len(s.single) > 0 {
			r := s.single[0]
			s.single = s.single[1:]
			err = s.lock(ctx, []request{r})
		} else {
			select {
			case r := <-s.requests:
				err = s.call(ctx, func(ctx context.Context) error {
					err := r.fn(ctx)
					r.done <- err
					return err
				})
			case r := <-s.locks:
				err = s.lock(ctx, s.waiting(r))
			default:
				if err := s.conn.Idle(next); err != nil {
					return fmt.Errorf("connection closed: %w", err)
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// call runs fn. It returns an error if the connection is broken.
func (s *session) call(ctx context.Context, fn func(context.Context) error) error {
	asked := time.Now()
	ctx, cancel := s.opContext(ctx)
	defer cancel()
	err := fn(ctx)
	if s.conn.Broken() {
		return fmt.Errorf("connection broken: %w", err)
	}
	if err == nil {
		s.trust(asked)
	}
	return nil
}

// waiting returns first and the other requests for locks that wait. After the death of an
// instance there are as many as it has pipelines.
func (s *session) waiting(first request) []request {
	asked := []request{first}
	for {
		select {
		case r := <-s.locks:
			asked = append(asked, r)
		default:
			return asked
		}
	}
}

// lock answers requests for locks by one statement. If it fails, which may be because of
// one of them, each gets a statement of its own; beats come between those.
func (s *session) lock(ctx context.Context, asked []request) error {
	return s.call(ctx, func(ctx context.Context) error {
		keys := make([]store.Key, len(asked))
		for i, r := range asked {
			keys[i] = r.lease.Key
		}
		epochs, err := s.conn.TryLock(ctx, keys)
		if err != nil && len(asked) > 1 && !s.conn.Broken() {
			s.single = asked
			return err
		}
		for _, r := range asked {
			epoch, ok := epochs[r.lease.Key]
			switch r.lease.Epoch = epoch; {
			case err != nil:
				r.done <- err
			case !ok:
				r.done <- ErrHeld
			default:
				r.done <- nil
			}
		}
		return err
	})
}

// nextBeat is at a round time of the clock, as are the other timers that wake an idle
// process.
func (s *session) nextBeat() time.Time {
	now := time.Now()
	return now.Add(s.cfg.Beat - time.Duration(now.UnixNano())%s.cfg.Beat)
}

func (s *session) beat(ctx context.Context) error {
	if !time.Now().Before(s.deadline()) { // the process was suspended
		return fmt.Errorf("no beat for %s", s.cfg.Trust)
	}
	ctx, cancel := s.opContext(ctx)
	defer cancel()
	members, err := s.conn.Beat(ctx)
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	if s.setMembers(members) {
		s.cfg.Changed()
	}
	return nil
}
