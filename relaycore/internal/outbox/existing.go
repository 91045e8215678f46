package outbox

import (
	"context"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// existing reads the rows of the captured table between the windows of its outbox; see
// package backfill for the order and why. nil means that there are none to read.
type existing struct {
	table  *backfill.Table
	pace   backfill.Pace
	state  backfill.State // behind what was read
	window bool           // a window of the outbox comes before the next chunk
	held   *held          // read, and waiting for the end of its window
}

// held is a chunk that is returned once the window that ends with its snapshot is read.
type held struct {
	msgs  []relay.Message
	slots []rows.Slot
	next  *backfill.State // nil = it was the last
}

func newExisting(t *backfill.Table, from *backfill.State, rate int) *existing {
	if t == nil {
		return nil
	}
	return &existing{table: t, pace: backfill.NewPace(rate, from.Rows), state: *from}
}

// dueExisting reports whether the next read is one of the captured table.
func (r *reader) dueExisting() bool {
	e := r.existing
	if e == nil || e.held != nil || e.window || !r.atRest() {
		return false
	}
	now := time.Now()
	if settled := r.tracker.Backfill(); settled != nil {
		e.pace.Settled(now, settled.Rows)
	}
	return e.pace.Due(now)
}

// readExisting reads a chunk, and opens the window that ends with its snapshot. A large
// row is read alone, once the caller has found memory for it.
func (r *reader) readExisting(ctx context.Context, db scan.DB) error {
	e, at := r.existing, time.Now()
	limits := backfill.Limits{Rows: e.pace.Rows(), Bytes: r.cfg.ReadBytes, Large: max(r.wants, unasked)}
	var left []byte // key of a row that was left on the server
	c, again, err := e.table.Read(ctx, db, &e.state, limits, func(key, row []byte) {
		if row == nil {
			left = append(left, key...)
			return
		}
		r.builder.Existing(e.state.Run, at, key, row, nil)
	})
	if again {
		r.builder.Discard()
		return nil
	}
	if err != nil {
		return err
	}
	if c.Large > 0 {
		tooLarge := r.cfg.tooLarge(c.Large, "row %s of the table of %s", left, r.table)
		if tooLarge == nil {
			r.wants = c.Large
			return nil
		}
		r.builder.Existing(e.state.Run, at, left, nil, tooLarge)
	}
	r.wants = 0

	if err := r.scanner.(scan.Windowed).EndAt(c.Snapshot); err != nil {
		return err
	}
	bytes := r.builder.Bytes()
	e.held = &held{}
	e.held.msgs, e.held.slots = r.builder.Finish()
	if !c.End {
		e.state.After = c.After
		e.state.Rows += int64(c.Rows)
		next := e.state
		e.held.next = &next
	}
	e.pace.Read(at, c.Rows, r.cfg.ReadBytes*max(c.Rows, 1)/max(bytes, 1))
	r.pace.SawExisting(at)
	return nil
}

// passExisting makes the held chunk ready if its window is read to the end and returned.
// It must come before the next read, because that one may be of a later window.
func (r *reader) passExisting() {
	e := r.existing
	if e == nil || e.held == nil || !r.atRest() {
		return
	}
	r.tracker.AddExisting(e.held.slots, r.scanner.Position(), e.held.next)
	r.ready = e.held.msgs
	if e.held.next == nil {
		r.cfg.Logger.Info("snapshot of table is read", "table", r.table.Qualified(), "rows", e.state.Rows, "run", e.state.Run)
		r.existing = nil
		return
	}
	e.held, e.window = nil, true
}

// atRest reports whether the last window is read to its end.
func (r *reader) atRest() bool {
	return r.claim == nil && r.large == nil && r.scanner.(scan.Windowed).AtRest()
}
