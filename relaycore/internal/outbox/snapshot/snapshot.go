// Package snapshot turns successive snapshots of a stream table into changes, on the
// server. docs/adr/0015-snapshot-differences.md has the reasons.
//
// Each pipeline has a state: the rows of the last snapshot that was compared. For the
// next outbox row, [State.Compare] stores in one transaction what has changed, and the new
// state. The changes are read in pages of [State.PageSQL], delivered, and removed by
// [State.Remove]. So an outbox row is compared once, whatever happens to the relay, and
// its changes keep their numbers. The relay holds one page in memory.
//
// A row's identity is its __pgt_row_id, with a number where that repeats. Rows without
// that column are identified by their content.
package snapshot

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/open.sql
	openSQL string
	//go:embed sql/create.sql
	createSQL string
	//go:embed sql/reset.sql
	resetSQL string
	//go:embed sql/mark.sql
	markSQL string
	//go:embed sql/changes.sql
	changesSQL string
	//go:embed sql/emitted.sql
	emittedSQL string
	//go:embed sql/remove.sql
	removeSQL string
	//go:embed sql/sweep.sql
	sweepSQL string
	//go:embed sql/drop.sql
	dropSQL string
)

// ErrGone reports that the pipeline has another owner, or its state was dropped.
var ErrGone = errors.New("the pipeline has another owner, or its snapshot state was dropped")

// Owner is the pipeline that a state belongs to. A comparison under an epoch that has
// passed fails.
type Owner struct {
	Group, Pipeline string
	Epoch           int64
}

// Options change what is compared and kept.
type Options struct {
	// Columns are the columns that the state keeps of a row; nil means all.
	Columns []string
	// Internal makes a change of the extension's own columns a change of the row.
	Internal bool
	// Emit sends snapshots as they stand from now on. Changes that are stored go first.
	Emit   bool
	Logger *slog.Logger
}

// Start is where the reader of the outbox goes on.
type Start struct {
	Origin table.Origin
	Behind int64 // every row up to it is settled
	// Known is whether the pipeline has delivered rows of some outbox before.
	Known bool
	// Reused is whether ids after the checkpoint may have belonged to other rows.
	Reused bool
}

// State is a pipeline's stored state in one opening of an outbox. One goroutine uses it,
// apart from Remove, which has one of its own.
type State struct {
	id    int64
	owner Owner
	opts  Options
	table *table.Table

	emitted  int64 // rows up to it are sent as they stand
	compared int64 // rows up to it are compared
	removed  int64 // changes up to it are removed; Remove's own
}

// Open returns the pipeline's state for t, and makes one if there is none. A pipeline
// that has delivered snapshots as they stand goes on to do so up to the newest one, which
// becomes its state.
func Open(ctx context.Context, q pg.Querier, owner Owner, t *table.Table, start Start, opts Options) (*State, error) {
	s := &State{owner: owner, opts: opts, table: t}
	if err := s.open(ctx, q, start); err != nil {
		return nil, fmt.Errorf("open the snapshot state of %s: %w", t.Qualified(), err)
	}
	return s, nil
}

func (s *State) open(ctx context.Context, q pg.Querier, start Start) error {
	was, err := s.load(ctx, q)
	if errors.Is(err, pgx.ErrNoRows) {
		return s.create(ctx, q, start)
	}
	if err != nil {
		return err
	}
	full := was.full
	moved := was.table != int64(start.Origin.Table) || was.file != int64(start.Origin.Sequence)
	back := !moved && start.Behind < s.removed || start.Reused
	other := !slices.Equal(was.columns, s.opts.Columns)
	switch {
	case moved || back:
		// Settled rows are not read again, so every row after Behind is compared.
		s.emitted, s.compared, s.removed = math.MinInt64, start.Behind, start.Behind
		err = q.QueryRow(ctx, resetSQL, s.id, start.Origin.Table, start.Origin.Sequence, start.Behind, s.emitted,
			other || back, s.opts.Columns).Scan(&full)
	case other, s.opts.Emit:
		full = true
		_, err = q.Exec(ctx, markSQL, s.id, s.opts.Columns)
	}
	if err == nil && full && !s.opts.Emit {
		s.opts.Logger.Warn("next snapshot is sent whole", "table", s.table.Qualified(), "new_outbox", moved,
			"diff_state_changed", other, "checkpoint_moved_back", back)
	}
	return err
}

