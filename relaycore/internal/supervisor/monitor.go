package supervisor

import (
	"context"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	monitorEvery     = time.Second // how often the monitor looks for due measurements
	lagEvery         = 5 * time.Second
	deadLettersEvery = 10 * time.Second
	auditEvery       = 30 * time.Second
)

// monitor sets the gauges whose values have to be asked for.
func (s *Supervisor) monitor(ctx context.Context) {
	tick := time.NewTicker(monitorEvery)
	defer tick.Stop()
	var due []*runner
	var countedAt time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}

		running := 0
		s.each(func(r *runner) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.opened.Lag == nil && r.opened.Redrive == nil {
				r.lagAt, r.auditAt = time.Time{}, time.Time{}
				return
			}
			running++
			if r.opened.Lag != nil && time.Since(r.lagAt) >= lagEvery {
				due = append(due, r)
			}
		})

		for _, r := range due {
			r.lagAt = time.Now()
			r.measureLag(ctx)
			if time.Since(r.auditAt) >= auditEvery {
				r.auditAt = time.Now()
				r.audit(ctx)
			}
		}
		clear(due) // release runners that end
		due = due[:0]
		if running > 0 && s.cfg.DeadLetters != nil && (s.countDue.Swap(false) || time.Since(countedAt) >= deadLettersEvery) {
			countedAt = time.Now()
			s.countDeadLetters(ctx)
		}
	}
}

func (r *runner) measureLag(ctx context.Context) {
	r.mu.Lock()
	lag, quiet := r.opened.Lag, !r.quiet.since.IsZero()
	r.mu.Unlock()
	r.measureSnapshot(lag)
	switch {
	case lag == nil:
		return
	case quiet:
		r.meter.SetLag(0, 0)
		return
	}

	ctx, cancel := context.WithTimeout(ctx, lagEvery)
	defer cancel()
	rows, seconds, err := lag.Lag(ctx)
	if err != nil {
		r.log.Debug("cannot measure the lag", "err", err)
		r.meter.LagUnknown()
		return
	}
	r.meter.SetLag(rows, seconds)
}

// snapshotter is a source that can read the rows of a captured table.
type snapshotter interface {
	Existing() (rows, total int64, left time.Duration, ok bool)
}

func (r *runner) measureSnapshot(source relay.Lagger) {
	var now *observe.Snapshot
	if s, ok := source.(snapshotter); ok {
		if rows, total, left, ok := s.Existing(); ok {
			now = &observe.Snapshot{Rows: rows, Total: total, Left: left.Seconds()}
		}
	}
	r.meter.SetSnapshot(now)
}

// auditor is a source that can account for its rows.
type auditor interface {
	Unaccounted(ctx context.Context) (int64, error)
	Overtaken() int64
}

// audit asks the source whether it has lost a row.
func (r *runner) audit(ctx context.Context) {
	r.mu.Lock()
	source, ok := r.opened.Lag.(auditor)
	r.mu.Unlock()
	if !ok {
		return
	}
	r.meter.SetOvertaken(source.Overtaken())
	ctx, cancel := context.WithTimeout(ctx, lagEvery)
	defer cancel()
	n, err := source.Unaccounted(ctx)
	if err != nil {
		r.log.Debug("cannot account for the rows", "err", err)
		return
	}
	r.meter.SetUnaccounted(n)
}

func (s *Supervisor) countDeadLetters(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lagEvery)
	defer cancel()
	counts, err := s.cfg.DeadLetters(ctx)
	if err != nil {
		s.cfg.Logger.Debug("cannot count dead letters", "err", err)
		return
	}
	s.each(func(r *runner) {
		n := counts[r.pipeline.Key]
		r.meter.SetDeadLetters(n.Dead, n.Parked)
	})
}
