// Package progress tracks which messages of an outbox are settled, and turns that into
// checkpoints.
//
// The reader adds chunks of slots in order of delivery; the engine settles messages in
// any order. A [Tracker] moves its position over the settled ones at the front. It
// records settled messages after the first unsettled one, so that a restart does not
// repeat them. It also accounts for rows: [audit] finds rows that were committed and
// never read, and [overtaken] counts ids that were gone before their delivery.
//
// Nothing here waits or reads a clock. SQL is run only by functions that take a
// database handle.
package progress

import (
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxDone bounds the runs of settled messages in a checkpoint.
const maxDone = 1000

// Notifier asks the engine to store a checkpoint even if it settled nothing.
type Notifier chan struct{}

// NewNotifier returns a notifier that holds one notification.
func NewNotifier() Notifier { return make(Notifier, 1) }

// Notify adds a notification, unless there is one.
func (n Notifier) Notify() {
	select {
	case n <- struct{}{}:
	default:
	}
}

func (n Notifier) clear() {
	select {
	case <-n:
	default:
	}
}

// Start is where a tracker starts.
type Start struct {
	Origin    table.Origin
	Position  scan.Position
	Safe      int64           // every row up to it is settled, and none appears
	Gap       Gap             // ids before the first row that are missing
	Uncounted int64           // rows up to it may have been left out
	Counted   bool            // ids come from a sequence, so rows can be counted
	Backfill  *backfill.State // that goes on or begins; nil = none
	Served    int64           // see [Checkpoint]
	Resumed   *Checkpoint     // made at Position; nil = nothing behind it is settled
}

// Tracker follows messages until they are settled. Its methods may be called by any
// goroutine.
type Tracker struct {
	owner    rows.Owner
	strategy scan.Strategy
	moved    Notifier
	gone     func(g Gap, ids int64)

	mu     sync.Mutex
	origin table.Origin
	chunks []*chunk // not settled, in order of delivery

	// The position. A read becomes one chunk, or several if it ends in a claim check.
	base  scan.Position // before it everything is settled
	begun bool          // the first chunk's read is not settled completely:
	at    int64         // rows of the read up to this id are
	open  scan.Position // and the position is within this one; nil = it is base
	part  [2]int64      // row, and number of its first messages that are settled

	backfill *backfill.State // nil = none
	served   int64           // see [Checkpoint]

	ahead     int        // settled messages after the first that is not
	done      [][3]int64 // settled messages that the first checkpoint had
	safe      int64      // no row appears up to it
	safeAt    []safety
	audit     audit
	overtaken overtaken
}

// chunk is a part of a read that was passed on at once.
type chunk struct {
	slots []rows.Slot
	next  int // the first that is not settled
	last  bool
	read  scan.Read

	existing bool            // rows of the captured table
	backfill *backfill.State // once they are settled; nil = it is complete
}

// safety records that no row appears up to an id once a chunk is settled.
type safety struct {
	id    int64
	chunk *chunk
}

// New returns a tracker. It calls gone, with its lock held, for ids that were gone
// before they could be delivered.
func New(start Start, moved Notifier, gone func(g Gap, ids int64)) *Tracker {
	t := &Tracker{
		strategy: start.Position.Strategy(), moved: moved, gone: gone,
		origin: start.Origin, base: start.Position, safe: start.Safe, backfill: start.Backfill, served: start.Served,
	}
	t.audit.from = max(start.Safe, start.Uncounted)
	if c := start.Resumed; c != nil {
		if c.Part != nil {
			t.part = *c.Part
		}
		t.done = c.Done
		t.audit = parseAudit(c.Audit)
		t.overtaken.ids = c.Expired
	}
	if c := start.Resumed; c == nil && start.Served > 0 || c != nil && start.Served > c.Served {
		moved.Notify() // no message need come that would store it
	}
	t.audit.on = start.Counted
	t.overtaken.watch(start.Gap)
	return t
}

// Strategy returns the strategy of the tracker's position.
func (t *Tracker) Strategy() scan.Strategy { return t.strategy }

// Add appends the slots of a chunk, which belong to read. Last ends the read. The
// tracker keeps the slots.
func (t *Tracker) Add(slots []rows.Slot, read scan.Read, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range slots {
		slots[i].Owner = &t.owner
		if slots[i].Settled && slots[i].Index >= 0 {
			t.ahead++
		}
	}
	t.chunks = append(t.chunks, &chunk{slots: slots, last: last, read: read})
	t.pass()
	if last {
		t.secure(read.Secure)
	}
}

// AddExisting appends a chunk of rows of the captured table, read with the window behind
// which the position now is. Once they are settled, the backfill is at state; nil means
// that it is complete.
func (t *Tracker) AddExisting(slots []rows.Slot, position scan.Position, state *backfill.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range slots {
		slots[i].Owner = &t.owner
	}
	t.chunks = append(t.chunks, &chunk{slots: slots, last: true, read: scan.Read{After: position}, existing: true, backfill: state})
	t.pass()
}

// Backfill returns how far the backfill is settled, nil if there is none. The state must
// not be changed.
func (t *Tracker) Backfill() *backfill.State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.backfill
}

// Served returns the id of the last requested snapshot that is settled, cancelled or refused.
func (t *Tracker) Served() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.served
}

// Reads reports whether run reads rows that are not settled.
func (t *Tracker) Reads(run string) bool {
	state := t.Backfill()
	return state != nil && state.Run == run
}

