package engine

import (
	"slices"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// memory is what a run uses again: buffers that messages were encoded into, and
// slices of messages.
type memory struct {
	buffers  sync.Pool            // of *[]byte
	joined   chan []relay.Message // empty slices of the engine
	recycler Recycler             // nil if the source wants nothing back
}

func newMemory(src relay.Source) *memory {
	m := &memory{joined: make(chan []relay.Message, 2)}
	m.buffers.New = func() any { return new([]byte) }
	m.recycler, _ = src.(Recycler)
	return m
}

// borrow returns an empty slice for n messages, a used one if there is one.
func (m *memory) borrow(n int) []relay.Message {
	var used []relay.Message
	select {
	case used = <-m.joined:
	default:
	}
	return slices.Grow(used, n)
}

// giveBack takes a slice back that borrow returned.
func (m *memory) giveBack(used []relay.Message) {
	clear(used) // so that it does not keep rows alive
	select {
	case m.joined <- used[:0]:
	default:
	}
}

// recycle gives a slice back to a source that wants it.
func (m *memory) recycle(spent []relay.Message) {
	if m.recycler != nil && len(spent) > 0 {
		m.recycler.Recycle(spent)
	}
}