// stored is what the state was made for.
type stored struct {
	table, file int64 // oid of the outbox, and file of its sequence
	full        bool  // the next snapshot is sent whole
	columns     []string
}

// load reads the stored state.
func (s *State) load(ctx context.Context, q pg.Querier) (was stored, err error) {
	err = q.QueryRow(ctx, openSQL, s.owner.Group, s.owner.Pipeline).
		Scan(&s.id, &was.table, &was.file, &s.emitted, &s.compared, &s.removed, &was.full, &was.columns)
	return was, err
}

func (s *State) create(ctx context.Context, q pg.Querier, start Start) error {
	s.emitted, s.compared, s.removed = math.MinInt64, start.Behind, start.Behind
	var newest *int64
	err := q.QueryRow(ctx, `SELECT max(`+s.table.ID()+`)::bigint FROM `+s.table.Qualified()).Scan(&newest)
	if err != nil {
		return err
	}
	seed := start.Known && newest != nil
	if seed {
		s.emitted, s.compared = *newest, *newest-1
	}
	s.opts.Logger.Info("pipeline compares snapshots now", "table", s.table.Qualified(), "first_snapshot_whole", !seed)
	return q.QueryRow(ctx, createSQL, s.owner.Group, s.owner.Pipeline, start.Origin.Table, start.Origin.Sequence,
		s.emitted, s.compared, !seed, s.opts.Columns).Scan(&s.id)
}

// Compared returns the id up to which rows are compared.
func (s *State) Compared() int64 { return s.compared }

// Whole reports whether the snapshot of outbox row id is sent as it stands.
func (s *State) Whole(id int64) bool { return id <= s.emitted || s.opts.Emit && id > s.compared }

// PageSQL returns the statement that reads the next changes of an outbox row, or its
// whole snapshot. The columns are number, operation, row, row before, row id, occurrence,
// and whether the change is part of a snapshot. Its arguments are the state's ID, the
// outbox row, the number behind which to go on, and the size of a page.
func (s *State) PageSQL(whole bool) string {
	if whole {
		return s.fill(emittedSQL, "")
	}
	return changesSQL
}

// ID returns the number of the state, the first argument of PageSQL.
func (s *State) ID() int64 { return s.id }

// Removes reports whether Remove has something to do.
func (s *State) Removes(upTo int64) bool { return upTo > s.removed }

// Remove removes the changes of rows up to the id upTo, which are delivered.
func (s *State) Remove(ctx context.Context, q pg.Querier, upTo int64) error {
	if upTo <= s.removed {
		return nil
	}
	if _, err := q.Exec(ctx, removeSQL, s.id, upTo); err != nil {
		return fmt.Errorf("remove delivered changes of %s up to %d: %w", s.table.Qualified(), upTo, err)
	}
	s.removed = upTo
	return nil
}

// Drop removes a pipeline's state, if it has one and no change of it is undelivered. It
// reports whether there is none now.
func Drop(ctx context.Context, q pg.Querier, owner Owner, behind int64) (gone bool, err error) {
	s := &State{owner: owner}
	_, err = s.load(ctx, q)
	if errors.Is(err, pgx.ErrNoRows) || pg.IsUnavailable(err) {
		return true, nil
	}
	if err == nil && behind < s.compared {
		return false, nil
	}
	if err == nil {
		_, err = q.Exec(ctx, dropSQL, s.id)
	}
	if err != nil {
		return false, fmt.Errorf("drop the snapshot state of pipeline %q: %w", owner.Pipeline, err)
	}
	return true, nil
}

// Sweep drops the states of pipelines that do not exist.
func Sweep(ctx context.Context, q pg.Querier) error {
	if _, err := q.Exec(ctx, sweepSQL); err != nil && !pg.IsUnavailable(err) {
		return fmt.Errorf("drop snapshot states of deleted pipelines: %w", err)
	}
	return nil
}

// fill replaces the names in a template; rows is the query of a snapshot's rows.
func (s *State) fill(template, rows string) string {
	t := s.table
	return strings.NewReplacer("{rows}", rows, "{table}", t.Qualified(), "{id}", t.ID(), "{delta}", t.Delta.Name, "{data}", t.Delta.Data).
		Replace(template)
}
