package rows

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Large is a row whose payload is too large to be read along with others.
type Large struct {
	ID     int64
	values [][]byte // of the layout; the payload is missing
}

func newLarge(v [][]byte, id int64) *Large {
	values := make([][]byte, len(v))
	for i := range v {
		values[i] = bytes.Clone(v[i])
	}
	return &Large{ID: id, values: values}
}

// AddLarge adds the messages of a large row. It keeps payload without a copy.
func (b *Builder) AddLarge(row *Large, payload []byte) {
	v := slices.Clone(row.values)
	v[b.layout.payload], v[b.layout.size] = payload, nil
	b.chunk.whole = payload
	b.row(v, row.ID)
	b.list, b.inner, b.vals, b.lists, b.updates = nil, nil, nil, nil, nil // parts of payload, which they would keep
}

// Event is what is known of a large row's only event without its large members.
type Event struct {
	Members   []byte        // an object of the small members; nil = it is not known
	Op        string        // "" for a row that is an event
	Full      bool          // it is part of a snapshot
	RefreshID string        // in the payload
	Stream    *relay.Stream // nil = it cannot be read as a stream
}

// AddUnread adds one message for a large row whose payload is not read: its event as a
// stream, or without one the error why.
func (b *Builder) AddUnread(row *Large, known Event, why error) {
	v, l := row.values, b.layout
	e := event{id: row.ID, idText: v[l.id]}
	if l.created >= 0 {
		e.created = parseTime(v[l.created]) // part of the id
	}
	if l.eventID >= 0 {
		e.given = v[l.eventID]
	}
	text := func(s []byte) (from, to int) {
		from = len(b.chunk.text)
		b.chunk.text = append(b.chunk.text, s...)
		return from, len(b.chunk.text)
	}
	if l.key >= 0 {
		e.key, e.keyEnd = text(v[l.key])
	}
	e.refresh, e.refreshEnd = text([]byte(known.RefreshID))
	if l.refresh >= 0 && v[l.refresh] != nil {
		e.refresh, e.refreshEnd = text(v[l.refresh])
	}
	op := known.Op
	if b.source.plain {
		op = relay.OpInsert
		if l.op >= 0 && v[l.op] != nil {
			op = opOf(v[l.op])
		}
	}
	if op == "" && why == nil {
		known.Stream, why = nil, fmt.Errorf("row %d of %s: operation %q is none of insert, update, delete", row.ID, b.source.qualified, v[l.op])
	}

	first := len(b.chunk.slots)
	if known.Stream != nil {
		why = nil
	} else {
		why = relay.Permanent(why)
	}
	b.message(&e, op, known.Members, nil, known.Full && op != relay.OpDelete, why)
	if n := len(b.chunk.msgs); n > 0 {
		m := &b.chunk.msgs[n-1]
		m.Row, m.Body, m.Payload.Stream = known.Members, nil, known.Stream
		if l.headers >= 0 && v[l.headers] != nil && known.Stream != nil {
			b.headers(b.chunk.msgs[n-1:], v[l.headers], &e)
		}
	}
	b.end(row.ID, first)
}
