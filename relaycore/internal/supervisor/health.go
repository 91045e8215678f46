package supervisor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// Health describes the process and its pipelines.
func (s *Supervisor) Health() observe.Health {
	members, sessionErr := s.keeper.Members()
	s.mu.Lock()
	defer s.mu.Unlock()
	h := observe.Health{
		Status: observe.Healthy, UptimeSeconds: int64(time.Since(s.started).Seconds()),
		Binary: s.cfg.Self.Binary, Version: s.cfg.Self.Version, Instance: s.cfg.Self.ID, Group: s.cfg.Self.Group,
		Draining:  s.draining,
		Postgres:  connection(errors.Join(sessionErr, s.loadErr)),
		Listener:  connection(s.listenErr),
		Instances: []observe.InstanceStatus{}, Pipelines: []observe.PipelineStatus{},
	}
	for _, m := range members {
		h.Instances = append(h.Instances, observe.InstanceStatus{
			ID: m.ID, Binary: m.Binary, Version: m.Version, Hostname: m.Hostname, PID: m.PID,
			Backends: m.Backends, Draining: m.Draining, Started: m.Started,
		})
	}
	s.judgeCatalog(&h)
	registered := slices.ContainsFunc(members, func(m lease.Instance) bool { return m.ID == s.cfg.Self.ID })
	if sessionErr == nil && !registered {
		h.Reasons = append(h.Reasons, "this instance has no record in relay_instances, so it owns no pipeline")
	}
	idle := 0 // unserved pipelines that this instance could run
	for i := range s.snapshot {
		p := s.status(&s.snapshot[i], members, sessionErr == nil)
		judgePipeline(&h, &p)
		if p.State == observe.StateUnserved && s.snapshot[i].Linked && !s.draining {
			idle++
		}
	}
	if h.PipelinesOwned == 0 && idle > 0 {
		h.Reasons = append(h.Reasons, fmt.Sprintf("this instance runs no pipeline, although %d that it could run are unserved", idle))
	}
	if len(h.Reasons) > 0 {
		h.Status = observe.Unhealthy
	}
	return h
}

// judgeCatalog adds to h how current the pipelines are.
func (s *Supervisor) judgeCatalog(h *observe.Health) {
	if !h.Postgres.Up {
		h.Reasons = append(h.Reasons, "PostgreSQL: "+h.Postgres.Error)
	} else if s.loadedAt.IsZero() {
		h.Reasons = append(h.Reasons, "the pipelines have not been read yet")
	}
	if !s.loadedAt.IsZero() {
		age := time.Since(s.loadedAt)
		h.CatalogAge = new(age.Seconds())
		if limit := catalogStale + 2*s.cfg.Interval; age > limit {
			h.Reasons = append(h.Reasons, fmt.Sprintf("the pipelines were last read %s ago", age.Round(time.Second)))
		}
	}
}

// judgePipeline adds p to h, and what an operator has to know of it.
func judgePipeline(h *observe.Health, p *observe.PipelineStatus) {
	h.Pipelines = append(h.Pipelines, *p)
	if p.Epoch != 0 {
		h.PipelinesOwned++
	}
	if n := p.Numbers; n != nil && n.DeadLetters+n.Parked > 0 {
		h.Status = observe.Degraded
		h.Warnings = append(h.Warnings, observe.DeadLetterWarning(p.Direction, p.Name, n.DeadLetters, n.Parked))
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
	case observe.StateRetrying, observe.StateFailing, observe.StateFailed, observe.StateInvalid:
		h.Reasons = append(h.Reasons, what)
	}
}

// catalogStale is how old the pipelines may be, beside two polls.
const catalogStale = 30 * time.Second

func connection(err error) observe.Connection {
	if err == nil {
		return observe.Connection{Up: true}
	}
	lines := strings.Split(err.Error(), "\n")
	return observe.Connection{Error: strings.Join(slices.Compact(lines), "; ")}
}

// status describes one pipeline. The members are known while there is a session.
func (s *Supervisor) status(p *catalog.Pipeline, members []lease.Instance, known bool) observe.PipelineStatus {
	st := s.stateOf(p, members, known)
	if i := s.intruders[p.Key]; i != nil && p.Enabled {
		st.State, st.Error = observe.StateFailing, i.Error()
	}
	return st
}

func (s *Supervisor) stateOf(p *catalog.Pipeline, members []lease.Instance, known bool) observe.PipelineStatus {
	st := observe.PipelineStatus{
		Name: p.Name, Direction: string(p.Direction), Backend: p.Backend, State: observe.StateStandby, Since: s.started,
	}
	if r := s.runners[p.Key]; r != nil {
		r.describe(&st)
		return st
	}
	if !p.Enabled {
		st.State = observe.StateDisabled
		return st
	}
	st.Owner = s.assigned[p.Key]
	if pr, ok := s.problems[p.Key]; ok {
		st.State, st.Error, st.Since = observe.StateInvalid, pr.text, pr.since
	} else if st.Owner == "" && !lease.Served(members, p.Backend) && known {
		st.State = observe.StateUnserved
	}
	return st
}

func (r *runner) describe(st *observe.PipelineStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	own := &r.status
	st.State, st.Since, st.Epoch, st.Guarantee, st.Owner = own.state, own.since, own.epoch, own.guarantee, r.s.cfg.Self.ID
	if own.err != nil {
		st.Error = pg.OneLine(own.err)
	}
	n := r.meter.Numbers()
	st.Numbers = &n
	if refused := r.meter.Refused(); refused > 0 && own.state == observe.StateRunning {
		st.State = observe.StateFailing
		st.Error = fmt.Sprintf("the last %d messages are dead letters, and none was delivered since; see dlq summary", refused)
	}
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
	case s.loadedAt.IsZero():
		return errors.New("the pipelines have not been read yet")
	}
	return nil
}
