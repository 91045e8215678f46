package rows

import (
	"bytes"
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
}

// RefuseLarge adds one message with an error in place of the messages of a large row.
// members, an object or nil, and op are what is known of the payload.
func (b *Builder) RefuseLarge(row *Large, members []byte, op string, why error) {
	v := row.values
	e := event{id: row.ID, idText: v[b.layout.id]}
	if at := b.layout.created; at >= 0 {
		e.created = parseTime(v[at]) // part of the id
	}
	if at := b.layout.eventID; at >= 0 {
		e.given = v[at]
	}
	if at := b.layout.key; at >= 0 && v[at] != nil {
		e.key = len(b.chunk.text)
		b.chunk.text = append(b.chunk.text, v[at]...)
		e.keyEnd = len(b.chunk.text)
	}
	first := len(b.chunk.slots)
	if b.source.plain {
		op = relay.OpInsert
		if at := b.layout.op; at >= 0 && v[at] != nil {
			op = opOf(v[at])
		}
	}
	b.message(&e, op, nil, nil, false, relay.Permanent(why))
	if n := len(b.chunk.msgs); n > 0 {
		b.chunk.msgs[n-1].Row, b.chunk.msgs[n-1].Body = members, nil
	}
	b.end(row.ID, first)
}
