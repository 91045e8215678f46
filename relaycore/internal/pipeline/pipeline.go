// Package pipeline opens the two ends of a pipeline and moves messages between them.
//
// [Runner.Run] is what a supervisor does under a lease. The other methods serve
// commands, which hold no lease: check, preview, replay and verify.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Runner runs pipelines on one database.
type Runner struct {
	Pool    *pgxpool.Pool
	Readers *pgxpool.Pool // for outboxes; see [outbox.Tune]
	Inboxes *pgxpool.Pool // for users' tables; its sessions have the role's own search path
	Group   string
	Owner   string // the instance, as operators see it
	Version string
	// Budget bounds the bytes in flight of all pipelines together.
	Budget *budget.Budget
}

// openTimeout bounds the opening of both ends.
const openTimeout = 30 * time.Second

func (r *Runner) store() store.Store { return store.New(r.Pool, r.Group) }

// Run opens the job's pipeline and runs it until it is to stop or fails. It returns
// an error that [lease.ErrLost] matches if another owner has taken over.
func (r *Runner) Run(ctx context.Context, job *supervisor.Job) error {
	p := &run{Runner: r, job: job, conceal: job.Pipeline.Concealer()}
	err := p.open(ctx)
	if err == nil {
		err = lost(p.work(ctx))
	}
	return p.close(ctx, err)
}

// run is one run of a pipeline.
type run struct {
	*Runner
	job     *supervisor.Job
	conceal *relaycfg.Concealer
	ends    *ends   // nil before the ledger is open
	status  *status // nil as ends
	engine  *engine.Engine
	expiry  expiry
}

// work moves messages. It has few variables: its stack stays in memory while the pipeline
// is idle.
func (r *run) work(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if r.expiry.age > 0 {
		expiring, end := context.WithCancel(ctx)
		defer end()
		wg.Go(func() { r.expiry.run(expiring) })
	}
	return r.engine.Run(ctx, r.job.Stop)
}

// close closes what open has opened, and records how the run ended.
func (r *run) close(ctx context.Context, err error) error {
	if r.ends != nil {
		r.ends.close()
	}
	err = r.conceal.Error(err)
	if r.status != nil {
		r.status.end(ctx, err)
	}
	return err
}

func (r *run) open(ctx context.Context) error {
	job := r.job
	resolved, err := job.Pipeline.Resolve()
	if err != nil {
		return relay.Fatal(err)
	}
	log := r.conceal.Logger(job.Logger)
	opening, opened := openContext(ctx, job.Stop)
	defer opened()
	ledger, state, err := r.store().Open(opening, job.Pipeline.Key, job.Epoch, r.Owner)
	if err != nil {
		return lost(err)
	}
	if resolved.Settings.DedupKeyFormat == "legacy" {
		state.Identity = "" // delivery ids are the events' ids
	}
	r.status = newStatus(ledger.SetStatus, job, r.conceal)
	limited, err := limitLedger(opening, ledger, resolved.Settings.MaxDeadLetters, state.NoDeadLetters)
	if err != nil {
		return err
	}
	if job.Pipeline.Direction == relay.Forward {
		ledger.Conceal(r.conceal.Text, slices.Collect(maps.Keys(resolved.Settings.Headers)))
	}

	e := &ends{Runner: r.Runner, pipeline: job.Pipeline, resolved: resolved, log: log}
	e.keepFarEnds, e.countLoss = ledger.KeepFarEnds, job.Meter.Lost
	r.ends = e
	if err := e.open(opening, state, outboxOptions{wake: job.Wake, polled: job.Meter.Polled, epoch: job.Epoch}); err != nil {
		return job.Pipeline.Explain(err)
	}
	if src, ok := e.source.(*outbox.Source); ok {
		ledger.SetSource(src.Table)
		if src.Reused() {
			state.Position = "" // a row may be repeated, but not taken for another with its id
		}
	}

	s := resolved.Settings
	r.engine = engine.New(engine.Config{
		Pipeline: job.Pipeline.Name, Source: e.source, Sink: e.sink, Ledger: limited, State: state,
		Transform: e.transform, Grows: s.Transform != "",
		Batch: s.BatchSize, InFlightBytes: int64(s.MaxInFlightBytes), Budget: r.Budget, Copies: copies(&resolved),
		OnError: s.OnError, RateMessages: float64(s.RateLimitMessages), RateBytes: float64(s.RateLimitBytes),
		Trusted: job.Trusted, Meter: job.Meter, Logger: log, Changed: r.status.changed,
	})
	r.expiry = expiry{ledger: ledger, age: s.DeadLetterAge.D(), log: log, count: job.Meter.Expired, redrive: r.engine.Redrive}
	lag, _ := e.source.(relay.Lagger)
	job.Events.Opened(supervisor.Opened{
		Outbox: e.outboxName(), Lag: lag, PollInterval: s.PollInterval.D(), Guarantee: e.guarantee().Delivery, Redrive: r.engine.Redrive,
	})
	r.status.changed(nil)
	job.Logger.Info("pipeline runs", "backend", resolved.Backend.Name, "epoch", job.Epoch,
		"largest_row_bytes", r.Budget.Largest(copies(&resolved)))
	return nil
}

// lost marks the error of an owner whose epoch is not current.
func lost(err error) error {
	if errors.Is(err, engine.ErrFenced) {
		return fmt.Errorf("%w: %w", lease.ErrLost, err)
	}
	return err
}

// openContext ends with ctx, when the pipeline is to stop, or after openTimeout.
func openContext(ctx, stop context.Context) (context.Context, func()) {
	opening, cancel := context.WithTimeout(ctx, openTimeout)
	detach := context.AfterFunc(stop, cancel)
	return opening, func() {
		detach()
		cancel()
	}
}
