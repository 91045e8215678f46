package rows

import (
	"errors"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Existing adds a row that the captured table had before, as run reads it at a time. With
// why the row could not be read, and its message has that error.
func (b *Builder) Existing(run string, at time.Time, key, row []byte, why error) {
	ch := &b.chunk
	if b.source.anyBytes && !utf8.Valid(row) {
		why = errors.New("it has bytes that are not UTF-8, and its database has no encoding")
	}
	refresh := len(ch.text)
	ch.text = append(ch.text, run...)
	c := cut{refresh: refresh, refreshEnd: len(ch.text), delivery: len(ch.text)}
	ch.text, c.id = b.ids.appendExisting(ch.text, run, key)
	c.idEnd = len(ch.text)
	ch.cuts = append(ch.cuts, c)
	ch.slots = append(ch.slots, Slot{Index: -1, End: true})
	ch.bytes += relay.MessageOverhead
	if len(ch.msgs) == cap(ch.msgs) {
		b.grow(1)
	}
	ch.msgs = ch.msgs[:len(ch.msgs)+1]
	m := &ch.msgs[len(ch.msgs)-1]
	m.Op, m.Time, m.StreamTable, m.FullRefresh = relay.OpInsert, at, b.source.stream, true
	m.Row, m.Err = b.keep(row), nil
	if why != nil {
		m.Err, m.Body, m.Row, m.ContentType = relay.Permanent(why), m.Row, nil, "application/json"
	}
}
