package relay

import "iter"

// Acks turns acknowledgements that come in any order into one position that only
// moves forward: everything at or before it is acknowledged.
//
// A source adds the position of each message that it hands out, in order, and keeps
// the ticket in the message's Token. P is whatever the source stores or sends to its
// broker: an offset, a sequence number, a delivery tag.
//
// The zero Acks is ready. It needs the caller's lock when Receive and Ack share it.
type Acks[P any] struct {
	open  []ack[P]
	head  int    // open[:head] have passed
	first uint64 // the ticket of open[0], less 1
}

type ack[P any] struct {
	at   P
	done bool
}

// Add takes up a message at p and returns its ticket. The first ticket is 1.
func (a *Acks[P]) Add(p P) (ticket uint64) {
	a.open = append(a.open, ack[P]{at: p})
	return a.first + uint64(len(a.open))
}

// Done records that the message with ticket is acknowledged. When that moves the
// position, Done returns the new position and true. Tickets that it does not know,
// and those acknowledged before, change nothing.
func (a *Acks[P]) Done(ticket uint64) (p P, moved bool) {
	i := ticket - a.first - 1
	if ticket <= a.first || i >= uint64(len(a.open)) || a.open[i].done {
		return p, false
	}
	a.open[i].done = true
	for a.head < len(a.open) && a.open[a.head].done {
		p, moved = a.open[a.head].at, true
		a.head++
	}
	a.compact()
	return p, moved
}

// Open returns the number of messages that the position has not passed.
func (a *Acks[P]) Open() int { return len(a.open) - a.head }

// compact drops what has passed, once it is half of the memory in use.
func (a *Acks[P]) compact() {
	if a.head < len(a.open) && (a.head < 64 || a.head < len(a.open)/2) {
		return
	}
	a.first += uint64(a.head)
	n := copy(a.open, a.open[a.head:])
	clear(a.open[n:])
	a.open, a.head = a.open[:n], 0
}

// All yields what the position has not passed, acknowledged or not, in order.
func (a *Acks[P]) All() iter.Seq[P] {
	return func(yield func(P) bool) {
		for _, at := range a.open[a.head:] {
			if !yield(at.at) {
				return
			}
		}
	}
}
