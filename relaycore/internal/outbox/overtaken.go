package outbox

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// overtaken counts the ids that were gone before they could be delivered. An id that
// is missing may also be of a transaction that still runs. So a gap is only watched
// at first, and what of it has not come is gone when nothing can come any more.
type overtaken struct {
	ids  int64 // over the checkpoint's life
	gaps []gap // that are watched
	say  func(g gap, ids int64)
}

// gap is a run of ids that were not in the table, though handed out and not yet read.
type gap struct {
	from, to int64
	step     int64 // from one id to the next; 0 = there is no gap
	rows     int64 // of it that have come and are settled
}

// watch begins to count the rows of a gap.
func (o *overtaken) watch(g gap) {
	if g.step > 0 {
		o.gaps = append(o.gaps, g)
	}
}

// count takes a row that is settled.
func (o *overtaken) count(id int64) {
	for i := range o.gaps {
		if g := &o.gaps[i]; g.from <= id && id <= g.to {
			g.rows++
		}
	}
}

// settled says that no row comes any more with an id up to this one.
func (o *overtaken) settled(id int64) {
	o.gaps = slices.DeleteFunc(o.gaps, func(g gap) bool {
		if g.to > id {
			return false
		}
		if gone := (g.to-g.from+1)/g.step - g.rows; gone > 0 {
			o.ids += gone
			o.say(g, gone)
		}
		return true
	})
}

// gapBehind returns the ids behind known that are missing before the table's first
// row or, where it is empty, up to the last that was handed out. It finds none where
// that says nothing: sessions drop ids that they have taken in bulk, and where the
// retention is ours no row goes before every reader has it.
func gapBehind(ctx context.Context, q querier, t *table, known int64, first *int64) (gap, error) {
	if known == beginning || t.idOwner.oid == 0 || t.idOwner.cache > 1 {
		return gap{}, nil
	}
	g := gap{from: known + 1, to: known, step: t.idOwner.increment}
	switch {
	case first != nil:
		g.to = *first - 1
	case t.idOwner.readable:
		if err := q.QueryRow(ctx, t.idOwner.lastSQL()).Scan(&g.to); err != nil {
			return gap{}, fmt.Errorf("read sequence %s: %w", t.idOwner.name, err)
		}
	}
	if g.to-known < g.step {
		return gap{}, nil
	}
	ours, err := swept(ctx, q, t)
	if ours || err != nil {
		return gap{}, err
	}
	return g, nil
}

// firstID returns the lowest id in the table, nil where it is empty.
func firstID(ctx context.Context, q querier, t *table) (*int64, error) {
	var first *int64
	if err := q.QueryRow(ctx, `SELECT min(`+quote(t.id)+`)::bigint FROM `+t.qualified()).Scan(&first); err != nil {
		return nil, fmt.Errorf("read first id of %s: %w", t.qualified(), err)
	}
	return first, nil
}

// SweptSQL selects the outboxes that package retention sweeps: those that we made,
// unless their rows are kept for ever.
const SweptSQL = `
SELECT c.outbox_table_name, c.retention_hours, r.oid
FROM pgtrickle.pgt_outbox_config c
JOIN pg_class r ON r.oid = to_regclass(format('pgtrickle.%I', c.outbox_table_name))
WHERE obj_description(r.oid, 'pg_class') LIKE 'pgtrickle-relay:%' AND c.retention_hours > 0`

// swept reports whether the table is one of them.
func swept(ctx context.Context, q querier, t *table) (bool, error) {
	var ours bool
	err := ignoreMissing(q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM (`+SweptSQL+`) s WHERE s.oid = $1::oid)`, t.oid).Scan(&ours))
	if err != nil {
		return false, fmt.Errorf("look for the retention of %s: %w", t.qualified(), err)
	}
	return ours, nil
}

// heldUpFor is how long Receive must not have been called before the next read looks
// whether rows were deleted meanwhile: a far end was away, or is slow.
const heldUpFor = time.Minute

// lookBack watches what is missing between what was read and the table's first row.
func (s *Source) lookBack(ctx context.Context, q querier) error {
	first, err := firstID(ctx, q, s.table)
	if err != nil {
		return err
	}
	st := s.settler.Load()
	known := max(s.highest, s.strategy.position().last, st.secured())
	g, err := gapBehind(ctx, q, s.table, known, first)
	if err != nil {
		return err
	}
	st.mu.Lock()
	st.gone.watch(g)
	st.mu.Unlock()
	s.highest, s.heldUp = max(s.highest, g.to), false
	return nil
}

func (s *Source) sayOvertaken(g gap, ids int64) {
	s.log.Error("ids behind the checkpoint are gone from the outbox: if they were not rolled back, retention deleted rows that had not been delivered",
		"table", s.shape.Load().qualified(), "from_id", g.from, "to_id", g.to, "ids", ids)
}

// Overtaken returns the number of ids that were gone before they could be
// delivered, deleted by retention or rolled back, over the checkpoint's life.
func (s *Source) Overtaken() int64 {
	st := s.settler.Load()
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.gone.ids
}
