package relaycmd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/peterbourgon/ff/v3/ffcli"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/daemon"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

const checkTimeout = 5 * time.Minute // of all pipelines; each has commandTimeout

func (p *program) checkCommand() *ffcli.Command {
	return p.withArgs(0, 1, &ffcli.Command{
		Name: "check", ShortUsage: "check [NAME]", FlagSet: p.flagSet(),
		ShortHelp: "check pipelines: configuration, connections, permissions, guarantees",
	}, p.check)
}

// checkResult is the result of checking one pipeline.
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
	Largest   int64    `json:"largest_row_bytes,omitempty"` // of a forward pipeline
	Notes     []string `json:"notes,omitempty"`
}

func (p *program) check(ctx context.Context, args []string) error {
	var results []checkResult
	err := p.withDatabase(ctx, checkTimeout, func(ctx context.Context, db *database) (err error) {
		results, err = p.checkPipelines(ctx, db, args)
		return err
	})
	if err != nil {
		return err
	}

	if p.json() {
		err = p.printJSON(results)
	} else {
		p.printCheck(results)
	}
	if err == nil && slices.ContainsFunc(results, func(r checkResult) bool { return r.Result == "failed" }) {
		err = errReported
	}
	return err
}

// checkPipelines checks the pipelines called names[0], or all.
func (p *program) checkPipelines(ctx context.Context, db *database, names []string) ([]checkResult, error) {
	pipelines := db.pipelines
	if len(names) == 1 {
		if pipelines = pipelines.Find(names[0]); len(pipelines) == 0 {
			return nil, fmt.Errorf("pipeline %q not found", names[0])
		}
	}
	cursors, err := db.store.List(ctx)
	if err != nil {
		return nil, err
	}
	notes, err := extensionOwns(ctx, db.runner.Pool)
	if err != nil {
		return nil, err
	}
	notes = append(unverified(db.runner.Pool, db.runner.Inboxes), notes...)

	results := make([]checkResult, 0, len(pipelines))
	for _, pl := range pipelines {
		r := p.checkPipeline(ctx, db.runner, pl, cursors[pl.Key].Held)
		r.Notes = append(r.Notes, notes...)
		results = append(results, r)
	}
	return results, nil
}

// extensionOwns notes that pipelines have no owners, if so.
func extensionOwns(ctx context.Context, pool *pgxpool.Pool) (notes []string, err error) {
	const query = `SELECT extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
		WHERE d.deptype = 'e' AND d.classid = 'pg_proc'::regclass AND d.objid = to_regprocedure('pgtrickle.enable_relay(text)')`
	var name string
	err = pool.QueryRow(ctx, query).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return []string{"pipelines have no owners here: the grants of extension " + name + " decide which roles may change them"}, err
}

// unverified warns about the servers of pools that need not prove their names.
func unverified(pools ...*pgxpool.Pool) (notes []string) {
	for _, pool := range pools {
		if weak := relaynet.UnverifiedPostgres(&pool.Config().ConnConfig.Config); weak != "" {
			notes = append(notes, "WARNING: "+weak+"; set sslmode=verify-full in the URL")
		}
	}
	return slices.Compact(notes)
}

func (p *program) checkPipeline(ctx context.Context, runner *pipeline.Runner, pl catalog.Pipeline, busy bool) checkResult {
	r := checkResult{Name: pl.Name, Direction: string(pl.Direction), Backend: pl.Backend, Result: "ok"}
	if !pl.Linked {
		r.Result = "skipped"
		r.Notes = []string{fmt.Sprintf("this binary does not have backend %q; it has %s", pl.Backend, strings.Join(p.registry.Names(), ", "))}
		return r
	}
	if !pl.Enabled {
		r.Notes = append(r.Notes, "is disabled")
	}

	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	g, notes, err := runner.Probe(ctx, pl, busy, p.logger())
	r.Notes = append(r.Notes, notes...)
	if err != nil {
		r.Result, r.Problem = "failed", pg.Explain(err).Error()
		return r
	}
	r.Delivery, r.Dedup, r.Order, r.Weakest = g.Delivery, g.Dedup, g.Order, g.Weakest
	if backend, err := p.registry.Lookup(pl.Backend); err == nil && pl.Direction == relay.Forward {
		r.Largest = daemon.LargestRow(backend.Copies)
	}
	return r
}

// largestRow describes the limit on rows, "" if there is none.
func (r *checkResult) largestRow() string {
	if r.Largest == 0 {
		return ""
	}
	return fmt.Sprintf("%d bytes with the memory limit of this process", r.Largest)
}

func (p *program) printCheck(results []checkResult) {
	titles := map[string]string{"ok": "OK  ", "failed": "FAIL", "skipped": "SKIP"}

	indented := func(text string) string { return strings.ReplaceAll(text, "\n", "\n               ") }
	for _, r := range results {
		fmt.Fprintf(p.stdout, "%s %s pipeline %q (%s)\n", titles[r.Result], r.Direction, r.Name, r.Backend)
		for _, line := range []struct{ what, text string }{
			{"problem", indented(r.Problem)},
			{"delivery", r.Delivery},
			{"duplicates", r.Dedup},
			{"order", r.Order},
			{"weakest link", r.Weakest},
			{"largest row", r.largestRow()},
		} {
			if line.text != "" {
				fmt.Fprintf(p.stdout, "     %-13s %s\n", line.what, line.text)
			}
		}
		for _, n := range r.Notes {
			fmt.Fprintf(p.stdout, "     %-13s %s\n", "note", indented(n))
		}
	}
	if len(results) == 0 {
		fmt.Fprintln(p.stdout, "there are no pipelines")
	}
}
