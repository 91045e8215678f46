package relaycmd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// cursor is what the database knows of a pipeline.
type cursor struct {
	Epoch        int64
	Owner        string
	LastID       int64
	Delivered    int64
	Skipped      int64
	DeadLettered int64
	Status       string
	Error        string
	Updated      *time.Time
	Held         bool // some session holds the pipeline's lock
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
	DeadLetters int64      `json:"dead_letters"`
	Parked      int64      `json:"parked"`
	Updated     *time.Time `json:"updated_at,omitempty"`
}

type statusReport struct {
	Group     string                   `json:"group"`
	Instances []observe.InstanceStatus `json:"instances"`
	Pipelines []pipelineStatus         `json:"pipelines"`
}

const heldSQL = `EXISTS (
	SELECT FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
		AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		AND l.classid::bigint = hashtext($1)::bigint & 4294967295
		AND l.objid::bigint = hashtext(CASE direction WHEN 'reverse' THEN 'reverse:' ELSE '' END || pipeline)::bigint & 4294967295)`

func cursors(ctx context.Context, pool *pgxpool.Pool, group string) (map[catalog.Key]cursor, error) {
	rows, err := pool.Query(ctx, `
		SELECT direction, pipeline, epoch, coalesce(owner, ''), last_id, delivered, skipped, dead_lettered, status, coalesce(error, ''), updated_at, `+heldSQL+`
		FROM pgtrickle.relay_cursors WHERE relay_group_id = $1`, group)
	if err != nil {
		return nil, fmt.Errorf("read the cursors: %w", err)
	}
	found := make(map[catalog.Key]cursor)
	var key catalog.Key
	var c cursor
	_, err = pgx.ForEachRow(rows, []any{
		&key.Direction, &key.Name, &c.Epoch, &c.Owner, &c.LastID, &c.Delivered, &c.Skipped, &c.DeadLettered, &c.Status, &c.Error, &c.Updated, &c.Held,
	}, func() error {
		found[key] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the cursors: %w", err)
	}
	return found, nil
}

func runStatus(ctx context.Context, p *program, _ []string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	pool, snapshot, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	members, err := lease.Live(ctx, pool, p.opts.group)
	if err != nil {
		return fmt.Errorf("list instances: %w", err)
	}
	known, err := cursors(ctx, pool, p.opts.group)
	if err != nil {
		return err
	}
	letters, err := supervisor.CountLetters(ctx, pool, p.opts.group)
	if err != nil {
		return fmt.Errorf("count dead letters: %w", err)
	}
	report := statusReport{Group: p.opts.group, Instances: []observe.InstanceStatus{}, Pipelines: []pipelineStatus{}}
	for _, m := range members {
		report.Instances = append(report.Instances, observe.InstanceStatus{
			ID: m.ID, Binary: m.Binary, Version: m.Version, Hostname: m.Hostname, PID: m.PID, Backends: m.Backends, Draining: m.Draining, Started: m.Started,
		})
	}
	for i := range snapshot {
		pl := &snapshot[i]
		c, n := known[pl.Key], letters[pl.Key]
		st := pipelineStatus{
			Name: pl.Name, Direction: string(pl.Direction), Backend: pl.Backend, Enabled: pl.Enabled, Epoch: c.Epoch, LastID: c.LastID,
			Delivered: c.Delivered, Skipped: c.Skipped, DeadLetters: n.Dead, Parked: n.Parked, Updated: c.Updated,
		}
		st.State, st.Error = stateOf(pl, c, members)
		if c.Held {
			st.Owner = c.Owner
		}
		report.Pipelines = append(report.Pipelines, st)
	}
	if p.opts.json() {
		return p.printJSON(report)
	}
	return p.printStatus(&report)
}

// stateOf says what a pipeline is doing, judged from outside.
func stateOf(pl *catalog.Pipeline, c cursor, members []lease.Instance) (state, reason string) {
	served := lease.Served(members, pl.Backend)
	switch {
	case !pl.Enabled:
		return observe.StateDisabled, ""
	case c.Held && (c.Status == "retrying" || c.Status == "failed"):
		return c.Status, c.Error
	case c.Held:
		return observe.StateRunning, ""
	case pl.Linked && pl.Err != nil:
		return observe.StateInvalid, strings.ReplaceAll(pl.Err.Error(), "\n", "; ")
	case len(members) == 0:
		return "stopped", "no relay of this group is running"
	case !served:
		return observe.StateUnserved, fmt.Sprintf("no live instance has backend %q", pl.Backend)
	case c.Status == "failed" || c.Status == "retrying":
		return c.Status, c.Error
	}
	return observe.StateWaiting, ""
}

func (p *program) printStatus(report *statusReport) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "PIPELINE\tDIRECTION\tBACKEND\tSTATE\tOWNER\tLAST ID\tDELIVERED\tDEAD\tPARKED\tUPDATED\tERROR")
	for _, s := range report.Pipelines {
		updated := "-"
		if s.Updated != nil {
			updated = s.Updated.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", s.Name, s.Direction, s.Backend, s.State, orDash(s.Owner), s.LastID, s.Delivered,
			s.DeadLetters, s.Parked, updated, s.Error)
	}
	fmt.Fprintf(w, "\nINSTANCE\tBINARY\tVERSION\tHOST\tBACKENDS\tUP SINCE\n")
	for _, i := range report.Instances {
		id := i.ID
		if i.Draining {
			id += " (draining)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", id, i.Binary, i.Version, i.Hostname, strings.Join(i.Backends, ","), i.Started.UTC().Format(time.RFC3339))
	}
	return w.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// checkResult is what check finds out about one pipeline.
