package rows

import (
	"fmt"
	"strconv"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/jsonscan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Claim is a claim check: a row whose deltas are in another table. It records how far
// they are read.
type Claim struct {
	ID   int64
	Next int64 // the row_num behind which to go on

	created time.Time
	refresh string
	full    bool
	index   int // of the next message
}

// Snapshot reports whether the claim check stands for the whole stream table.
func (c *Claim) Snapshot() bool { return c.full }

// claimRow records a claim check. It returns false if the row cannot be decoded and
// became a message.
func (b *Builder) claimRow(v [][]byte, e *event) bool {
	c := &Claim{ID: e.id, Next: table.Beginning, created: e.created}
	raw := v[b.layout.payload]
	if raw == nil || string(raw) == "null" {
		c.full = true // the extension copies the whole stream table
	} else {
		if err := b.header(raw); err != nil {
			b.undecodable(e, b.keep(raw), err)
			return false
		}
		c.full = string(b.vals[4]) == "true"
		if rid := b.vals[6]; len(rid) > 2 && rid[0] == '"' {
			c.refresh = string(jsonscan.AppendText(nil, rid))
		}
	}
	if e.refreshEnd > e.refresh {
		c.refresh = string(b.chunk.text[e.refresh:e.refreshEnd])
	}
	b.chunk.claim = c
	return true
}

// Deltas adds the next deltas of a claim check to the chunk.
type Deltas struct {
	b     *Builder
	c     *Claim
	from  string // the delta table
	event event
	first int // slot
}

// Deltas goes on with c. The deltas are read from the table called from.
func (b *Builder) Deltas(c *Claim, from string) *Deltas {
	e := event{id: c.ID, idText: strconv.AppendInt(nil, c.ID, 10), created: c.created, index: c.index}
	if c.refresh != "" {
		e.refresh = len(b.chunk.text)
		b.chunk.text = append(b.chunk.text, c.refresh...)
		e.refreshEnd = len(b.chunk.text)
	}
	return &Deltas{b: b, c: c, from: from, event: e, first: len(b.chunk.slots)}
}

// Add adds one delta: its row_num, its operation and its row.
func (d *Deltas) Add(num int64, operation, row []byte) {
	d.c.Next = num
	data := d.b.keep(row)
	switch op := opOf(operation); {
	case op == "":
		d.b.undecodable(&d.event, data, fmt.Errorf("row_num %d of %s has operation %q", num, d.from, operation))
	case row == nil || firstByte(data) != '{':
		d.b.undecodable(&d.event, data, fmt.Errorf("row_num %d of %s is not an object", num, d.from))
	default:
		d.b.message(&d.event, op, data, nil, d.c.full && op != relay.OpDelete, nil)
	}
	d.c.index = d.event.index
}

// Undecodable adds a message that reports why the deltas cannot be read.
func (d *Deltas) Undecodable(err error) {
	d.b.undecodable(&d.event, nil, err)
	d.c.index = d.event.index
}

// End ends the row of the claim check.
func (d *Deltas) End() { d.b.end(d.c.ID, d.first) }
