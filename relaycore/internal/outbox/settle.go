package outbox

import (
	"slices"
	"strconv"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// slot is one message, or one row without messages, on its way. Messages bear
// a pointer to theirs as their Token.
type slot struct {
	id      int64 // of the row
	index   int32 // of the message in the row
	end     bool  // the row's last
	settled bool
	owner   *settler
}

// chunk is what was handed to Receive at once. A read of the table becomes one
// chunk, or several when it ends in a claim check.
type chunk struct {
	slots []slot
	next  int  // the first that is not settled
	last  bool // of its read
	mark  mark // position inside the read, but for at
	after mark // position behind the read
}

// maxDone bounds the runs of settled messages that a checkpoint names beyond its
// position.
const maxDone = 1000

// settler turns acknowledgements, which may come out of order, into checkpoints.
type settler struct {
	mode   string
	origin origin
	moved  bell // see relay.Mover

	mu     sync.Mutex
	chunks []*chunk // in order of delivery
	base   mark     // everything before chunks
	inside bool     // a read is settled in part:
	at     int64    // its rows up to this one
	part   [2]int64 // row, and how many of its messages are settled
	ahead  int      // settled messages behind the first that is not
	safe   int64    // no row appears at or below it any more
	safeAt []safety
	counts audit
	gone   overtaken
	buf    []byte
	done   [][3]int64 // of the checkpoint with which it began, not yet passed
}

// safety says that once every row up to a position is settled, all rows up to
// id are.
type safety struct {
	id    int64
	chunk *chunk // the last one before it
}

// add appends a chunk.
func (s *settler) add(c *chunk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range c.slots {
		c.slots[i].owner = s
		if c.slots[i].settled && c.slots[i].index >= 0 {
			s.ahead++
		}
	}
	s.chunks = append(s.chunks, c)
	s.pass()
}

// advance moves the position behind everything there is without a message.
func (s *settler) advance(m mark) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.chunks); n > 0 {
		s.chunks[n-1].after = m
		return
	}
	s.move(m)
}

// secure says that no row with an id up to this one can appear any more once all
// that was handed out so far is settled.
func (s *settler) secure(id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.chunks); n > 0 {
		if k := len(s.safeAt); k > 0 && s.safeAt[k-1].chunk == s.chunks[n-1] {
			s.safeAt[k-1].id = max(s.safeAt[k-1].id, id)
			return
		}
		s.safeAt = append(s.safeAt, safety{id, s.chunks[n-1]})
		return
	}
	s.raise(id)
}

// settledUpTo returns the id up to which all is settled.
func (s *settler) settledUpTo() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.safe
}

// secured returns the id up to which all is settled, or will be with what was handed
// out.
func (s *settler) secured() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.safe
	for _, a := range s.safeAt {
		id = max(id, a.id)
	}
	return id
}

// raise moves safe, and says so, since nobody may come to ask.
func (s *settler) raise(id int64) {
	if id <= s.safe {
		return
	}
	s.safe = id
	s.gone.settled(id)
	s.moved.ring()
}

// settle marks messages as settled and returns the checkpoint.
func (s *settler) settle(batch []relay.Message) relay.Checkpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		if sl, ok := batch[i].Token.(*slot); ok && sl.owner == s && !sl.settled {
			sl.settled = true
			s.ahead++
		}
	}
	s.pass()
	select {
	case <-s.moved: // the caller is about to know
	default:
	}
	return s.checkpoint()
}

// pass moves over what is settled.
func (s *settler) pass() {
	for len(s.chunks) > 0 {
		c := s.chunks[0]
		if !s.inside {
			s.inside, s.at = true, c.mark.at
		}
		for c.next < len(c.slots) && c.slots[c.next].settled {
			s.passSlot(c, &c.slots[c.next])
			c.next++
		}
		if c.next < len(c.slots) {
			return
		}
		if c.last {
			s.inside = false
			s.move(c.after)
		}
		s.chunks[0] = nil
		s.chunks = s.chunks[1:]
		for len(s.safeAt) > 0 && s.safeAt[0].chunk == c {
			s.raise(s.safeAt[0].id)
			s.safeAt = s.safeAt[1:]
		}
	}
	s.chunks = nil
}

func (s *settler) passSlot(c *chunk, sl *slot) {
	if sl.index >= 0 {
		s.ahead--
	}
	if sl.end {
		s.part = [2]int64{}
		s.at = sl.id
		s.counts.count(sl.id)
		s.gone.count(sl.id)
	} else {
		s.part = [2]int64{sl.id, int64(sl.index) + 1}
	}
	s.base = c.mark
	s.base.open, s.base.at = true, s.at
}

// move takes the position behind a read.
func (s *settler) move(m mark) {
	s.base = m
	s.part = [2]int64{}
	if s.mode == modeFence {
		s.raise(m.complete())
	}
}

func (s *settler) checkpoint() relay.Checkpoint {
	b := append(s.buf[:0], `{"v":1,"mode":"`...)
	b = append(b, s.mode...)
	b = append(b, `","of":`...)
	b = s.origin.appendJSON(b)
	b = s.base.appendJSON(b, s.mode)
	if s.part[1] > 0 {
		b = append(b, `,"part":[`...)
		b = strconv.AppendInt(b, s.part[0], 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, s.part[1], 10)
		b = append(b, ']')
	}
	b = s.appendDone(b)
	b = append(b, `,"safe":`...)
	b = strconv.AppendInt(b, s.safe, 10)
	b = s.counts.appendJSON(b)
	if s.gone.ids > 0 {
		b = append(b, `,"expired":`...)
		b = strconv.AppendInt(b, s.gone.ids, 10)
	}
	b = append(b, '}')
	s.buf = b
	return relay.Checkpoint{State: slices.Clone(b), LastID: max(s.safe, 0)}
}

// appendDone names what is settled beyond the position, so that a restart does
// not repeat it.
func (s *settler) appendDone(b []byte) []byte {
	if s.ahead == 0 && len(s.done) == 0 {
		return b
	}
	sep, runs, left := `,"done":[`, 0, s.ahead
	run := [3]int64{}
	flush := func() {
		if run[2] == 0 || runs == maxDone {
			return
		}
		b = append(b, sep...)
		b = append(b, '[')
		b = strconv.AppendInt(b, run[0], 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, run[1], 10)
		b = append(b, ',')
		b = strconv.AppendInt(b, run[2], 10)
		b = append(b, ']')
		sep = ","
		runs++
		run = [3]int64{}
	}
	for _, d := range s.done {
		run = d
		flush()
	}
	for _, c := range s.chunks {
		for i := c.next; i < len(c.slots) && left > 0; i++ {
			sl := &c.slots[i]
			if !sl.settled || sl.index < 0 {
				continue
			}
			left--
			if run[2] > 0 && run[0] == sl.id && run[2] == int64(sl.index) {
				run[2]++
				continue
			}
			flush()
			run = [3]int64{sl.id, int64(sl.index), int64(sl.index) + 1}
		}
	}
	flush()
	if sep == "," {
		b = append(b, ']')
	}
	return b
}
