package scan

import (
	"context"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

// horizon finds the id up to which no row can appear in future. Windows do not need it
// to read; retention, the far end and the public offset do.
//
// A transaction holds a lock on the table or on the sequence before it takes an id, and
// keeps it until its commit is visible. So this is safe, step by step:
//
//  1. The sequence's last value is read, or the highest visible id where it cannot be
//     read: that is seen.
//  2. A later listing of locks returns the transactions that may hold an id up to seen.
//     They are the ones to wait for, and waitFor becomes seen.
//  3. Once all of them have ended, a snapshot taken after that shows every row up to
//     waitFor. closing is set to waitFor until such a window is read completely.
//
// A session that caches ids may use one in any later transaction. Then the listing
// returns sessions, too.
type horizon struct {
	locks   locks
	bounded bool      // ids come from a sequence, so that the above holds
	numbers bool      // windows come with the sequence's last value
	seen    int64     // highest id handed out or, without numbers, visible
	seenAt  time.Time // when seen had been read
	wait    *writers  // transactions to wait for; nil = none are
	waitFor int64
	closing int64     // complete with the next window; Beginning = none is
	rowsAt  time.Time // when the last rows came
}

// Intervals between listings of locks: while rows come, and while none do.
const (
	listBusy = 500 * time.Millisecond
	listIdle = 50 * time.Millisecond
)

// A big window takes long to read. It can report meanwhile how far it is if no id below
// some point was held by an open transaction as it was opened. So opening is repeated a
// few times until that is the case.
const (
	maxRetries = 4
	retryPause = 5 * time.Millisecond
)

func newHorizon(t *table.Table, safe int64) horizon {
	return horizon{
		locks: newLocks(t), bounded: t.Sequence.OID != 0, numbers: t.Sequence.Numbers(),
		seen: safe, seenAt: time.Now(), waitFor: safe, closing: table.Beginning,
	}
}

// due reports whether it is time to list locks. Retry leaves out the interval.
func (h *horizon) due(retry bool) bool {
	every := listBusy
	switch {
	case retry:
		every = 0
	case time.Since(h.rowsAt) > listIdle:
		every = listIdle
	}
	return h.bounded && (h.wait != nil || h.seen > h.waitFor) && time.Since(h.locks.at) >= every
}

// advance lists locks. It must come before a window is opened, because only that
// window's snapshot shows the rows of transactions that have ended by the listing. The
// first listing must come after seen was read, and each further one after the one before.
// A retry asks for the locks as they are now.
func (h *horizon) advance(ctx context.Context, db DB, retry bool) error {
	since := h.seenAt
	switch {
	case retry:
		since = time.Now()
	case h.wait != nil:
		since = h.locks.began.Add(1)
	}
	holders, newlyPrepared, err := h.locks.list(ctx, db, since)
	if err != nil {
		return err
	}
	if h.wait == nil {
		h.wait, h.waitFor = holders, h.seen
	} else {
		h.wait = h.wait.remaining(holders, newlyPrepared)
	}
	if len(h.wait.list) == 0 {
		h.wait, h.closing = nil, h.waitFor
	}
	return nil
}

// worthRetry reports whether the holders at a listing have likely ended in a moment.
func (h *horizon) worthRetry(tries int) bool {
	return h.bounded && h.closing == table.Beginning && tries < maxRetries
}

// handedOut records the sequence's last value.
func (h *horizon) handedOut(last int64) {
	if h.numbers {
		h.see(last)
	}
}

func (h *horizon) see(id int64) {
	if id > h.seen {
		h.seen, h.seenAt = id, time.Now()
	}
}

// saw records the highest id of a read. With numbers it is not needed, and an id above
// the sequence's last value was written by hand: it proves nothing.
func (h *horizon) saw(last int64, rows int) {
	if !h.numbers {
		h.see(last)
	}
	if rows > 0 {
		h.rowsAt = time.Now()
	}
}

// close ends a window. It returns the id up to which it had every row.
func (h *horizon) close() int64 {
	id := h.closing
	h.closing = table.Beginning
	return id
}
