package supervisor

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Job is one run of a pipeline under its lease.
type Job struct {
	Pipeline catalog.Pipeline
	Lease    *lease.Lease
	// Stop asks to take no more, to finish what is in hand, and to return nil.
	Stop   context.Context //nolint:containedctx // one of the two lifetimes that a run has
	Wake   <-chan struct{} // the outbox has new rows
	Meter  *observe.Pipeline
	Logger *slog.Logger

	runner *runner
}

// Running says that both ends are open and messages can move. outbox is the
// name of the outbox table, "" for a reverse pipeline; redrive makes the engine
// look at the dead letters; lag says how far the source is behind, nil when it
// cannot; guarantee is for people.
func (j *Job) Running(outbox string, redrive func(), lag relay.Lagger, guarantee string) {
	j.runner.running(outbox, redrive, lag, guarantee)
}

// PollEvery says how often the outbox has to be looked at.
func (j *Job) PollEvery(interval time.Duration) {
	j.runner.mu.Lock()
	defer j.runner.mu.Unlock()
	j.runner.poll = interval
}

// Changed says that the pipeline fails for now, or with nil that it works again.
func (j *Job) Changed(err error) { j.runner.changed(err) }

// runner runs one pipeline, as one revision of the catalog has it, until it is
// told to drain.
type runner struct {
	s        *Supervisor
	pipeline catalog.Pipeline
	log      *slog.Logger
	meter    *observe.Pipeline
	stop     context.Context //nolint:containedctx // ends when the runner is to drain
	drain    context.CancelFunc
	done     chan struct{}
	wake     chan struct{}

	mu        sync.Mutex
	state     string
	since     time.Time
	heldSince time.Time // since when another process holds the lock; zero when none is known to
	saidHeld  bool
	err       error
	epoch     int64
	outbox    string
	onRedrive func()
	lag       relay.Lagger
	guarantee string
	limit     time.Duration // on the drain
	poll      time.Duration // how often the outbox's sequence is looked at

	quietSince time.Time // since when there is nothing to read; zero when there may be something
	quietAt    int64     // the id up to which everything was settled then

	asked time.Time // when the sequence was looked at; [Supervisor.pulse]'s own
}

