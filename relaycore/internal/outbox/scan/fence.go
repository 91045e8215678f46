package scan

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

//go:embed sql/fence_read.sql
var fenceReadSQL string

// maxHoles bounds the holes that are kept open. Beyond it, newer rows wait.
const maxHoles = 50000

type fenceStrategy struct{}

func (fenceStrategy) Name() string { return "fence" }

func (fenceStrategy) Behind(id int64) Position { return &fencePosition{last: id, at: table.Beginning} }

func (fenceStrategy) Now(ctx context.Context, q pg.Querier, t *table.Table) (p Position, highest int64, err error) {
	highest, err = table.HighestID(ctx, q, t)
	return Fence.Behind(highest), highest, err
}

// Check requires ids that come from the table's own sequence, in steps of one, as the
// row is inserted.
func (fenceStrategy) Check(_ context.Context, _ pg.Querier, t *table.Table, _ table.Settings, _ *slog.Logger) error {
	name := t.Qualified()
	switch {
	case !t.IDUnique:
		return relay.Fatal(fmt.Errorf("ids of %s are not unique: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s)", name, name, t.ID()))
	case t.Sequence.OID == 0:
		return relay.Fatal(fmt.Errorf("column %s of %s does not take its values from a sequence, so gaps cannot be explained: "+
			"ALTER TABLE %s ALTER COLUMN %s ADD GENERATED ALWAYS AS IDENTITY, or read it by snapshot windows: %s adds the column for them",
			t.Columns.ID, name, name, t.ID(), addXid(t)))
	}
	return checkSequence(t, "in which rows were written", false)
}

// fence reads in the order of ids. A gap may be of a transaction that still runs, so it
// becomes a hole, and the hole is closed like this:
//
//  1. A listing of locks, later than the read that found the hole, returns the
//     transactions that may have an id of it. The hole remembers them.
//  2. Later listings strike out those that have ended.
//  3. Once all have ended, the next read covers the hole. Its snapshot shows every row
//     that will ever be in it, so the read takes those and closes the hole.
type fence struct {
	pos    fencePosition
	locks  locks
	lastAt time.Time // when the sequence was read

	formats []int16
	readSQL string
	lastSQL string // "" = the sequence's last value is not exact
}

func newFence(t *table.Table, l *rows.Layout, pos fencePosition) *fence {
	f := &fence{pos: pos, locks: newLocks(t), formats: l.Formats(0), readSQL: fill(fenceReadSQL, t, "{columns}", l.Columns())}
	f.locks.known = &writers{list: pos.idle}
	if t.Sequence.Exact() {
		f.lastSQL = t.Sequence.LastSQL()
	}
	return f
}

func (f *fence) Position() Position {
	p := f.pos
	return &p
}

// Read implements [Scanner].
func (f *fence) Read(ctx context.Context, db DB, want int, take Take) (Read, error) {
	before := f.pos
	read := f.next
	if before.open {
		read = f.replay
	}
	r, err := read(ctx, db, want, take)
	if err != nil {
		return Read{}, err
	}
	r.Secure = table.Beginning
	r.After = f.Position()
	r.Moved = before.open || before.last != f.pos.last || len(before.holes) != len(f.pos.holes)
	return r, nil
}

// next reads the holes, and then the rows after the last one.
func (f *fence) next(ctx context.Context, db DB, want int, take Take) (Read, error) {
	if len(f.pos.holes) > 0 && f.due() {
		if err := f.list(ctx, db); err != nil {
			return Read{}, err
		}
	}
	from := f.pos.last
	los, his := f.pos.gaps()
	if len(los) < maxHoles {
		los, his = append(los, from+1), append(his, maxID)
	}
	var ids, fill []int64
	n := intake{ordered: true, take: func(v [][]byte, id int64) (bool, error) {
		ids = append(ids, id)
		if id <= from {
			fill = append(fill, id)
		}
		return take(v, id)
	}}
	if err := f.fetch(ctx, db, los, his, want, &n); err != nil {
		return Read{}, err
	}

	cut := n.declined || n.rows == want
	covered := int64(maxID)
	if cut {
		covered = n.last
	}
	f.pos.holes = fold(f.pos.holes, ids, from, covered)
	f.pos.at = table.Beginning
	if n.rows > 0 {
		f.pos.last = max(from, n.last)
	} else if err := f.tail(ctx, db); err != nil {
		return Read{}, err
	}
	inside := f.pos
	inside.open, inside.from, inside.fill = true, from, fill
	return Read{Inside: &inside, From: inside.at, More: cut || n.rows >= manyRows}, nil
}

