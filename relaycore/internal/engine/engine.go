package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// What to do with a message that can never be delivered.
const (
	OnErrorPark = "park" // dead-letter it and park the later ones of its key
	OnErrorSkip = "skip" // dead-letter it and go on
	OnErrorHalt = "halt" // stop the pipeline in front of it
)

// Config is what a pipeline is made of. Source, Sink, Transform and Ledger are
// required; for all else the zero value is a good choice.
type Config struct {
	Pipeline string
	Source   relay.Source
	Sink     relay.Sink
	// Transform encodes or decodes a batch that was received. It appends what it
	// writes to buf and returns it. It is not called twice at a time.
	Transform func(batch []relay.Message, buf []byte) []byte
	Ledger    Ledger
	State     State // as the ledger had it when the lease was acquired

	Batch         int           // messages a receive may return; 0 means 1000
	InFlightBytes int64         // between source and sink; 0 means 16 MiB
	Budget        *Budget       // that it shares with other pipelines; nil means none
	OnError       string        // "" means park
	RateMessages  float64       // a second; 0 means no limit
	RateBytes     float64       // a second; 0 means no limit
	CommitEvery   time.Duration // 0 means 50 ms; an idle pipeline commits at once
	// Trusted reports whether the lease still holds by the local clock. It is
	// asked before every publish.
	Trusted func() bool

	Meter  Meter // nil counts nothing
	Logger *slog.Logger
	// Changed is told when the pipeline starts to retry, with the reason, and
	// with nil when it works again.
	Changed func(err error)
}

