package relaycmd

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

func (p *program) statusCommand() *ffcli.Command {
	return p.withArgs(0, 0, &ffcli.Command{
		Name: "status", ShortUsage: "status", FlagSet: p.flagSet(),
		ShortHelp: "show pipelines, their owners and progress, from the database",
	}, p.showStatus)
}

// pipelineStatus is one pipeline as status prints it.
type pipelineStatus struct {
	Name        string     `json:"name"`
	Direction   string     `json:"direction"`
	Backend     string     `json:"backend"`
	Enabled     bool       `json:"enabled"`
	State       string     `json:"state"`
	Owner       string     `json:"owner,omitempty"`
	Error       string     `json:"error,omitempty"`
	Epoch       int64      `json:"epoch"`
	LastID      int64      `json:"last_id"`
	Delivered   int64      `json:"delivered"`
	Skipped     int64      `json:"skipped"`
	Filtered    int64      `json:"filtered"`
	DeadLetters int64      `json:"dead_letters"`
	Parked      int64      `json:"parked"`
	Updated     *time.Time `json:"updated_at,omitempty"`

	Snapshot json.RawMessage `json:"snapshot,omitempty"` // see [backfill.State]
}

type statusReport struct {
	Group     string                   `json:"group"`
	Instances []observe.InstanceStatus `json:"instances"`
	Pipelines []pipelineStatus         `json:"pipelines"`
	Warnings  []string                 `json:"warnings,omitempty"`
}

func (p *program) showStatus(ctx context.Context, _ []string) error {
	var report *statusReport
	err := p.withDatabase(ctx, commandTimeout, func(ctx context.Context, db *database) (err error) {
		report, err = p.status(ctx, db)
		return err
	})
	switch {
	case err != nil:
		return err
	case p.json():
		return p.printJSON(report)
	}
	return p.printStatus(report)
}

func (p *program) status(ctx context.Context, db *database) (*statusReport, error) {
	members, err := db.store.Instances(ctx)
	if err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	cursors, err := db.store.List(ctx)
	if err != nil {
		return nil, err
	}
	deadLetters, err := db.store.CountDeadLetters(ctx)
	if err != nil {
		return nil, err
	}

	var keys []store.Key
	for i := range db.pipelines {
		keys = append(keys, db.pipelines[i].Key)
	}
	intruders, err := db.store.Intruders(ctx, keys)
	if err != nil {
		return nil, err
	}

	report := &statusReport{Group: p.common.group, Instances: []observe.InstanceStatus{}, Pipelines: []pipelineStatus{}}
	if report.Warnings, err = db.store.SnapshotWarnings(ctx); err != nil {
		return nil, err
	}
	for _, m := range members {
		report.Instances = append(report.Instances, observe.InstanceStatus{
			ID: m.ID, Binary: m.Binary, Version: m.Version, Hostname: m.Hostname, PID: m.PID, Backends: m.Backends,
			Draining: m.Draining, Started: m.Started,
		})
	}
	for i := range db.pipelines {
		pl := &db.pipelines[i]
		c, n := cursors[pl.Key], deadLetters[pl.Key]
		st := pipelineStatus{
			Name: pl.Name, Direction: string(pl.Direction), Backend: pl.Backend, Enabled: pl.Enabled, Epoch: c.Epoch, LastID: c.LastID,
			Delivered: c.Delivered, Skipped: c.Skipped, Filtered: c.Filtered, DeadLetters: n.Dead, Parked: n.Parked,
			Updated: c.Updated, Snapshot: json.RawMessage(c.Backfill),
		}
		st.State, st.Error = stateOf(pl, c, members)
		if i := intruders[pl.Key]; i != nil && pl.Enabled {
			st.State, st.Error = observe.StateFailing, i.Error()
		} else if c.Held {
			st.Owner = c.Owner
		}
		report.Pipelines = append(report.Pipelines, st)
		if n.Dead+n.Parked > 0 {
			report.Warnings = append(report.Warnings, observe.DeadLetterWarning(st.Direction, st.Name, n.Dead, n.Parked))
		}
	}
	return report, nil
}

// stateOf derives the state of a pipeline from the database.
func stateOf(pl *catalog.Pipeline, c store.Cursor, members []lease.Instance) (state, reason string) {
	failing := c.Status == store.StatusRetrying || c.Status == store.StatusFailed
	switch {
	case !pl.Enabled:
		return observe.StateDisabled, ""
	case c.Held && failing:
		return c.Status, c.Error
	case c.Held:
		return observe.StateRunning, ""
	case pl.Linked:
		if _, err := pl.Resolve(); err != nil {
			return observe.StateInvalid, pg.OneLine(err)
		}
	}

	switch {
	case len(members) == 0:
		return "stopped", "no relay of this group is running"
	case !lease.Served(members, pl.Backend):
		return observe.StateUnserved, fmt.Sprintf("no live instance has backend %q", pl.Backend)
	case failing:
		return c.Status, c.Error
	}
	return observe.StateWaiting, ""
}

func (p *program) printStatus(report *statusReport) error {
	w := newTable(p.stdout)
	w.row("PIPELINE", "DIRECTION", "BACKEND", "STATE", "OWNER", "LAST ID", "DELIVERED", "FILTERED", "DEAD", "PARKED", "UPDATED", "ERROR")
	for _, s := range report.Pipelines {
		var updated any = "-"
		if s.Updated != nil {
			updated = *s.Updated
		}
		w.row(s.Name, s.Direction, s.Backend, s.State, orDash(s.Owner), s.LastID,
			s.Delivered, s.Filtered, s.DeadLetters, s.Parked, updated, s.Error)
	}
	for _, s := range report.Pipelines {
		if len(s.Snapshot) > 0 {
			fmt.Fprintf(w, "\npipeline %s, %s\n", printable(s.Name, backfill.Describe(s.Snapshot))...)
		}
	}
	fmt.Fprintln(w)
	w.row("INSTANCE", "BINARY", "VERSION", "HOST", "BACKENDS", "UP SINCE")
	for _, i := range report.Instances {
		id := i.ID
		if i.Draining {
			id += " (draining)"
		}
		w.row(id, i.Binary, i.Version, i.Hostname, strings.Join(i.Backends, ","), i.Started)
	}
	for i, text := range report.Warnings {
		if i == 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "warning: %s\n", printable(text)...)
	}
	return w.Flush()
}