// replay repeats a read that a restart has interrupted: of the ids that it had taken
// those that are not settled, and no others.
func (f *fence) replay(ctx context.Context, db DB, want int, take Take) (Read, error) {
	los := f.pos.unfilled()
	his := slices.Clone(los)
	lo := max(f.pos.at, f.pos.from) + 1
	for _, h := range f.pos.holes {
		if h.hi < lo {
			continue
		}
		if h.lo > lo {
			los, his = append(los, lo), append(his, h.lo-1)
		}
		lo = h.hi + 1
	}
	if lo <= f.pos.last {
		los, his = append(los, lo), append(his, f.pos.last)
	}

	inside := f.pos
	n := intake{take: take, ordered: true, last: inside.at}
	if len(los) > 0 {
		if err := f.fetch(ctx, db, los, his, want, &n); err != nil {
			return Read{}, err
		}
	}
	if n.declined || n.rows == want {
		f.pos.at = n.last
	} else {
		f.pos.open, f.pos.at, f.pos.from, f.pos.fill = false, table.Beginning, 0, nil
	}
	return Read{Inside: &inside, From: inside.at, More: true}, nil
}

// fetch reads the rows in ranges of ids, in the order of the ranges.
func (f *fence) fetch(ctx context.Context, db DB, los, his []int64, want int, n *intake) error {
	return db.Query(ctx, f.readSQL, f.formats, []string{array(los), array(his), strconv.Itoa(want)}, n.row)
}

// array renders an array literal.
func array(n []int64) string {
	b := []byte{'{'}
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, n[i], 10)
	}
	return string(append(b, '}'))
}

// tail makes a hole of the ids after the last row that the sequence has handed out.
// Their transactions may have been rolled back; then no row above them shows the gap.
func (f *fence) tail(ctx context.Context, db DB) error {
	if f.lastSQL == "" || len(f.pos.holes) >= maxHoles || time.Since(f.lastAt) < listBusy {
		return nil
	}
	f.lastAt = time.Now()
	last, err := queryID(ctx, db, f.lastSQL)
	if err == nil && last > f.pos.last {
		f.pos.holes = append(slices.Clone(f.pos.holes), hole{lo: f.pos.last + 1, hi: last})
		f.pos.last = last
	}
	return err
}

// due limits listings to a fifth of the time.
func (f *fence) due() bool { return time.Since(f.locks.at) >= 4*f.locks.cost }

// list finds out which transactions can still fill the holes.
func (f *fence) list(ctx context.Context, db DB) error {
	now, newlyPrepared, err := f.locks.list(ctx, db, time.Now())
	if err != nil {
		return err
	}
	f.pos.holes = slices.Clone(f.pos.holes) // positions share the old ones
	f.pos.idle = now.resting()
	var last, lastNext *writers
	fresh := now
	for i := range f.pos.holes {
		h := &f.pos.holes[i]
		switch h.by {
		case nil: // holes ascend, so ever fewer transactions can fill them
			fresh = fresh.beyond(h.lo)
			h.by = fresh
		case last:
			h.by = lastNext
		default:
			last = h.by
			lastNext = h.by.remaining(now, newlyPrepared)
			h.by = lastNext
		}
	}
	return nil
}

// fold returns the holes after a read that covered the ids up to covered. It cuts the
// ids that were read out of the holes. It closes the parts that the read covered and that
// no transaction can fill. It adds the gaps between ids after last.
func fold(holes []hole, ids []int64, last, covered int64) []hole {
	var next []hole
	keep := func(lo, hi int64, by *writers) {
		if lo <= hi {
			next = append(next, hole{lo, hi, by})
		}
	}
	i := 0
	for _, h := range holes {
		final := h.by != nil && len(h.by.list) == 0
		lo := h.lo
		for ; i < len(ids) && ids[i] <= h.hi; i++ {
			if !final {
				keep(lo, ids[i]-1, h.by)
			}
			lo = ids[i] + 1
		}
		switch {
		case !final:
			keep(lo, h.hi, h.by)
		case covered < h.hi:
			keep(max(lo, covered+1), h.hi, h.by)
		}
	}
	for ; i < len(ids); i++ {
		keep(last+1, ids[i]-1, nil)
		last = ids[i]
	}
	return next
}
