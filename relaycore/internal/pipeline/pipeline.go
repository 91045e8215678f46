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
func (r *Runner) Run(ctx context.Context, job *supervisor.Job) (err error) {
	resolved, err := job.Pipeline.Resolve()
	if err != nil {
		return relay.Fatal(err)
	}
	conceal := job.Pipeline.Concealer()
	log := conceal.Logger(job.Logger)
	opening, opened := openContext(ctx, job.Stop)
	defer opened()
	ledger, state, err := r.store().Open(opening, job.Pipeline.Key, job.Epoch, r.Owner)
	if err != nil {
		return lost(err)
	}
	if resolved.Settings.DedupKeyFormat == "legacy" {
		state.Identity = "" // delivery ids are the events' ids
	}
	status := newStatus(ctx, ledger.SetStatus, job, conceal)
	defer func() {
		err = conceal.Error(err)
		status.end(ctx, err)
	}()
	limited, err := limitLedger(opening, ledger, resolved.Settings.MaxDeadLetters)
	if err != nil {
		return err
	}
	if job.Pipeline.Direction == relay.Forward {
		ledger.Conceal(conceal.Text, slices.Collect(maps.Keys(resolved.Settings.Headers)))
	}

	e := &ends{Runner: r, pipeline: job.Pipeline, resolved: resolved, log: log, keepFarEnds: ledger.KeepFarEnds, countLoss: job.Meter.Lost}
	defer e.close()
	if err := e.open(opening, state, outboxOptions{wake: job.Wake, polled: job.Meter.Polled, epoch: job.Epoch}); err != nil {
		return job.Pipeline.Explain(err)
	}
	opened()
	if src, ok := e.source.(*outbox.Source); ok {
		ledger.SetSource(src.Table)
		if src.Reused() {
			state.Position = "" // a row may be repeated, but not taken for another with its id
		}
	}

	s := resolved.Settings
	eng := engine.New(engine.Config{
		Pipeline: job.Pipeline.Name, Source: e.source, Sink: e.sink, Ledger: limited, State: state,
		Transform: e.transform, Grows: s.Transform != "",
		Batch: s.BatchSize, InFlightBytes: int64(s.MaxInFlightBytes), Budget: r.Budget, Copies: copies(&resolved),
		OnError: s.OnError, RateMessages: float64(s.RateLimitMessages), RateBytes: float64(s.RateLimitBytes),
		Trusted: job.Trusted, Meter: job.Meter, Logger: log, Changed: status.changed,
	})
	lag, _ := e.source.(relay.Lagger)
	job.Events.Opened(supervisor.Opened{
		Outbox: e.outboxName(), Lag: lag, PollInterval: s.PollInterval.D(), Guarantee: e.guarantee().Delivery, Redrive: eng.Redrive,
	})
	status.changed(nil)
	job.Logger.Info("pipeline runs", "backend", resolved.Backend.Name, "epoch", job.Epoch,
		"largest_row_bytes", r.Budget.Largest(copies(&resolved)))
	expiring, end := context.WithCancel(ctx)
	var wg sync.WaitGroup
	expire := expiry{ledger: ledger, age: s.DeadLetterAge.D(), log: log, count: job.Meter.Expired, redrive: eng.Redrive}
	wg.Go(func() { expire.run(expiring) })
	defer wg.Wait()
	defer end()
	return lost(eng.Run(ctx, job.Stop))
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
