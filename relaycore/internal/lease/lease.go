package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

var (
	// ErrHeld says that another process has the pipeline.
	ErrHeld = errors.New("another process holds the pipeline's lock")
	// ErrLost is the cause with which a held context is cancelled when the
	// session that holds its lock can no longer be trusted.
	ErrLost = errors.New("lease lost")
	// ErrNoSession says that there is no connection on which to hold a lock.
	ErrNoSession = errors.New("no session with PostgreSQL to hold leases on")
)

// Instance is a process that shares the pipelines of a group.
type Instance = store.Instance

// Wire is the session's connection. Only one goroutine uses it.
type Wire interface {
	// Beat returns the live instances of the group.
	Beat(ctx context.Context) ([]Instance, error)
	// Idle returns nil at a time or when it is interrupted, and an error as soon as
	// the connection is seen to be closed.
	Idle(until time.Time) error
	// Interrupt ends the Idle that runs, or the next one. Anybody may call it.
	Interrupt()
	// TryLock takes the pipeline's lock if it is free and raises its epoch.
	TryLock(ctx context.Context, key store.Key) (epoch int64, ok bool, err error)
	Unlock(ctx context.Context, key store.Key) error
	// Drain tells the others to take over.
	Drain(ctx context.Context) error
	// Broken reports whether the connection is beyond use.
	Broken() bool
	// Close deregisters the instance, if the connection still works.
	Close(ctx context.Context)
}

// Config is what a [Keeper] needs.
type Config struct {
	Connect func(ctx context.Context) (Wire, error) // dials, probes, registers
	Beat    time.Duration                           // 0 means 300ms
	Trust   time.Duration                           // 0 means 4s
	Logger  *slog.Logger
	// Changed is called, from one goroutine, after every beat that found other
	// members than the one before, and when the session comes and goes. It must
	// not block.
	Changed func()
}

