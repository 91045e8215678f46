package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// runner runs one pipeline, as one revision of the catalog has it, until it is
// drained. It implements [Events].
type runner struct {
	s        *Supervisor
	pipeline catalog.Pipeline
	log      *slog.Logger
	meter    *observe.Pipeline
	stop     context.Context //nolint:containedctx // ends when the runner is to drain
	drain    context.CancelFunc
	done     chan struct{}
	wake     chan struct{}
	kick     chan struct{} // receives when the runner should not wait after an error

	lagAt, auditAt time.Time // when the monitor, which alone uses them, measured last

	mu     sync.Mutex
	status status
	opened Opened // what the current run reported; zero when none is open
	quiet  quiet
}

// status is what operators see of a runner.
type status struct {
	state      string
	since      time.Time
	err        error
	epoch      int64
	guarantee  string
	heldSince  time.Time // since when another process holds the lock; zero if none is known to
	heldLogged bool
	drainLimit time.Duration
}

func newRunner(s *Supervisor, p catalog.Pipeline) *runner {
	stop, cancel := context.WithCancel(context.Background()) // its owner drains it and waits for it
	r := &runner{
		s: s, pipeline: p, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1), kick: make(chan struct{}, 1),
		log:   s.cfg.Logger.With("pipeline", p.Name, "direction", string(p.Direction)),
		meter: s.cfg.Metrics.Pipeline(p.Key),
	}
	r.drain = func() {
		r.stopping()
		cancel()
	}
	r.set(observe.StateStarting, nil)
	return r
}

const (
	heldRetry   = 300 * time.Millisecond
	heldAgain   = 20 * time.Millisecond // the first time: PostgreSQL releases hundreds of locks one by one
	endedRetry  = 250 * time.Millisecond
	stableAfter = time.Minute // a run of this length resets the back-off
	heldLong    = 10 * time.Second
	// failingDrain bounds the drain of a pipeline that fails.
	failingDrain = time.Second
)

// run runs the pipeline again and again until it is drained.
func (r *runner) run(ctx context.Context) {
	defer r.meter.SetHealth(observe.HealthNone)
	retry := newRetries()
	for r.stop.Err() == nil && ctx.Err() == nil {
		started := time.Now()
		err := r.attempt(ctx)
		if r.stop.Err() != nil || ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, lease.ErrHeld) {
				r.log.Warn("pipeline stopped with an error", "err", pg.OneLine(err))
			}
			return
		}
		if time.Since(started) > stableAfter {
			retry.reset()
		}
		if r.pause(ctx, r.failed(err, &retry)) {
			retry.reset()
		}
	}
}

// pause waits for the delay, or until a context ends, or until an operator asks for
// the next attempt. Then it returns true.
func (r *runner) pause(ctx context.Context, delay time.Duration) (kicked bool) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-r.stop.Done():
	case <-r.kick:
		return true
	}
	return false
}

// retries are the delays of a runner, and the last error that it logged.
type retries struct {
	transient, fatal, held backoff.Backoff
	logged                 string
}

func newRetries() retries {
	return retries{
		transient: backoff.Backoff{Min: 250 * time.Millisecond, Max: 5 * time.Second},
		fatal:     backoff.Backoff{Min: time.Second, Max: 10 * time.Second},
		held:      backoff.Backoff{Min: heldAgain, Max: heldRetry},
	}
}

func (t *retries) reset() {
	t.transient.Reset()
	t.fatal.Reset()
}

// failed records how an attempt ended, and returns the delay before the next.
func (r *runner) failed(err error, retry *retries) (delay time.Duration) {
	if !errors.Is(err, lease.ErrHeld) {
		retry.held.Reset()
	}
	switch {
	case errors.Is(err, lease.ErrHeld):
		retry.reset()
		r.set(observe.StateWaiting, nil)
		r.warnOfHeldLock()
		return retry.held.Next()
	case errors.Is(err, lease.ErrLost), errors.Is(err, lease.ErrNoSession):
		retry.reset()
		retry.logged = ""
		r.set(observe.StateWaiting, err)
		return backoff.Jitter(heldRetry)
	case err == nil: // the engine ended by itself, as only a source that is read to its end does
		retry.logged = ""
		return backoff.Jitter(endedRetry)
	case relay.IsFatal(err):
		delay = retry.fatal.Next()
		r.set(observe.StateFailed, err)
	default:
		delay = retry.transient.Next()
		r.set(observe.StateRetrying, err)
	}

	r.meter.Restarted()
	if text := pg.OneLine(err); text != retry.logged { // once for each change of state
		retry.logged = text
		r.log.Error("pipeline failed, will retry",
			"err", text, "needs_operator", relay.IsFatal(err), "in", delay.Round(time.Millisecond).String())
	}
	return delay
}

