package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
)

// Health says how the process and its pipelines are.
func (s *Supervisor) Health() observe.Health {
	members, sessionErr := s.keeper.Members()
	s.mu.Lock()
	defer s.mu.Unlock()
	h := observe.Health{
		Status: observe.Healthy, UptimeSeconds: int64(time.Since(s.started).Seconds()),
		Binary: s.cfg.Self.Binary, Version: s.cfg.Self.Version, Instance: s.cfg.Self.ID, Group: s.cfg.Self.Group,
		Draining:  s.draining,
		Postgres:  connection(sessionErr == nil && s.loadErr == nil, errors.Join(sessionErr, s.loadErr)),
		Listener:  connection(s.listening, s.listenErr),
		Instances: []observe.InstanceStatus{}, Pipelines: []observe.PipelineStatus{},
	}
	for _, m := range members {
		h.Instances = append(h.Instances, observe.InstanceStatus{
			ID: m.ID, Binary: m.Binary, Version: m.Version, Hostname: m.Hostname, PID: m.PID, Backends: m.Backends, Draining: m.Draining, Started: m.Started,
		})
	}
	if !h.Postgres.Up {
		h.Reasons = append(h.Reasons, "PostgreSQL: "+h.Postgres.Error)
	} else if !s.loaded {
		h.Reasons = append(h.Reasons, "the pipelines have not been read yet")
	}
	for i := range s.snapshot {
		p := s.status(&s.snapshot[i], members)
		h.Pipelines = append(h.Pipelines, p)
		if p.Epoch != 0 {
			h.PipelinesOwned++
		}
		what := fmt.Sprintf("%s pipeline %q is %s", p.Direction, p.Name, p.State)
		if p.Error != "" {
			what += ": " + p.Error
		}
		switch p.State {
		case observe.StateWaiting:
			if time.Since(p.Since) > heldLong {
				h.Warnings = append(h.Warnings, what+" for its lock, which another process holds")
			}
		case observe.StateUnserved:
			h.Warnings = append(h.Warnings, fmt.Sprintf("%s pipeline %q: no live instance has backend %q", p.Direction, p.Name, p.Backend))
		case observe.StateRetrying, observe.StateBackoff, observe.StateFailed, observe.StateInvalid:
			h.Reasons = append(h.Reasons, what)
		}
	}
	if len(h.Reasons) > 0 {
		h.Status = observe.Unhealthy
	}
	return h
}

func connection(up bool, err error) observe.Connection {
	if up {
		return observe.Connection{Up: true}
	}
	if err == nil {
		return observe.Connection{}
	}
	lines := strings.Split(err.Error(), "\n")
	return observe.Connection{Error: strings.Join(slices.Compact(lines), "; ")}
}

// status describes one pipeline.
func (s *Supervisor) status(p *catalog.Pipeline, members []lease.Instance) observe.PipelineStatus {
	st := observe.PipelineStatus{Name: p.Name, Direction: string(p.Direction), Backend: p.Backend, State: observe.StateStandby, Since: s.started}
	if r := s.runners[p.Key]; r != nil {
		r.describe(&st)
		return st
	}
	if !p.Enabled {
		st.State = observe.StateDisabled
		return st
	}
	st.Owner = lease.Owner(members, p.Key, p.Backend)
	if pr, ok := s.problems[p.Key]; ok {
		st.State, st.Error, st.Since = observe.StateInvalid, pr.text, pr.since
	} else if st.Owner == "" && !lease.Served(members, p.Backend) && len(members) > 0 {
		st.State = observe.StateUnserved
	}
	return st
}

func (r *runner) describe(st *observe.PipelineStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	st.State, st.Since, st.Epoch, st.Guarantee, st.Owner = r.state, r.since, r.epoch, r.guarantee, r.s.cfg.Self.ID
	if r.err != nil {
		st.Error = oneLine(r.err)
	}
	n := r.meter.Numbers()
	st.Numbers = &n
}

// Ready reports whether the process can take pipelines, or why not.
func (s *Supervisor) Ready() error {
	_, sessionErr := s.keeper.Members()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.draining:
		return errors.New("draining")
	case sessionErr != nil:
		return sessionErr
	case s.loadErr != nil:
		return s.loadErr
	case !s.loaded:
		return errors.New("the pipelines have not been read yet")
	}
	return nil
}

const (
	lagEvery     = 5 * time.Second
	lettersEvery = 10 * time.Second
	auditEvery   = 30 * time.Second
	lookFor      = time.Second
)

// monitor keeps the gauges that have to be asked for.
func (s *Supervisor) monitor(ctx context.Context) {
	tick := time.NewTicker(lookFor)
	defer tick.Stop()
	lagAt, auditAt := make(map[*runner]time.Time), make(map[*runner]time.Time)
	var lettersAt time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var due []*runner
		running := 0
		current, audited := make(map[*runner]time.Time), make(map[*runner]time.Time)
		s.each(func(r *runner) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.lag == nil && r.onRedrive == nil {
				return
			}
			running++
			current[r], audited[r] = lagAt[r], auditAt[r]
			if r.lag != nil && time.Since(lagAt[r]) >= lagEvery {
				due = append(due, r)
			}
		})
		lagAt, auditAt = current, audited
		for _, r := range due {
			lagAt[r] = time.Now()
			r.measureLag(ctx)
			if time.Since(auditAt[r]) >= auditEvery {
				auditAt[r] = time.Now()
				r.audit(ctx)
			}
		}
		if running > 0 && s.cfg.Letters != nil && (s.lettersDue.Swap(false) || time.Since(lettersAt) >= lettersEvery) {
			lettersAt = time.Now()
			s.countLetters(ctx)
		}
	}
}

func (r *runner) measureLag(ctx context.Context) {
	r.mu.Lock()
	lag, quiet := r.lag, !r.quietSince.IsZero()
	r.mu.Unlock()
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
		r.log.Debug("measure the lag", "err", err)
		r.meter.LagUnknown()
		return
	}
	r.meter.SetLag(rows, seconds)
}

// auditor is a source that can account for its rows.
type auditor interface {
	Unaccounted(ctx context.Context) (int64, error)
	Overtaken() int64
}

// audit asks a source whether it has lost a row.
func (r *runner) audit(ctx context.Context) {
	r.mu.Lock()
	a, ok := r.lag.(auditor)
	r.mu.Unlock()
	if !ok {
		return
	}
	r.meter.SetOvertaken(a.Overtaken())
	ctx, cancel := context.WithTimeout(ctx, lagEvery)
	defer cancel()
	n, err := a.Unaccounted(ctx)
	if err != nil {
		r.log.Debug("account for the outbox's rows", "err", err)
		return
	}
	r.meter.SetUnaccounted(n)
}

func (s *Supervisor) countLetters(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lagEvery)
	defer cancel()
	letters, err := s.cfg.Letters(ctx)
	if err != nil {
		s.cfg.Logger.Debug("count the dead letters", "err", err)
		return
	}
	s.each(func(r *runner) {
		n := letters[r.pipeline.Key]
		r.meter.SetLetters(n.Dead, n.Parked)
	})
}
