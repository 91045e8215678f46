package outbox

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/pace"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// openState returns the state by which the snapshots of t are compared, nil if they are
// sent as they stand. A pipeline that does not compare any longer keeps its state until
// the changes in it are delivered.
func openState(ctx context.Context, q pg.Querier, cfg *Config, t *table.Table, start snapshot.Start) (*snapshot.State, error) {
	if cfg.Epoch == 0 || !t.Registered() || t.Plain {
		return nil, nil
	}
	owner := snapshot.Owner{Group: cfg.Group, Pipeline: cfg.Pipeline, Epoch: cfg.Epoch}
	opts := snapshot.Options{Internal: cfg.KeepInternal, Logger: cfg.Logger, Emit: cfg.Settings.Snapshot == "emit"}
	if opts.Emit {
		if gone, err := snapshot.Drop(ctx, q, owner, start.Behind); gone || err != nil {
			return nil, err
		}
	}
	if cfg.Settings.DiffState == "keys" {
		opts.Columns = slices.Concat(cfg.KeyFields, t.Keys, []string{"__pgt_row_id"})
		slices.Sort(opts.Columns)
		opts.Columns = slices.Compact(opts.Columns)
	}
	return snapshot.Open(ctx, q, owner, t, start, opts)
}

// readChanges reads the next changes of a snapshot, and compares it first. A read that
// fails is repeated from where it started.
func (r *reader) readChanges(ctx context.Context, db snapshot.Beginner, pages scan.DB, c *rows.Claim) (last bool, err error) {
	whole := r.state.Whole(c.ID)
	if !whole {
		if err := r.state.Compare(ctx, db, c.ID, !c.Inline); err != nil {
			return false, err
		}
		r.shared.compared.Store(max(r.shared.compared.Load(), c.ID))
	}
	if !c.Inline {
		r.shared.claimed.Store(max(r.shared.claimed.Load(), c.ID))
	}
	deltas := r.builder.Deltas(c, r.table.Qualified())
	want, n, cut := r.pace.ClaimRows, 0, false
	args := []string{strconv.FormatInt(r.state.ID(), 10), strconv.FormatInt(c.ID, 10), strconv.FormatInt(c.Next, 10), strconv.Itoa(want)}
	err = pages.Query(ctx, r.state.PageSQL(whole), nil, args, func(v [][]byte) (bool, error) {
		num, err := rows.ParseID(v[0])
		if err != nil {
			return false, err
		}
		n++
		deltas.Change(num, rows.Change{Op: v[1], Row: v[2], Before: v[3], RowID: v[4], Occurrence: v[5], Full: v[6][0] == 't'})
		cut = r.builder.Bytes() >= r.cfg.ReadBytes
		return !cut, nil
	})
	if err != nil {
		return false, fmt.Errorf("read its changes: %w", err)
	}
	if n > 0 {
		r.pace.ClaimRows = pace.Fitting(r.cfg.ReadBytes, r.builder.Bytes(), n)
	}
	if n == want || cut {
		return false, nil
	}
	deltas.End()
	return true, nil
}

// removeChanges removes the stored changes that checkpoint c has settled. A checkpoint of
// an outbox that was created again shows nothing of the present one.
func (s *Source) removeChanges(ctx context.Context, c relay.Checkpoint) error {
	v := s.shared.view()
	upTo := min(c.LastID, s.shared.compared.Load())
	if v.state == nil || !v.state.Removes(upTo) {
		return nil
	}
	cp, err := progress.Parse(c)
	if err != nil || cp == nil || cp.Of.Table != v.table.OID || cp.Of.Sequence != v.table.Sequence.Filenode {
		return err
	}
	return v.state.Remove(ctx, s.pool, upTo)
}
