package rows

import (
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Existing adds a row that the captured table had before, as run reads it at a time. If why
// is not nil, the row could not be read, and its message has that error.
func (b *Builder) Existing(run string, at time.Time, key, row []byte, why error) {
	ch := &b.chunk
	if b.source.anyBytes && !utf8.Valid(row) {
		why = errNotText
	}
	refresh := len(ch.text)
	ch.text = append(ch.text, run...)
	c := cut{refresh: refresh, refreshEnd: len(ch.text), delivery: len(ch.text)}
	ch.text, c.id = b.ids.appendExisting(ch.text, run, key)
	c.idEnd = len(ch.text)

	m := b.add(c, Slot{Index: -1, End: true})
	m.Op, m.Time, m.StreamTable, m.FullRefresh = relay.OpInsert, at, b.source.stream, true
	row = b.keep(row)
	if why != nil {
		m.Err, m.Body, m.ContentType = relay.Permanent(why), row, "application/json"
		return
	}
	m.Row = row
}