type checkResult struct {
	Name      string   `json:"name"`
	Direction string   `json:"direction"`
	Backend   string   `json:"backend"`
	Result    string   `json:"result"` // ok, failed, skipped
	Problem   string   `json:"problem,omitempty"`
	Delivery  string   `json:"delivery,omitempty"`
	Dedup     string   `json:"dedup,omitempty"`
	Order     string   `json:"order,omitempty"`
	Weakest   string   `json:"weakest_link,omitempty"`
	Notes     []string `json:"notes,omitempty"`
}

func runCheck(ctx context.Context, p *program, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	pool, snapshot, err := p.load(ctx)
	if err != nil {
		return err
	}
	defer pool.Close()
	if len(args) == 1 {
		if snapshot = snapshot.Find(args[0]); len(snapshot) == 0 {
			return fmt.Errorf("pipeline %q not found", args[0])
		}
	}
	known, err := cursors(ctx, pool, p.opts.group)
	if err != nil {
		return err
	}
	b := p.builder(pool)
	results := make([]checkResult, 0, len(snapshot))
	for _, pl := range snapshot {
		results = append(results, p.check(ctx, b, pl, known[pl.Key].Held))
	}
	failed := slices.ContainsFunc(results, func(r checkResult) bool { return r.Result == "failed" })
	if p.opts.json() {
		err = p.printJSON(results)
	} else {
		p.printCheck(results)
	}
	if err == nil && failed {
		err = errSilent
	}
	return err
}

func (p *program) builder(pool *pgxpool.Pool) *supervisor.Builder {
	return &supervisor.Builder{Pool: pool, Readers: pool, Group: p.opts.group, Owner: p.name, Version: buildVersion()}
}

func (p *program) check(ctx context.Context, b *supervisor.Builder, pl catalog.Pipeline, busy bool) checkResult {
	r := checkResult{Name: pl.Name, Direction: string(pl.Direction), Backend: pl.Backend, Result: "ok"}
	if !pl.Linked {
		r.Result = "skipped"
		r.Notes = []string{fmt.Sprintf("this binary does not have backend %q; it has %s", pl.Backend, strings.Join(p.registry.Names(), ", "))}
		return r
	}
	if !pl.Enabled {
		r.Notes = append(r.Notes, "is disabled")
	}
	err := pl.Err
	var g relay.Guarantee
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, commandTimeout)
		defer cancel()
		var notes []string
		g, notes, err = b.Probe(ctx, pl, busy, p.opts.logger(p.stderr))
		r.Notes = append(r.Notes, notes...)
	}
	if err != nil {
		r.Result, r.Problem = "failed", err.Error()
		return r
	}
	r.Delivery, r.Dedup, r.Order, r.Weakest = g.Delivery, g.Dedup, g.Order, g.Weakest
	return r
}

func (p *program) printCheck(results []checkResult) {
	for _, r := range results {
		fmt.Fprintf(p.stdout, "%s %s pipeline %q (%s)\n", map[string]string{"ok": "OK  ", "failed": "FAIL", "skipped": "SKIP"}[r.Result], r.Direction, r.Name, r.Backend)
		for _, line := range []struct{ what, text string }{
			{"problem", strings.ReplaceAll(r.Problem, "\n", "\n               ")},
			{"delivery", r.Delivery},
			{"duplicates", r.Dedup},
			{"order", r.Order},
			{"weakest link", r.Weakest},
		} {
			if line.text != "" {
				fmt.Fprintf(p.stdout, "     %-13s %s\n", line.what, line.text)
			}
		}
		for _, n := range r.Notes {
			fmt.Fprintf(p.stdout, "     %-13s %s\n", "note", n)
		}
	}
	if len(results) == 0 {
		fmt.Fprintln(p.stdout, "there are no pipelines")
	}
}
