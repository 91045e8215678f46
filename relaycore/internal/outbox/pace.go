package outbox

import (
	"context"
	"sync/atomic"
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
	found     int       // rows of the last read
	woken     bool      // a notification started the last read
	trust     int       // in notifications: see saw
	lastRow   time.Time // when the last row was read
	returned  time.Time // when Receive last returned
	heldUp    bool      // and was not called again for long

	crowd *atomic.Int64 // readers that follow rows
	one   bool          // this one is counted there
}

// followers counts the readers of the process that follow rows.
var followers atomic.Int64

// followFor is how long a reader that had a row reads more often than at its interval.
const followFor = time.Second

// enter and leave record that Receive is called and returns.
func (p *pace) enter() {
	p.heldUp = p.heldUp || !p.returned.IsZero() && time.Since(p.returned) >= heldUpFor
}

func (p *pace) leave() {
	p.returned = time.Now()
	p.follow(false)
}

// follow counts this reader, or no longer.
func (p *pace) follow(one bool) {
	switch {
	case one == p.one:
	case one:
		p.crowd.Add(1)
	default:
		p.crowd.Add(-1)
	}
	p.one = one
}

// Pauses behind a read of a busy outbox. A read costs PostgreSQL and the relay as much
// as dozens of rows do, so rows that come fast are read together.
const (
	minPause    = time.Millisecond
	rapidPause  = 2 * time.Millisecond // from rapidRows in a read on
	rapidRows   = 8
	burstRows   = 4 // from so many rows on, a notification does not shorten minPause
	trustPauses = 4 // the most minPauses, with full trust in notifications
	// crowdPause is multiplied by the square of the number of readers that follow rows. Ten
	// read as often as one does. A hundred read ten times a second each. More of them leave
	// it to the supervisor, which finds out with one query for all.
	crowdPause = 10 * time.Microsecond
)

// wait pauses for a small part of the time since the last row. So a busy outbox is read
// every millisecond or two, and a quiet one rarely. A notification ends the pause.
//
// A row that a thousand pipelines read made each of them read thirty times in the next
// second, and find nothing. These reads kept those waiting that would find a row. So the
// pause grows with the number of readers that follow rows.
func (p *pace) wait(ctx context.Context, cfg *Config) error {
	p.follow(time.Since(p.lastRow) < followFor)
	busy := minPause * time.Duration(1+p.trust*(trustPauses-1)/maxTrust)
	if p.found >= rapidRows {
		busy = max(busy, rapidPause)
	}
	if p.one {
		n := time.Duration(p.crowd.Load())
		busy = max(busy, crowdPause*n*n)
	}
	pause := min(max(time.Since(p.lastRow)/8, busy), cfg.PollInterval)
	if p.found >= burstRows {
		if err := backoff.Sleep(ctx, min(minPause, pause)); err != nil {
			return ctx.Err()
		}
		pause -= minPause
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-cfg.Wake:
		p.woken = true
	case <-timer.C:
		select { // it may have come during the sleep
		case <-cfg.Wake:
			p.woken = true
		default:
			p.woken = false
		}
	}
	p.follow(p.one || p.woken) // a notification mostly announces a row
	return nil
}

// maxTrust is the trust of writers that notify each row.
const maxTrust = 16

// saw records the rows of a read. Where notifications announce the rows, reads between
// them find nothing, and become rarer. A row without a notification counts as four with
// one. So a table is read as often as before if some of its writers do not notify.
func (p *pace) saw(rows int) {
	p.found = rows
	switch {
	case rows == 0:
		return
	case p.woken:
		p.trust = min(p.trust+1, maxTrust)
	default:
		p.trust = max(p.trust-4, 0)
	}
	p.lastRow = time.Now()
}

// resize adapts the next read to the size of the rows of the last one.
func (p *pace) resize(budget, bytes, rows int) {
	p.rows = min(fitting(budget, bytes, rows), 4*p.rows)
}

// fitting returns how many rows fill budget if they are as large as the last ones.
func fitting(budget, bytes, rows int) int {
	each := max(bytes/max(rows, 1), 1)
	return min(max(budget/each, 16), scan.MaxRows)
}
