package scan

import (
	"context"
	_ "embed"
	"fmt"
	"math"
	"strconv"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

//go:embed sql/window_lag.sql
var windowLagSQL string

// allSeen is a snapshot that sees every transaction.
const allSeen = "9223372036854775807:9223372036854775807:"

// windowPosition is a position of the windows. Rows that lo sees are settled. If a
// window is open, so are its rows up to id at: those that hi sees. If none is, at is an
// id after which the first window starts, or [table.Beginning].
type windowPosition struct {
	lo, hi snapshot
	open   bool
	at     int64
}

// WindowState is the stored form of a position of the windows.
type WindowState struct {
	Lo string `json:"lo,omitempty"`
	Hi string `json:"hi,omitempty"` // set while a window is open
	At *int64 `json:"at,omitempty"`
}

func (p *windowPosition) store(s *State) {
	w := &WindowState{Lo: p.lo.text}
	if p.open {
		w.Hi = p.hi.text
	}
	if p.at != table.Beginning {
		w.At = &p.at
	}
	s.WindowState = w
}

func (s *WindowState) position() (Position, error) {
	if s == nil {
		s = &WindowState{}
	}
	p := &windowPosition{at: table.Beginning, open: s.Hi != ""}
	if s.At != nil {
		p.at = *s.At
	}
	var err error
	if p.lo, err = parseSnapshot(s.Lo); err != nil {
		return nil, err
	}
	if p.open {
		if p.hi, err = parseSnapshot(s.Hi); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *windowPosition) Strategy() Strategy { return Window }

func (p *windowPosition) Scan(t *table.Table, l *rows.Layout, safe int64) Scanner {
	return newWindows(t, l, *p, safe)
}

func (p *windowPosition) Within(id int64) Position {
	return &windowPosition{lo: p.lo, hi: p.hi, open: true, at: id}
}

// Complete returns [table.Beginning]: snapshots do not order ids. See [horizon].
func (p *windowPosition) Complete() int64 { return table.Beginning }

func (p *windowPosition) Covered() int64 { return table.Beginning }

func (p *windowPosition) Clean() (int64, bool) { return 0, false }

func (p *windowPosition) Check(now Moment) error { return p.compare(&now.snapshot) }

// Moment is a moment of a server: it has had the transactions that its snapshot sees.
type Moment struct{ snapshot snapshot }

// Now returns the present moment.
func Now(ctx context.Context, q pg.Querier) (Moment, error) {
	s, err := current(ctx, q)
	return Moment{s}, err
}

// current takes a snapshot.
func current(ctx context.Context, q pg.Querier) (snapshot, error) {
	var text string
	if err := q.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&text); err != nil {
		return snapshot{}, fmt.Errorf("take snapshot: %w", err)
	}
	return parseSnapshot(text)
}

// compare returns a [*BackwardsError] if the position has seen what now has not.
func (p *windowPosition) compare(now *snapshot) error {
	known := &p.lo
	if p.open && p.hi.xmax >= p.lo.xmax {
		known = &p.hi
	}
	if now.xmax < known.xmax {
		return &BackwardsError{From: known.text, To: now.text}
	}
	return nil
}

func (p *windowPosition) Pending(t *table.Table) (string, error) {
	if t.Columns.Xid == "" {
		return "", fmt.Errorf("the checkpoint is one of snapshot windows, and %s has no column of type xid8", t.Qualified())
	}
	unseen := func(s *snapshot) string {
		return "NOT pg_visible_in_snapshot(" + t.Xid() + ", " + pg.Literal(s.text) + ")"
	}
	cond := unseen(&p.lo)
	switch {
	case p.at == table.Beginning:
		return cond, nil
	case p.open:
		return cond + " AND (" + t.ID() + " > " + strconv.FormatInt(p.at, 10) + " OR " + unseen(&p.hi) + ")", nil
	}
	return cond + " AND " + t.ID() + " > " + strconv.FormatInt(p.at, 10), nil
}

func (p *windowPosition) Lag(t *table.Table, maxRows int) (sql string, args []any) {
	los, his := p.lo.arms(math.MaxUint64)
	hi := allSeen
	if p.open {
		hi = p.hi.text
	}
	return fill(windowLagSQL, t), []any{los, his, p.at, p.open || p.at != table.Beginning, hi, maxRows}
}