const (
	defaultBeat  = 300 * time.Millisecond
	defaultTrust = 4 * time.Second
	// serverPatience is how long the server keeps the locks of a session that it
	// hears nothing from. It must exceed the trust by more than a reply's journey.
	serverPatience = 6 * time.Second

	connectTimeout = 10 * time.Second
	minBackoff     = 100 * time.Millisecond
	maxBackoff     = 5 * time.Second
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

// Run keeps a session until ctx ends, and then closes it. Whoever holds leases
// must have let go by then.
func (k *Keeper) Run(ctx context.Context) {
	backoff := minBackoff
	var lastErr string
	for ctx.Err() == nil {
		s, err := k.open(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			k.err.Store(&err)
			if err.Error() != lastErr { // once for each change of state
				k.cfg.Logger.Error("cannot open the lease session, will retry", "err", err)
			}
			lastErr = err.Error()
			k.cfg.Changed()
			pause(ctx, backoff/2+rand.N(backoff))
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		if lastErr != "" {
			k.cfg.Logger.Info("lease session opened")
		}
		lastErr, backoff = "", minBackoff
		k.err.Store(nil)
		k.session.Store(s)
		k.cfg.Changed()

		err = s.run(ctx)

		k.session.Store(nil)
		if ctx.Err() == nil {
			lastErr = err.Error()
			k.err.Store(&err)
			k.cfg.Logger.Error("lease session lost, all pipelines of this process stop", "err", err)
		}
		s.lose(err)
		k.cfg.Changed()
		// What ran under the old session must be gone before a new one
		// terminates its remains on the server.
		s.holds.Wait()
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		s.wire.Close(closing)
		cancel()
	}
}

func (k *Keeper) open(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	wire, err := k.cfg.Connect(ctx)
	if err != nil {
		return nil, err
	}
	s := &session{wire: wire, cfg: &k.cfg, base: time.Now(), requests: make(chan request, 16), ended: make(chan struct{}), held: make(map[*Lease]context.CancelCauseFunc)}
	asked := time.Now()
	members, err := wire.Beat(ctx)
	if err != nil {
		wire.Close(ctx)
		return nil, fmt.Errorf("list instances: %w", err)
	}
	s.trust(asked)
	s.setMembers(members)
	return s, nil
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Members returns the live instances as of the last beat, and an error when
// there is no session to know them by.
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

// Drain tells the other instances that this one lets go of its pipelines.
func (k *Keeper) Drain(ctx context.Context) error {
	s := k.session.Load()
	if s == nil {
		return ErrNoSession
	}
	return s.do(ctx, func(ctx context.Context) error { return s.wire.Drain(ctx) })
}

// Lease is a pipeline's lock while it is held.
type Lease struct {
	Key   store.Key
	Epoch int64
	s     *session
}

// Valid reports whether the lock can be trusted at this moment. A process that
// was stopped and continued asks this before it publishes.
func (l *Lease) Valid() bool { return l.s.valid() }

// Hold takes the pipeline's lock, calls fn, and releases the lock when fn has
// returned. The context given to fn is cancelled, with cause [ErrLost], as soon
// as the lock can no longer be trusted; fn must then stop at once.
func (k *Keeper) Hold(ctx context.Context, key store.Key, fn func(context.Context, *Lease) error) error {
	s := k.session.Load()
	if s == nil {
		return ErrNoSession
	}
	l := &Lease{Key: key, s: s}
	err := s.do(ctx, func(ctx context.Context) error {
		epoch, ok, err := s.wire.TryLock(ctx, key)
		if err == nil && !ok {
			err = ErrHeld
		}
		l.Epoch = epoch
		return err
	})
	if err != nil {
		if errors.Is(err, ErrHeld) {
			return err
		}
		return fmt.Errorf("take the lease: %w", err)
	}
	held, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !s.enter(l, cancel) {
		return ErrLost
	}
	defer s.leave(l)

	err = fn(held, l)

	if cause := context.Cause(held); errors.Is(cause, ErrLost) {
		return cause
	}
	release, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	// A lock that could not be released goes with the session.
	if uerr := s.do(release, func(ctx context.Context) error { return s.wire.Unlock(ctx, key) }); uerr != nil && err == nil && !errors.Is(uerr, ErrLost) {
		err = fmt.Errorf("release the lease: %w", uerr)
	}
	return err
}

type request struct {
	fn   func(context.Context) error
	done chan error
}

// session is one connection's life.
type session struct {
	wire     Wire
	cfg      *Config
	base     time.Time
	until    atomic.Int64 // trust ends at base + until
	members  atomic.Pointer[[]Instance]
	requests chan request  // buffered: a request is there before the interrupt
	ended    chan struct{} // closed when run returns
	holds    sync.WaitGroup

	mu   sync.Mutex
	lost error
	held map[*Lease]context.CancelCauseFunc
}

// trust extends the window from the moment when an answered request was sent.
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

// setMembers reports whether the members are others than before.
func (s *session) setMembers(members []Instance) bool {
	slices.SortFunc(members, func(a, b Instance) int {
		switch {
		case a.ID < b.ID:
			return -1
		case a.ID > b.ID:
			return 1
		}
		return 0
	})
	before := s.members.Swap(&members)
	return before == nil || !slices.EqualFunc(*before, members, func(a, b Instance) bool {
		return a.ID == b.ID && a.Draining == b.Draining && slices.Equal(a.Backends, b.Backends)
	})
}

// enter registers a holder, unless the session has been lost meanwhile.
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
	r := request{fn, make(chan error, 1)}
	select {
	case s.requests <- r:
		s.wire.Interrupt()
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

// opContext bounds one statement by the trust. It does not end with ctx or with
// whoever asked: a statement that is cut off takes the connection with it, and
// that every lease of the process.
func (s *session) opContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithDeadline(context.WithoutCancel(ctx), s.deadline())
}

// run owns the wire until ctx ends or the session is lost, and says why.
func (s *session) run(ctx context.Context) error {
	defer close(s.ended)
	defer context.AfterFunc(ctx, s.wire.Interrupt)()
	next := s.nextBeat()
	for ctx.Err() == nil {
		if time.Until(next) <= 0 { // before requests, lest they starve it
			asked := time.Now()
			if err := s.beat(ctx); err != nil {
				return err
			}
			s.trust(asked)
			next = s.nextBeat()
		}
		select {
		case r := <-s.requests:
			if err := s.serve(ctx, r); err != nil {
				return err
			}
		default:
			if err := s.wire.Idle(next); err != nil {
				return fmt.Errorf("connection closed: %w", err)
			}
		}
	}
	return ctx.Err()
}

// serve runs a request. It fails if that has cost the connection.
func (s *session) serve(ctx context.Context, r request) error {
	asked := time.Now()
	opCtx, cancel := s.opContext(ctx)
	err := r.fn(opCtx)
	cancel()
	r.done <- err
	if s.wire.Broken() {
		return fmt.Errorf("connection broken: %w", err)
	}
	if err == nil || errors.Is(err, ErrHeld) {
		s.trust(asked)
	}
	return nil
}

// nextBeat is at a round time of the clock, when others that wake an idle process
// do so too.
func (s *session) nextBeat() time.Time {
	now := time.Now()
	return now.Add(s.cfg.Beat - time.Duration(now.UnixNano())%s.cfg.Beat)
}

func (s *session) beat(ctx context.Context) error {
	if !time.Now().Before(s.deadline()) { // stopped and continued
		return fmt.Errorf("no beat for %s", s.cfg.Trust)
	}
	ctx, cancel := s.opContext(ctx)
	defer cancel()
	members, err := s.wire.Beat(ctx)
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	if s.setMembers(members) {
		s.cfg.Changed()
	}
	return nil
}