// Meter counts. Its methods are called once a batch, not once a message, from
// several goroutines.
type Meter interface {
	Received(messages, bytes int)
	Published(messages, bytes int, took time.Duration)
	Latency(created time.Time) // from the row's creation to now; sampled
	Skipped(messages int)      // the far end had them
	DeadLettered(messages int)
	Parked(messages int)
	PublishFailed()
	SourceFailed()
	Committed(took time.Duration)
	InFlight(bytes int64) // added to, or with a negative sign taken from, what is in flight
	// Delivering tells how old the messages in the sink's hand are, by the first of
	// them that says; zero when there are none.
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
	cfg.OnError = cmp.Or(cfg.OnError, OnErrorPark)
	cfg.CommitEvery = cmp.Or(cfg.CommitEvery, 50*time.Millisecond)
	if cfg.Trusted == nil {
		cfg.Trusted = func() bool { return true }
	}
	if cfg.Meter == nil {
		cfg.Meter = noMeter{}
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
func (e *Engine) Redrive() {
	select {
	case e.redrive <- struct{}{}:
	default: // it will look already
	}
}

// Run moves messages until stop or ctx ends. When stop ends it takes no more,
// delivers what it holds, but for the parts of a batch that the sink does not have
// yet, commits, and returns nil; when ctx ends it abandons
// what it holds. Otherwise it returns the error that stopped the pipeline:
// [ErrFenced], or one that [relay.IsFatal] reports.
func (e *Engine) Run(ctx, stop context.Context) error {
	r := newRun(e)
	if err := r.prepare(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	receiving, stopReceiving := context.WithCancel(ctx)
	defer stopReceiving()
	defer context.AfterFunc(stop, stopReceiving)()
	r.stopping = stop

	var wg sync.WaitGroup
	var errs [3]error
	wg.Go(func() {
		defer close(r.received)
		errs[0] = r.receiveAll(receiving)
	})
	wg.Go(func() {
		defer close(r.ready)
		r.transformAll(ctx)
	})
	wg.Go(func() {
		defer close(r.settled)
		errs[1] = r.publishAll(ctx)
		stopReceiving()
		for c := range r.ready { // what was read ahead is not wanted any more
			r.release(c.bytes)
		}
	})
	wg.Go(func() {
		if errs[2] = r.commitAll(ctx); errs[2] != nil {
			cancel(errs[2]) // nothing may be published that cannot be committed
		}
		for s := range r.settled { // let the publisher finish
			r.release(s.bytes)
		}
	})
	wg.Wait()
	for _, err := range []error{errs[2], errs[1], errs[0]} {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return context.Cause(ctx)
}

// run is the state of one Run.
type run struct {
	Config
	redrive  <-chan struct{}
	stopping context.Context //nolint:containedctx // one of the two lifetimes that a run has

	trouble  *trouble
	received chan chunk
	ready    chan chunk
	settled  chan settlement
	local    *semaphore.Weighted
	share    share
	encoding sync.Mutex // see transform
	buffers  sync.Pool
	joined   chan []relay.Message // empty slices to be filled again
	recycler relay.Recycler       // nil where the source wants nothing back

	// The publisher's own.
	parked     map[string]bool // keys that have letters, as Ledger.Key gives them
	tail       tail
	gathered   []chunk
	backoff    backoff
	pace       pacer
	resumer    relay.Resumer
	publishing outage
	maxBatch   int
	maxBytes   int
}

// maxUncommitted bounds the messages that can be at the sink and not in a
// checkpoint, and so what a successor has to look for.
const maxUncommitted = 50_000

func newRun(e *Engine) *run {
	r := &run{
		Config: e.cfg, redrive: e.redrive,
		received: make(chan chunk, 2), ready: make(chan chunk, 16), settled: make(chan settlement, 4),
		local: semaphore.NewWeighted(e.cfg.InFlightBytes), share: share{of: e.cfg.Budget},
		joined: make(chan []relay.Message, 2),
		parked: make(map[string]bool), tail: newTail(e.cfg.Source),
		pace:     newPacer(e.cfg.RateMessages, e.cfg.RateBytes),
		maxBatch: 4096, maxBytes: int(min(e.cfg.InFlightBytes, 4<<20)),
	}
	r.buffers.New = func() any { return new([]byte) }
	r.trouble = &trouble{log: e.cfg.Logger, changed: e.cfg.Changed}
	r.publishing = outage{trouble: r.trouble, step: "publish"}
	r.resumer, _ = e.cfg.Sink.(relay.Resumer)
	r.recycler, _ = e.cfg.Source.(relay.Recycler)
	if l, ok := e.cfg.Sink.(relay.Limiter); ok {
		messages, bytes := l.Limits()
		r.maxBatch = cmp.Or(messages, r.maxBatch)
		r.maxBytes = cmp.Or(bytes, r.maxBytes)
	}
	r.maxBatch = min(r.maxBatch, r.pace.burst())
	return r
}

// prepare loads the parked keys and finds out what a predecessor had published
// beyond its last checkpoint.
func (r *run) prepare(ctx context.Context) error {
	err := r.retry(ctx, "load parked keys", func() error {
		keys, err := r.Ledger.ParkedKeys(ctx)
		for _, key := range keys {
			r.parked[key] = true
		}
		return err
	})
	if err != nil || r.resumer == nil {
		return err
	}
	if r.State.Position == "" {
		return r.retry(ctx, "mark the sink's position", func() error { return r.markPosition(ctx) })
	}
	for settled := r.State.Clean; ; {
		before := len(r.tail.ids)
		err := r.retry(ctx, "read the far end's tail", func() error {
			return r.resumer.Resume(ctx, r.State.Position, r.tail.found)
		})
		if err != nil {
			return err
		}
		// What a killed predecessor had handed to its socket may still be on the
		// way: look until nothing more arrives.
		if settled && len(r.tail.ids) == before {
			break
		}
		settled = true
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	if len(r.tail.ids) > 0 {
		r.Logger.Info("read the far end back", "found", len(r.tail.ids), "unsettled", r.tail.open)
	}
	return nil
}

// markPosition stores where the sink's destination ends before anything is
// published, so that even the first messages can be found again. The checkpoint
// with it says of which source these are.
func (r *run) markPosition(ctx context.Context) error {
	position, err := r.resumer.Position(ctx)
	if err != nil {
		return err
	}
	c := Commit{Position: position}
	if src, ok := r.Source.(relay.Checkpointer); ok {
		at, err := src.Checkpoint(nil)
		if err != nil {
			return err
		}
		c.Checkpoint = &at
	}
	return r.Ledger.Commit(ctx, c)
}

// retry calls fn until it returns nil, a fatal error or [ErrFenced], or ctx ends.
func (r *run) retry(ctx context.Context, step string, fn func() error) error {
	out := outage{trouble: r.trouble, step: step}
	for wait := (backoff{}); ; {
		err := fn()
		switch {
		case err == nil:
			out.over()
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrFenced), relay.IsFatal(err):
			return fmt.Errorf("%s: %w", step, err)
		}
		out.begin(err)
		if err := sleep(ctx, wait.next(err)); err != nil {
			return err
		}
	}
}
