package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/grove/pgtrickle-relay/relaycore/internal/capture"
	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Probe opens a pipeline's ends as a run would, asks whether they answer, and closes
// them. It needs no lease and moves no message. busy means that a process runs the
// pipeline. Then the source of a reverse pipeline is not opened, because a second
// consumer would take messages from the first.
func (r *Runner) Probe(
	ctx context.Context, pl catalog.Pipeline, busy bool, log *slog.Logger,
) (g relay.Guarantee, notes []string, err error) {
	resolved, err := pl.Resolve()
	if err != nil {
		return g, nil, err
	}
	conceal := pl.Concealer()
	defer func() {
		err = conceal.Error(err)
		for i := range notes {
			notes[i] = conceal.Text(notes[i])
		}
	}()
	e := &ends{Runner: r, pipeline: pl, resolved: resolved, log: conceal.Logger(log)}
	defer e.close()
	if pl.Direction == relay.Reverse && busy {
		err := e.openInbox(ctx)
		return resolved.Backend.SourceGuarantee, []string{"runs now, so its source was not opened a second time"}, pl.Explain(err)
	}
	state, err := r.store().Load(ctx, pl.Key)
	if err != nil {
		return e.guarantee(), nil, err
	}
	if err := e.open(ctx, state, outboxOptions{}); err != nil {
		return e.guarantee(), nil, pl.Explain(err)
	}
	for _, end := range []any{e.source, e.sink} {
		if pinger, ok := end.(relay.Pinger); ok {
			if err := pinger.Ping(ctx); err != nil {
				return e.guarantee(), nil, fmt.Errorf("ping: %w", err)
			}
		}
	}
	notes = e.notes()
	if noter, ok := e.sink.(relay.Noter); ok {
		notes = append(notes, noter.Notes(ctx)...)
	}
	problems, err := e.captureProblems(ctx)
	return e.guarantee(), append(notes, problems...), err
}

// captureProblems returns the reasons why changes of the outbox's table are not
// recorded as they should be.
func (e *ends) captureProblems(ctx context.Context) (notes []string, err error) {
	src, ok := e.source.(*outbox.Source)
	if !ok {
		return nil, nil
	}
	problems, err := capture.Problems(ctx, e.Pool, src.Table())
	for _, p := range problems {
		notes = append(notes, fmt.Sprintf("WARNING: %s; %s", p.Text, p.Cure))
	}
	return notes, err
}

// notes describe how the outbox is read and ordered.
func (e *ends) notes() []string {
	s := e.resolved.Settings
	src, ok := e.source.(*outbox.Source)
	if !ok {
		if s.IDScope == catalog.IDScopeGlobal && s.EventIDFrom == "" {
			return []string{"takes the ids of other producers for unique in the world: set id_scope to far_end where two of them can share one"}
		}
		return nil
	}
	method := map[string]string{"window": "snapshot windows", "fence": "the gap fence"}[src.Strategy()]
	hidden := slices.ContainsFunc(src.KeyColumns(), func(c string) bool { return !s.Columns.Sends(c) })
	order := "has no key: order is kept within the pipeline only, and a dead letter holds nothing back; set key_field or key_template"
	switch {
	case !s.KeyTemplate.IsZero():
		order = "orders by key_template " + s.KeyTemplate.String()
	case s.KeyField != "":
		order = "orders by field " + s.KeyField
	case hidden: // the encoder makes no key of a part of it
		order = "columns leave the primary key out, so o" + order[len("has no key: o"):]
	case len(src.KeyColumns()) > 0:
		order = fmt.Sprintf("orders by the primary key %v", src.KeyColumns())
	case s.KeyColumn != "":
		order = "orders by column " + s.KeyColumn
	case src.Follows() && s.Snapshot == "diff":
		order = "orders by __pgt_row_id, and sends the differences of snapshots"
	}
	notes := []string{fmt.Sprintf("reads %s by %s", src.Table(), method), order}
	if e.streams() {
		notes = append(notes, "sends rows of more than 8 MiB while it reads them, of any size")
	}
	if src.Unlogged() {
		notes = append(notes, "WARNING: the outbox is UNLOGGED, so a crash of PostgreSQL empties it: ALTER TABLE "+src.Table()+" SET LOGGED")
	}
	return notes
}
