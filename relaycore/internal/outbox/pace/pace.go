// Package pace decides when an outbox is read, and how many rows a read asks for.
//
// A read costs PostgreSQL and the relay as much as dozens of rows do, and a row waits for
// the next read. So a busy outbox is read every millisecond or two, and a quiet one
// rarely. The pauses also depend on notifications, and on the number of readers of the
// outbox that have just had a row.
//
// The package measures time with package time only, so that tests can run in a bubble of
// testing/synctest.
package pace

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
)

// FirstRows is the number of rows of a first read, before their size is known.
const FirstRows = 64

// HeldUpFor is the time without a call of Receive after which the reader looks for rows
// that were deleted meanwhile. The far end was away, or is slow.
const HeldUpFor = time.Minute

// Pace is the pace of one source. It outlives a reader. Only the goroutine of Receive uses
// it.
type Pace struct {
	Rows      int  // of the next read
	ClaimRows int  // of the next read of a claim check
	HeldUp    bool // Receive was not called for HeldUpFor; the reader resets it

	found    int       // rows of the last read
	woken    bool      // a notification started the last read
	trust    int       // in notifications: see Saw
	lastRow  time.Time // when the last row was read
	returned time.Time // when Receive last returned

	crowd *Crowd
	one   bool // this reader is counted there
}

// Crowd counts the readers of an outbox in this process that follow rows. The zero value is
// ready to use.
type Crowd struct{ readers atomic.Int64 }

// Crowds are those of a process. The zero value has none.
type Crowds struct {
	mu       sync.Mutex
	byOutbox map[string]*Crowd
}

// For returns the crowd of an outbox, the same one for the same name.
func (c *Crowds) For(outbox string) *Crowd {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byOutbox == nil {
		c.byOutbox = make(map[string]*Crowd)
	}
	if c.byOutbox[outbox] == nil {
		c.byOutbox[outbox] = new(Crowd)
	}
	return c.byOutbox[outbox]
}

// New returns the pace of a source that has read nothing, and whose reader counts itself
// in crowd.
func New(crowd *Crowd) *Pace {
	return &Pace{Rows: FirstRows, ClaimRows: FirstRows, crowd: crowd}
}

// followFor is how long a reader that had a row reads more often than at its interval.
const followFor = time.Second

// Enter records that Receive is called.
func (p *Pace) Enter() {
	p.HeldUp = p.HeldUp || !p.returned.IsZero() && time.Since(p.returned) >= HeldUpFor
}

// Leave records that Receive returns. Each call of Enter needs one.
func (p *Pace) Leave() {
	p.returned = time.Now()
	p.follow(false)
}

// follow counts this reader, or no longer.
func (p *Pace) follow(one bool) {
	switch {
	case one == p.one:
	case one:
		p.crowd.readers.Add(1)
	default:
		p.crowd.readers.Add(-1)
	}
	p.one = one
}

// Pauses behind a read of a busy outbox. Rows that come fast are read together.
const (
	minPause    = time.Millisecond
	rapidPause  = 2 * time.Millisecond // from rapidRows in a read on
	rapidRows   = 8
	burstRows   = 4 // from so many rows on, a notification does not shorten minPause
	trustPauses = 4 // times minPause at most, with full trust in notifications
	// crowdPause is multiplied by the square of the number of readers that follow rows. Ten
	// read as often as one does. A hundred read ten times a second each. More of them leave
	// it to the supervisor, which finds out with one query for all.
	crowdPause = 10 * time.Microsecond
)

// Wait pauses before the next read for a small part of the time since the last row, at
// most for interval. A value of wake, a notification, ends the pause; wake may be nil. Wait
// returns the error of ctx if that ends first.
//
// A row that a thousand pipelines read made each of them read thirty times in the next
// second, and find nothing. These reads kept those waiting that would find a row. So the
// pause grows with the number of readers that follow rows.
func (p *Pace) Wait(ctx context.Context, interval time.Duration, wake <-chan struct{}) error {
	p.follow(p.Quiet() < followFor)
	busy := minPause * time.Duration(1+p.trust*(trustPauses-1)/maxTrust)
	if p.found >= rapidRows {
		busy = max(busy, rapidPause)
	}
	if p.one {
		n := time.Duration(p.crowd.readers.Load())
		busy = max(busy, crowdPause*n*n)
	}
	pause := min(max(p.Quiet()/8, busy), interval)
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
	case <-wake:
		p.woken = true
	case <-timer.C:
		select { // it may have come during the sleep
		case <-wake:
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

// Saw records the number of rows of a read. Where notifications announce the rows, reads between
// them find nothing, and become rarer. A row without a notification counts as four with
// one. So a table is read as often as before if some of its writers do not notify.
func (p *Pace) Saw(rows int) {
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

// SawExisting records that rows of the captured table itself were read, at a time. The
// outbox is then read as often as behind rows of its own.
func (p *Pace) SawExisting(at time.Time) { p.lastRow = at }

// Quiet returns the time since the last row was read.
func (p *Pace) Quiet() time.Duration { return time.Since(p.lastRow) }

// Resize adapts Rows to the last read, which found rows that take bytes. The next read
// fills budget, also in bytes, but asks for at most four times as many rows.
func (p *Pace) Resize(budget, bytes, rows int) {
	p.Rows = min(Fitting(budget, bytes, rows), 4*p.Rows)
}

// Fitting returns how many rows fill budget if they are as large as the last ones, which
// take bytes.
func Fitting(budget, bytes, rows int) int {
	each := max(bytes/max(rows, 1), 1)
	return min(max(budget/each, 16), scan.MaxRows)
}