// Skip records a read that returned no row.
func (t *Tracker) Skip(read scan.Read) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch n := len(t.chunks); {
	case !read.Moved:
	case n > 0:
		t.chunks[n-1].read.After = read.After
	default:
		t.move(read.After)
	}
	t.secure(read.Secure)
}

// secure records that no row appears up to id once all chunks are settled.
func (t *Tracker) secure(id int64) {
	n, k := len(t.chunks), len(t.safeAt)
	switch {
	case id == table.Beginning:
	case n == 0:
		t.raise(id)
	case k > 0 && t.safeAt[k-1].chunk == t.chunks[n-1]:
		t.safeAt[k-1].id = max(t.safeAt[k-1].id, id)
	default:
		t.safeAt = append(t.safeAt, safety{id, t.chunks[n-1]})
	}
}

// raise moves safe, and notifies the engine, which may have nothing to settle.
func (t *Tracker) raise(id int64) {
	if id <= t.safe {
		return
	}
	t.safe = id
	t.overtaken.close(id, t.gone)
	t.moved.Notify()
}

// Settle records that messages are settled, and returns the checkpoint. A batch may be
// empty: rows without messages move the checkpoint, too.
func (t *Tracker) Settle(batch []relay.Message) relay.Checkpoint {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range batch {
		if s, ok := batch[i].Token.(*rows.Slot); ok && s.Owner == &t.owner && !s.Settled {
			s.Settled = true
			if s.Index >= 0 {
				t.ahead++
			}
		}
	}
	t.pass()
	t.moved.clear() // the caller gets the newest checkpoint
	return t.checkpoint()
}

// pass moves the position over the slots at the front that are settled.
func (t *Tracker) pass() {
	for len(t.chunks) > 0 {
		c := t.chunks[0]
		if !t.begun {
			t.begun, t.at = true, c.read.From
		}
		for c.next < len(c.slots) && c.slots[c.next].Settled {
			if !c.existing {
				t.passSlot(c, &c.slots[c.next])
			}
			c.next++
		}
		if c.next < len(c.slots) {
			return
		}
		if c.existing {
			if c.backfill == nil {
				t.served = max(t.served, t.backfill.Request)
			}
			t.backfill = c.backfill
			t.moved.Notify()
		}
		if c.last {
			t.begun = false
			t.move(c.read.After)
		}
		t.chunks[0] = nil
		t.chunks = t.chunks[1:]
		for len(t.safeAt) > 0 && t.safeAt[0].chunk == c {
			t.raise(t.safeAt[0].id)
			t.safeAt = t.safeAt[1:]
		}
	}
	t.chunks = nil
}

func (t *Tracker) passSlot(c *chunk, s *rows.Slot) {
	if s.Index >= 0 {
		t.ahead--
	}
	if s.End {
		t.part = [2]int64{}
		t.at = s.ID
		t.audit.count(s.ID)
		t.overtaken.count(s.ID)
	} else {
		t.part = [2]int64{s.ID, int64(s.Index) + 1}
	}
	t.open = c.read.Inside
}

// move moves the position to the end of a read.
func (t *Tracker) move(p scan.Position) {
	t.base, t.open, t.part = p, nil, [2]int64{}
	t.raise(p.Complete())
}

func (t *Tracker) checkpoint() relay.Checkpoint {
	position := t.base
	if t.open != nil {
		position = t.open.Within(t.at)
	}
	c := Checkpoint{
		V: version, Mode: t.strategy.Name(), Of: t.origin, State: scan.Store(position),
		Backfill: t.backfill, Served: t.served, Done: t.runs(), Safe: t.safe, Audit: t.audit.list(), Expired: t.overtaken.ids,
	}
	if t.part[1] > 0 {
		c.Part = &t.part
	}
	return c.encode()
}

// runs returns the messages after the position that are settled.
func (t *Tracker) runs() [][3]int64 {
	runs := t.done[:min(len(t.done), maxDone):min(len(t.done), maxDone)]
	first, left := len(runs), t.ahead
	for _, c := range t.chunks {
		for i := c.next; i < len(c.slots) && left > 0; i++ {
			s := &c.slots[i]
			if !s.Settled || s.Index < 0 {
				continue
			}
			left--
			n := len(runs)
			switch index := int64(s.Index); {
			case n > first && runs[n-1][0] == s.ID && runs[n-1][2] == index:
				runs[n-1][2]++
			case n == maxDone:
				return runs
			default:
				runs = append(runs, [3]int64{s.ID, index, index + 1})
			}
		}
	}
	return runs
}

// SettledUpTo returns the id up to which everything is settled and no row appears.
func (t *Tracker) SettledUpTo() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.safe
}

// SecuredUpTo returns the id that SettledUpTo returns once all chunks are settled.
func (t *Tracker) SecuredUpTo() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	id := t.safe
	for _, a := range t.safeAt {
		id = max(id, a.id)
	}
	return id
}

// Idle reports whether every row up to id is settled and no message is unsettled.
func (t *Tracker) Idle(id int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.chunks) == 0 && t.safe == id
}

// Unsettled reports whether a message may be unsettled. It may report so of a message
// that is settled, if one before it is not.
func (t *Tracker) Unsettled(row, index int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if row <= t.safe || row == t.part[0] && index < t.part[1] {
		return false
	}
	for _, d := range t.done {
		if d[0] == row && d[1] <= index && index < d[2] {
			return false
		}
	}
	return true
}

// SetFile records that the table has a new file.
func (t *Tracker) SetFile(file uint32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origin.File = file
}