func newRunner(s *Supervisor, p catalog.Pipeline) *runner {
	stop, cancel := context.WithCancel(context.Background()) // drained by its owner, which waits for it
	r := &runner{
		s: s, pipeline: p, stop: stop, done: make(chan struct{}), wake: make(chan struct{}, 1),
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

func (r *runner) stopping() {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.state {
	case observe.StateRunning:
		r.limit = r.s.cfg.Drain
	case observe.StateRetrying:
		r.limit = min(failingDrain, r.s.cfg.Drain)
	default:
		return
	}
	r.state, r.since = observe.StateStopping, time.Now()
}

func (r *runner) set(state string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != state {
		r.since = time.Now()
	}
	r.state, r.err = state, err
	switch held := state == observe.StateWaiting && err == nil; {
	case !held:
		r.heldSince, r.saidHeld = time.Time{}, false
	case r.heldSince.IsZero():
		r.heldSince = time.Now()
	}
	health := observe.HealthGood
	switch state {
	case observe.StateRetrying, observe.StateBackoff, observe.StateFailed:
		health = observe.HealthBad
	case observe.StateWaiting:
		if !r.heldSince.IsZero() && time.Since(r.heldSince) > heldLong {
			health = observe.HealthBad // whoever holds the lock may be no more able to say so
		}
	}
	r.meter.SetHealth(health)
}

func (r *runner) running(outbox string, redrive func(), lag relay.Lagger, guarantee string) {
	r.set(observe.StateRunning, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.outbox, r.onRedrive, r.lag, r.guarantee = outbox, redrive, lag, guarantee
	if i := strings.LastIndexByte(outbox, '.'); i >= 0 {
		r.outbox = strings.Trim(outbox[i+1:], `"`)
	}
}

func (r *runner) changed(err error) {
	if r.stop.Err() != nil {
		return
	}
	if err != nil {
		r.set(observe.StateRetrying, err)
		return
	}
	r.set(observe.StateRunning, nil)
}

func (r *runner) redrive() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.onRedrive != nil {
		r.onRedrive()
	}
}

// wakeFor passes a notification on to the source of that table. The table's
// name is not known before the source is open, and then a wake costs a poll.
func (r *runner) wakeFor(table string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if table == "" || r.outbox == "" || table == r.outbox {
		poke(r.wake)
	}
}

const (
	heldRetry   = 250 * time.Millisecond
	minBackoff  = 250 * time.Millisecond
	maxBackoff  = 5 * time.Second
	minFatal    = 10 * time.Second
	maxFatal    = time.Minute
	stableAfter = time.Minute // a run that lasted so long starts the backoff anew
	heldLong    = 10 * time.Second
	// failingDrain is how long a pipeline that fails anyway may take to drain.
	failingDrain = time.Second
)

// run tries to run the pipeline until it is told to drain.
func (r *runner) run(ctx context.Context) {
	defer r.meter.SetHealth(observe.HealthNone)
	backoff := time.Duration(0)
	said := ""
	for r.stop.Err() == nil && ctx.Err() == nil {
		started := time.Now()
		err := r.attempt(ctx)
		if r.stop.Err() != nil || ctx.Err() != nil {
			if err != nil && !errors.Is(err, context.Canceled) {
				r.log.Warn("pipeline stopped with an error", "err", oneLine(err))
			}
			return
		}
		if time.Since(started) > stableAfter {
			backoff = 0
		}
		var wait time.Duration
		switch {
		case errors.Is(err, lease.ErrHeld):
			r.set(observe.StateWaiting, nil)
			r.sayHeld()
			wait, backoff = jitter(heldRetry), 0
		case errors.Is(err, lease.ErrLost), errors.Is(err, lease.ErrNoSession), errors.Is(err, engine.ErrFenced):
			r.set(observe.StateWaiting, err)
			wait, backoff = jitter(heldRetry), 0
		case err == nil: // the engine ended by itself, as a source that is read to its end does not
			wait = jitter(minBackoff)
		case relay.IsFatal(err):
			backoff = min(max(2*backoff, minFatal), maxFatal)
			wait = jitter(backoff)
			r.set(observe.StateFailed, err)
		default:
			backoff = min(max(2*backoff, minBackoff), maxBackoff)
			wait = jitter(backoff)
			r.set(observe.StateBackoff, err)
		}
		if err != nil && backoff > 0 {
			r.meter.Restarted()
			if text := oneLine(err); text != said { // once for each change of state
				r.log.Error("pipeline failed, will be tried again", "err", text, "needs_operator", relay.IsFatal(err), "in", wait.Round(time.Millisecond).String())
				said = text
			}
		} else if !errors.Is(err, lease.ErrHeld) {
			said = ""
		}
		r.sleep(ctx, wait)
	}
}

// sayHeld says once that a lock does not come free.
func (r *runner) sayHeld() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if waited := time.Since(r.heldSince); waited > heldLong && !r.saidHeld {
		r.saidHeld = true
		r.log.Warn("waiting for the pipeline's lock: a process that should have let go of it holds it", "for", waited.Round(time.Second).String())
	}
}

func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2) }

func (r *runner) sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.stop.Done():
	case <-ctx.Done():
	}
}

// attempt holds the lease while the pipeline runs.
func (r *runner) attempt(ctx context.Context) error {
	return r.s.keeper.Hold(ctx, r.pipeline.Key, func(ctx context.Context, l *lease.Lease) error {
		r.mu.Lock()
		r.epoch = l.Epoch
		r.mu.Unlock()
		r.meter.Own(l.Epoch)
		defer r.release()

		// A drain that does not end is cut short, so that a restart with a better
		// configuration is not kept waiting by a worse one.
		ctx, abandon := context.WithCancelCause(ctx)
		defer abandon(nil)
		defer context.AfterFunc(r.stop, func() {
			select {
			case <-time.After(r.drainLimit()):
				abandon(errors.New("drain took too long"))
			case <-ctx.Done():
			}
		})()
		return r.s.cfg.Run(ctx, &Job{
			Pipeline: r.pipeline, Lease: l, Stop: r.stop, Wake: r.wake, Meter: r.meter, Logger: r.log, runner: r,
		})
	})
}

func (r *runner) drainLimit() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.limit
}

func (r *runner) release() {
	r.mu.Lock()
	r.onRedrive, r.lag, r.outbox, r.epoch, r.quietSince = nil, nil, "", 0, time.Time{}
	r.mu.Unlock()
	r.meter.Disown()
}

// oneLine joins the lines of errors that were joined.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