// attempt holds the lease while the pipeline runs.
func (r *runner) attempt(ctx context.Context) error {
	return r.s.keeper.Hold(ctx, r.pipeline.Key, func(ctx context.Context, l *lease.Lease) error {
		r.mu.Lock()
		r.status.epoch = l.Epoch
		r.mu.Unlock()
		r.meter.Own(l.Epoch)
		defer r.release()

		// A drain that does not end is cancelled, so that a restart with a corrected
		// configuration does not wait for the wrong one.
		ctx, abandon := context.WithCancelCause(ctx)
		defer abandon(nil)
		defer context.AfterFunc(r.stop, func() {
			if backoff.Sleep(ctx, r.drainLimit()) == nil {
				abandon(errors.New("drain took too long"))
			}
		})()
		return r.s.cfg.Run(ctx, &Job{
			Pipeline: r.pipeline, Epoch: l.Epoch, Trusted: l.Valid, Stop: r.stop, Wake: r.wake, Meter: r.meter, Logger: r.log, Events: r,
		})
	})
}

func (r *runner) drainLimit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status.drainLimit
}

func (r *runner) release() {
	r.mu.Lock()
	r.opened, r.quiet.since, r.status.epoch = Opened{}, time.Time{}, 0
	r.mu.Unlock()
	r.meter.Disown()
}

// Opened implements [Events].
func (r *runner) Opened(o Opened) {
	r.set(observe.StateRunning, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opened, r.status.guarantee = o, o.Guarantee
}

// Changed implements [Events].
func (r *runner) Changed(err error) {
	switch {
	case r.stop.Err() != nil:
	case err != nil:
		r.set(observe.StateRetrying, err)
	default:
		r.set(observe.StateRunning, nil)
	}
}

// stopping notes that the runner is about to drain, and how long it may take.
func (r *runner) stopping() {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := &r.status
	switch st.state {
	case observe.StateRunning:
		st.drainLimit = r.s.cfg.Drain
	case observe.StateRetrying:
		st.drainLimit = min(failingDrain, r.s.cfg.Drain)
	default:
		return
	}
	st.state, st.since = observe.StateStopping, time.Now()
}

// set changes the state and the gauge of the pipeline's health.
func (r *runner) set(state string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st := &r.status
	if st.state != state {
		st.since = time.Now()
	}
	st.state, st.err = state, err
	switch held := state == observe.StateWaiting && err == nil; {
	case !held:
		st.heldSince, st.heldLogged = time.Time{}, false
	case st.heldSince.IsZero():
		st.heldSince = time.Now()
	}

	health := observe.HealthGood
	switch state {
	case observe.StateRetrying, observe.StateFailed:
		health = observe.HealthBad
	case observe.StateWaiting:
		if !st.heldSince.IsZero() && time.Since(st.heldSince) > heldLong {
			health = observe.HealthBad // the process that holds the lock may be stuck
		}
	}
	r.meter.SetHealth(health)
}

// warnOfHeldLock logs, once, that another process keeps the lock for long.
func (r *runner) warnOfHeldLock() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if waited := time.Since(r.status.heldSince); waited > heldLong && !r.status.heldLogged {
		r.status.heldLogged = true
		r.log.Warn("another process keeps the pipeline's lock", "for", waited.Round(time.Second).String())
	}
}

func (r *runner) redrive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.opened.Redrive != nil {
		r.opened.Redrive()
	}
}

// wakeFor wakes the source if it reads that outbox table, or if either table is not
// known: then a notification costs one poll.
func (r *runner) wakeFor(table string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if table == "" || r.opened.Outbox == "" || table == r.opened.Outbox {
		notify(r.wake)
	}
}
