package progress

import (
	"context"
	"fmt"
	"slices"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// overtaken counts ids that were gone before they could be delivered. A missing id may
// also be of a transaction that still runs. So a gap is watched first, and the ids of it
// that have not come are gone once no row can appear in it.
type overtaken struct {
	ids  int64 // over the checkpoint's life
	gaps []Gap // that are watched
}

// Gap is a run of ids that the table did not have, though they were handed out and not
// yet read. The zero Gap has none.
type Gap struct {
	From, To int64
	Step     int64 // from one id to the next
	rows     int64 // of it that have come and are settled
}

func (o *overtaken) watch(g Gap) {
	if g.Step > 0 {
		o.gaps = append(o.gaps, g)
	}
}

// count records a settled row.
func (o *overtaken) count(id int64) {
	for i := range o.gaps {
		if g := &o.gaps[i]; g.From <= id && id <= g.To {
			g.rows++
		}
	}
}

// close ends the gaps in which no row can appear in future, those up to id. It calls gone
// for each that was not filled.
func (o *overtaken) close(id int64, gone func(g Gap, ids int64)) {
	o.gaps = slices.DeleteFunc(o.gaps, func(g Gap) bool {
		if g.To > id {
			return false
		}
		if n := (g.To-g.From+1)/g.Step - g.rows; n > 0 {
			o.ids += n
			gone(g, n)
		}
		return true
	})
}

// GapBehind returns the ids after known that are missing before the table's first
// row. If the table is empty, they are missing up to the last id that was handed out.
// There is no gap if sessions cache ids, because they drop some. There is none either if
// the relay sweeps the table, because it deletes no row before every reader has it.
func GapBehind(ctx context.Context, q pg.Querier, t *table.Table, known int64, first *int64) (Gap, error) {
	s := &t.Sequence
	if known == table.Beginning || s.OID == 0 || s.Cache > 1 {
		return Gap{}, nil
	}
	g := Gap{From: known + 1, To: known, Step: s.Increment}
	switch {
	case first != nil:
		g.To = *first - 1
	case s.Readable:
		if err := q.QueryRow(ctx, s.LastSQL()).Scan(&g.To); err != nil {
			return Gap{}, fmt.Errorf("read sequence %s: %w", s.Name, err)
		}
	}
	if g.To-known < g.Step {
		return Gap{}, nil
	}
	swept, err := table.Swept(ctx, q, t)
	if swept || err != nil {
		return Gap{}, err
	}
	return g, nil
}

// Watch counts the ids of g that are gone once no row can appear in it.
func (t *Tracker) Watch(g Gap) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.overtaken.watch(g)
}

// Overtaken returns the number of ids that were gone before they could be delivered,
// deleted or rolled back, over the checkpoint's life.
func (t *Tracker) Overtaken() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.overtaken.ids
}
