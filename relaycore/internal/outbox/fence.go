package outbox

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// fence reads in the order of ids and keeps every gap open until nobody can fill
// it any more. See doc.go.
type fence struct {
	pos    mark
	locks  locks
	lastAt time.Time // when the sequence was looked at

	readSQL, lastSQL string // lastSQL is "" where the sequence does not tell
}

// hole is a run of ids that no row was seen with.
type hole struct {
	lo, hi int64
	by     *writers // that could fill it; nil = none has been looked for yet
}

// maxHoles bounds the holes that are kept open. Beyond it newer rows wait.
const maxHoles = 50000

func newFence(t *table, l *layout, pos mark) *fence {
	id := quote(t.id)
	locks := newLocks(t)
	locks.known = &writers{list: pos.idle}
	last := ""
	if t.idOwner.tells() {
		last = t.idOwner.lastSQL()
	}
	return &fence{
		pos:     pos,
		locks:   locks,
		lastSQL: last,
		// One index scan a range, in the order of the ranges.
		readSQL: `SELECT r.* FROM unnest($1::bigint[], $2::bigint[]) AS gap(lo, hi) CROSS JOIN LATERAL (SELECT ` + l.list("") + ` FROM ` + t.qualified() +
			` WHERE ` + id + ` >= gap.lo AND ` + id + ` <= gap.hi ORDER BY ` + id + ` LIMIT $3::int) r LIMIT $3::int`,
	}
}

func (f *fence) position() mark { return f.pos }

// complete returns the id up to which nothing can appear any more, and nothing is
// left of a read that is being repeated after a restart.
func (m *mark) complete() int64 {
	id := m.last
	if len(m.holes) > 0 {
		id = m.holes[0].lo - 1
	}
	if !m.open {
		return id
	}
	next := max(m.at, m.from) + 1
	for _, f := range m.fill {
		if f > m.at {
			next = min(next, f)
			break
		}
	}
	return min(id, next-1)
}

func (f *fence) read(ctx context.Context, db *session, want int, take taker) (readMarks, error) {
	if f.pos.open {
		return f.replay(ctx, db, want, take)
	}
	if len(f.pos.holes) > 0 && f.due() {
		if err := f.list(ctx, db); err != nil {
			return readMarks{}, err
		}
	}
	los, his := f.ranges()
	from := f.pos.last
	var ids, fill []int64
	cut := false
	err := f.fetch(ctx, db, los, his, want, func(v [][]byte, id int64) (bool, error) {
		ids = append(ids, id)
		if id <= from {
			fill = append(fill, id)
		}
		more, err := take(v, id)
		if !more {
			cut = true
		}
		return more, err
	})
	if err != nil {
		return readMarks{}, err
	}
	cut = cut || len(ids) == want
	covered := int64(math.MaxInt64)
	if cut {
		covered = ids[len(ids)-1]
	}
	f.pos.holes = fold(f.pos.holes, ids, from, covered)
	if n := len(ids); n > 0 {
		f.pos.last = max(from, ids[n-1])
	}
	f.pos.at = beginning
	if len(ids) == 0 {
		if err := f.tail(ctx, db); err != nil {
			return readMarks{}, err
		}
	}
	in := f.pos
	in.open, in.from, in.fill = true, from, fill
	return readMarks{in: in, after: f.pos, secure: beginning, more: cut || len(ids) >= manyRows}, nil
}

// tail makes a hole of the ids behind the last row that the sequence has handed
// out. They may have been rolled back, and then no row above them tells.
func (f *fence) tail(ctx context.Context, db *session) error {
	if f.lastSQL == "" || len(f.pos.holes) >= maxHoles || time.Since(f.lastAt) < boundEvery {
		return nil
	}
	f.lastAt = time.Now()
	var last int64
	err := db.query(ctx, f.lastSQL, nil, nil, func(v [][]byte) (bool, error) {
		var err error
		last, err = parseID(v[0])
		return true, err
	})
	if err == nil && last > f.pos.last {
		f.pos.holes = append(slices.Clone(f.pos.holes), hole{lo: f.pos.last + 1, hi: last})
		f.pos.last = last
	}
	return err
}

// due limits the listings to a small part of the time.
func (f *fence) due() bool { return time.Since(f.locks.at) >= 4*f.locks.cost }

// list asks who could still fill the holes.
func (f *fence) list(ctx context.Context, db *session) error {
	now, newlyPrepared, err := f.locks.list(ctx, db)
	if err != nil {
		return err
	}
	f.pos.holes = slices.Clone(f.pos.holes) // marks share the old ones
	f.pos.idle = now.resting()
	var last, lastNext *writers
	fresh := now
	for i := range f.pos.holes {
		h := &f.pos.holes[i]
		switch h.by {
		case nil: // holes ascend, so fewer and fewer come into question
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

// ranges lists what to read: the holes, then everything behind the last row.
func (f *fence) ranges() (los, his []int64) {
	for _, h := range f.pos.holes {
		los, his = append(los, h.lo), append(his, h.hi)
	}
	if len(f.pos.holes) < maxHoles {
		los, his = append(los, f.pos.last+1), append(his, math.MaxInt64)
	}
	return los, his
}

func (f *fence) fetch(ctx context.Context, db *session, los, his []int64, want int, each func(v [][]byte, id int64) (bool, error)) error {
	last, any := int64(0), false
	return db.query(ctx, f.readSQL, db.formats, []string{array(los), array(his), strconv.Itoa(want)}, func(v [][]byte) (bool, error) {
		id, err := parseID(v[0])
		if err != nil {
			return false, err
		}
		if any && id <= last {
			return false, fmt.Errorf("ids are not unique or not in order: %d after %d", id, last)
		}
		last, any = id, true
		return each(v, id)
	})
}

func array(n []int64) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.FormatInt(n[i], 10))
	}
	b.WriteByte('}')
	return b.String()
}

// fold cuts the ids that were read out of the holes, closes what of them the
// read covered and nobody can fill, and adds the gaps between newer ids.
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

// replay reads again what a read had taken before a restart, and no more.
func (f *fence) replay(ctx context.Context, db *session, want int, take taker) (readMarks, error) {
	var los, his []int64
	for _, id := range f.pos.fill {
		if id > f.pos.at {
			los, his = append(los, id), append(his, id)
		}
	}
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
	in := f.pos
	rows, cut, at := 0, false, f.pos.at
	if len(los) > 0 {
		err := f.fetch(ctx, db, los, his, want, func(v [][]byte, id int64) (bool, error) {
			rows++
			at = id
			more, err := take(v, id)
			if !more {
				cut = true
			}
			return more, err
		})
		if err != nil {
			return readMarks{}, err
		}
	}
	if cut || rows == want {
		f.pos.at = at
	} else {
		f.pos.open, f.pos.at, f.pos.from, f.pos.fill = false, beginning, 0, nil
	}
	return readMarks{in: in, after: f.pos, secure: beginning, more: true}, nil
}

var _ strategy = (*fence)(nil)
