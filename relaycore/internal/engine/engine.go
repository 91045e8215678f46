package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine/steps"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// What to do with a message that can never be delivered.
const (
	OnErrorPark = "park" // dead-letter it and park the later ones of its key
	OnErrorSkip = "skip" // dead-letter it and go on
	OnErrorHalt = "halt" // stop the pipeline before it
)

// Config is what a pipeline is made of. Source, Sink, Transform, Ledger and Meter are
// required; for all else the zero value is a good choice.
type Config struct {
	Pipeline string
	Source   relay.Source
	Sink     relay.Sink
	// Transform encodes or decodes a batch that was received. It appends what it
	// writes to buf and returns it. It is not called twice at a time.
	Transform func(batch []relay.Message, buf []byte) []byte
	// Grows is set if Transform may make much more of a message than its source returned.
	Grows  bool
	Ledger Ledger
	State  State // as the ledger had it when the lease was acquired

	Batch         int            // messages a receive may return; 0 means 1000
	InFlightBytes int64          // between source and sink; 0 means 16 MiB
	Budget        *budget.Budget // that it shares with other pipelines; nil means none
	Copies        int            // of a message while it is sent; 0 means 3
	OnError       string         // "" means park
	RateMessages  float64        // a second; 0 means no limit
	RateBytes     float64        // a second; 0 means no limit
	CommitEvery   time.Duration  // 0 means 50 ms; an idle pipeline commits at once
	// Trusted reports whether the lease still holds by the local clock. It is
	// asked before every publish.
	Trusted func() bool

	Meter  Meter
	Logger *slog.Logger
	// Changed is called with the reason when the pipeline starts to retry, and with
	// nil when it works again.
	Changed func(err error)
}

// Meter counts. Its methods are called once a batch, not once a message, from
// several goroutines.
type Meter interface {
	Received(messages, bytes int)
	Published(messages, bytes int, took time.Duration)
	Latency(created time.Time) // from the row's creation to now; sampled
	Skipped(messages int)      // the far end had them
	Unexpected(messages int)   // of these, those that it should not have had
	Conflicts(messages int)    // of these, other events with the same id
	Filtered(messages int)     // the pipeline's filter drops them
	DeadLettered(messages int)
	Parked(messages int)
	PublishFailed()
	SourceFailed()
	Committed(took time.Duration)
	InFlight(bytes int64) // added to, or with a negative sign taken from, what is in flight
	// Delivering has the time of the oldest message that the sink is given, or zero
	// when it returns.
	Delivering(oldest time.Time)
}

// Engine runs one pipeline once.
type Engine struct {
	cfg     Config
	redrive chan struct{}
}

// New returns an engine for cfg.
func New(cfg Config) *Engine {
	cfg.Batch = cmp.Or(cfg.Batch, 1000)
	cfg.InFlightBytes = cmp.Or(cfg.InFlightBytes, 16<<20)
	cfg.Copies = cmp.Or(cfg.Copies, budget.DefaultCopies)
	cfg.OnError = cmp.Or(cfg.OnError, OnErrorPark)
	cfg.CommitEvery = cmp.Or(cfg.CommitEvery, 50*time.Millisecond)
	if cfg.Trusted == nil {
		cfg.Trusted = func() bool { return true }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func(error) {}
	}
	return &Engine{cfg: cfg, redrive: make(chan struct{}, 1)}
}

// Redrive makes the engine look for dead letters that may be delivered now.
func (e *Engine) Redrive() { notify(e.redrive) }

func notify(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default: // it will look already
	}
}

// Run moves messages until stop or ctx ends. When stop ends it receives no more,
// delivers the part of a batch that the sink has, commits, and returns nil. When ctx
// ends it abandons what it holds. Otherwise it returns the error that stopped the
// pipeline: [ErrFenced], or one that [relay.IsFatal] reports.
func (e *Engine) Run(ctx, stop context.Context) error {
	r := newRun(stop, e)
	p := newPublisher(r)
	r.Batch = min(r.Batch, max(p.maxBatch/2, minReceive))
	if err := p.prepare(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	receiving, stopReceiving := context.WithCancel(ctx)
	defer stopReceiving()
	defer context.AfterFunc(stop, stopReceiving)()

	// A run that has had nothing to do has two goroutines, this one and that of the source:
	// of a thousand pipelines most are idle. The other stages start with the first message,
	// and at the latest when the source ends, so that each closes the channel of the next.
	var wg sync.WaitGroup
	var received, published error
	r.start = sync.OnceFunc(func() {
		r.ready = make(chan chunk, p.readAhead())
		wg.Go(func() {
			defer close(r.ready)
			r.transformAll(ctx)
		})
		wg.Go(func() {
			defer close(r.settled)
			published = p.publishAll(ctx)
			stopReceiving()
			for c := range r.ready { // what was read ahead is no longer wanted
				r.release(c.held)
			}
		})
	})
	if !r.State.NoDeadLetters {
		r.start()
	}
	wg.Go(func() {
		received = r.receiveAll(receiving)
		close(r.received)
		r.start()
	})
	committed := r.commitAll(ctx)
	if committed != nil {
		cancel(committed) // nothing may be published that cannot be committed
	}
	for s := range r.settled { // let the publisher finish
		r.release(s.held)
	}
	wg.Wait()
	for _, err := range []error{committed, published, received} {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return context.Cause(ctx)
}

// run is what the goroutines of one Run share.
type run struct {
	Config
	*memory
	redrive  chan struct{}
	stopping context.Context //nolint:containedctx // one of the two lifetimes that a run has
	failures *steps.Failures

	received chan chunk       // from receive to transform
	ready    chan chunk       // from transform to publish
	settled  chan *settlement // from publish to commit

	start func() // starts transformer and publisher, unless they run

	transforming atomic.Int32 // chunks between receive and ready

	share    *budget.Share // bytes in flight
	encoding sync.Mutex    // see transform
}

func newRun(stop context.Context, e *Engine) *run {
	return &run{
		Config: e.cfg, memory: newMemory(e.cfg.Source), redrive: e.redrive, stopping: stop,
		failures: steps.New(e.cfg.Logger, e.cfg.Changed),
		received: make(chan chunk, 1), settled: make(chan *settlement, 4),
		share: e.cfg.Budget.Share(e.cfg.InFlightBytes),
	}
}

// retry calls fn until it returns nil, a fatal error or [ErrFenced], or ctx ends.
func (r *run) retry(ctx context.Context, name string, fn func() error) error {
	s := r.failures.Step(name)
	for {
		err := fn()
		switch {
		case err == nil:
			s.Recovered()
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrFenced), relay.IsFatal(err):
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := backoff.Sleep(ctx, s.Failed(err)); err != nil {
			return err
		}
	}
}
