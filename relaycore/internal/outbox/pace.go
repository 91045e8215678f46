package outbox

import (
	"context"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
)

// firstRows is the number of rows of a first read, before their size is known.
const firstRows = 64

// heldUpFor is the time without a call of Receive after which the reader looks for rows
// that were deleted meanwhile. The far end was away, or is slow.
const heldUpFor = time.Minute

// pace decides when to read, and how much. It outlives a reader.
type pace struct {
	rows      int       // of the next read
	claimRows int       // of the next read of a claim check
	lastRow   time.Time // when the last row was read
	returned  time.Time // when Receive last returned
	heldUp    bool      // and was not called again for long
}

// enter and leave record that Receive is called and returns.
func (p *pace) enter() {
	p.heldUp = p.heldUp || !p.returned.IsZero() && time.Since(p.returned) >= heldUpFor
}

func (p *pace) leave() { p.returned = time.Now() }

// wait pauses for a small part of the time since the last row. So a busy outbox is read
// every millisecond, and a quiet one rarely.
func (p *pace) wait(ctx context.Context, cfg *Config) error {
	_ = backoff.Wait(ctx, min(max(time.Since(p.lastRow)/8, time.Millisecond), cfg.PollInterval), cfg.Wake)
	return ctx.Err()
}

// sawRows adapts the next read to the size of the rows of the last one.
func (p *pace) sawRows(budget, bytes, rows int) {
	p.lastRow = time.Now()
	p.rows = min(fitting(budget, bytes, rows), 4*p.rows)
}

// fitting returns how many rows fill budget if they are as large as the last ones.
func fitting(budget, bytes, rows int) int {
	each := max(bytes/max(rows, 1), 1)
	return min(max(budget/each, 16), scan.MaxRows)
}
