package scan

import (
	_ "embed"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

//go:embed sql/fence_lag.sql
var fenceLagSQL string

// fencePosition is a position of the fence. Rows up to id last are settled, apart from
// those in holes. If a read is open, it took the ids from+1 to last, outside holes, and
// the ids in fill. Of these only the rows up to id at are settled.
type fencePosition struct {
	last  int64
	holes []hole   // ascending
	idle  []writer // see [writers.resting]

	open bool
	at   int64
	from int64
	fill []int64 // ids of older holes
}

// hole is a run of ids for which no row was seen.
type hole struct {
	lo, hi int64
	by     *writers // transactions that could fill it; nil = not listed yet
}

// FenceState is the stored form of a position of the fence.
type FenceState struct {
	Last int64 `json:"last"`
	// Holes alternates between the length of what was read and of what is missing,
	// starting at HoleFrom.
	HoleFrom int64   `json:"from,omitempty"`
	Holes    []int64 `json:"holes,omitempty"`
	// Idle has transactions that take no more ids: name, idle since, highest id.
	Idle [][3]string `json:"idle,omitempty"`
	Open *OpenRead   `json:"open,omitempty"`
}

// OpenRead is a read of which not every row is settled: those up to id At are. The read
// took ids From+1 to last, and of older holes the ids in Fill.
type OpenRead struct {
	At   int64   `json:"at"`
	From int64   `json:"from"`
	Fill []int64 `json:"fill,omitempty"`
}

func (p *fencePosition) store(s *State) {
	f := &FenceState{Last: p.last}
	s.FenceState = f
	if len(p.holes) > 0 {
		f.HoleFrom = p.holes[0].lo
		end := f.HoleFrom
		for _, h := range p.holes {
			f.Holes = append(f.Holes, h.lo-end, h.hi-h.lo+1)
			end = h.hi + 1
		}
		for _, w := range p.idle {
			f.Idle = append(f.Idle, [3]string{w.vxid, w.idle, strconv.FormatInt(w.upTo, 10)})
		}
	}
	if p.open {
		f.Open = &OpenRead{At: p.at, From: p.from, Fill: p.unfilled()}
	}
}

func (s *FenceState) position() (Position, error) {
	if s == nil {
		s = &FenceState{}
	}
	p := &fencePosition{last: s.Last, at: table.Beginning}
	end := s.HoleFrom
	for i := 0; i+1 < len(s.Holes); i += 2 {
		lo := end + s.Holes[i]
		end = lo + s.Holes[i+1]
		p.holes = append(p.holes, hole{lo: lo, hi: end - 1})
	}
	for _, w := range s.Idle {
		upTo, err := strconv.ParseInt(w[2], 10, 64)
		if err != nil {
			return nil, err
		}
		p.idle = append(p.idle, writer{vxid: w[0], idle: w[1], prepared: w[1] == "", upTo: upTo})
	}
	if s.Open != nil {
		p.open, p.at, p.from, p.fill = true, s.Open.At, s.Open.From, s.Open.Fill
	}
	return p, nil
}

// unfilled returns the ids of fill that are not settled, ascending.
func (p *fencePosition) unfilled() []int64 {
	var ids []int64
	for _, id := range p.fill {
		if id > p.at {
			ids = append(ids, id)
		}
	}
	return ids
}

func (p *fencePosition) Strategy() Strategy { return Fence }

func (p *fencePosition) Scan(t *table.Table, l *rows.Layout, _ int64) Scanner {
	return newFence(t, l, *p)
}

func (p *fencePosition) Within(id int64) Position {
	next := *p
	next.open, next.at = true, id
	return &next
}

// Complete returns the id before the first hole, and of what an open read has yet
// to settle.
func (p *fencePosition) Complete() int64 {
	id := p.last
	if len(p.holes) > 0 {
		id = p.holes[0].lo - 1
	}
	if !p.open {
		return id
	}
	id = min(id, max(p.at, p.from))
	if left := p.unfilled(); len(left) > 0 {
		id = min(id, left[0]-1)
	}
	return id
}

func (p *fencePosition) Covered() int64 { return p.last }

func (p *fencePosition) Clean() (int64, bool) { return p.last, !p.open && len(p.holes) == 0 }

// Check has nothing to compare: ids do not show which transactions a server has had.
func (p *fencePosition) Check(Moment) error { return nil }

func (p *fencePosition) Pending(t *table.Table) (string, error) {
	id := t.ID()
	conds := []string{id + " > " + strconv.FormatInt(p.last, 10)}
	for _, h := range p.holes {
		conds = append(conds, id+" BETWEEN "+strconv.FormatInt(h.lo, 10)+" AND "+strconv.FormatInt(h.hi, 10))
	}
	if p.open {
		conds = append(conds, id+" > "+pg.Literal(strconv.FormatInt(max(p.at, p.from), 10))+"::bigint")
		for _, f := range p.unfilled() {
			conds = append(conds, id+" = "+strconv.FormatInt(f, 10))
		}
	}
	return "(" + strings.Join(conds, " OR ") + ")", nil
}

func (p *fencePosition) Lag(t *table.Table, maxRows int) (sql string, args []any) {
	los, his := p.gaps()
	return fill(fenceLagSQL, t), []any{append(los, p.last+1), append(his, maxID), maxRows}
}

// gaps returns the ends of the holes.
func (p *fencePosition) gaps() (los, his []int64) {
	for _, h := range p.holes {
		los, his = append(los, h.lo), append(his, h.hi)
	}
	return los, his
}
