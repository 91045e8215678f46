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
	ID     int64
	Next   int64 // the row_num behind which to go on
	Inline bool  // the rows are in the payload, which was not read

	created time.Time
	refresh string
	full    bool
	flagged bool // messages of it are flagged as parts of a snapshot
	broken  bool // it could not be read whole
	index   int  // of the next message
}

// Snapshot reports whether the claim check stands for the whole stream table.
func (c *Claim) Snapshot() bool { return c.full }

// claimRow records a claim check. It returns false if the row cannot be decoded and
// became a message.
func (b *Builder) claimRow(v [][]byte, e *event) bool {
	c := &Claim{ID: e.id, Next: table.Beginning, created: e.created, Inline: v[b.layout.claim][0] == 's'}
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
		flagged := d.c.full && op != relay.OpDelete
		d.c.flagged = d.c.flagged || flagged
		d.b.message(&d.event, op, data, nil, flagged, nil)
	}
	d.c.index = d.event.index
}

// Change is a change that the comparison of snapshots found. RowID is nil if the row is
// sent as it stands. Full is whether it is part of a snapshot.
type Change struct {
	Op, Row, Before, RowID, Occurrence []byte
	Full                               bool
}

// Change adds change number n.
func (d *Deltas) Change(n int64, c Change) {
	d.c.Next, d.c.flagged = n, d.c.flagged || c.Full
	b, before := d.b, len(d.b.chunk.msgs)
	row := b.keep(c.Row)
	if firstByte(row) != '{' {
		b.undecodable(&d.event, row, fmt.Errorf("row %d of the snapshot is not an object", n))
	} else {
		var old []byte
		if c.Before != nil {
			old = b.keep(c.Before)
		}
		b.message(&d.event, opOf(c.Op), row, old, c.Full, nil)
	}
	d.c.index = d.event.index
	if c.RowID == nil || len(b.chunk.msgs) == before {
		return
	}
	m := &b.chunk.msgs[before]
	m.Headers = append(make([]relay.Header, 0, 2), relay.Header{Name: relay.HeaderRowID, Value: string(c.RowID)})
	if string(c.Occurrence) != "1" {
		m.Headers = append(m.Headers, relay.Header{Name: relay.HeaderRowOccurrence, Value: string(c.Occurrence)})
	}
}

// Undecodable adds a message that reports why the deltas cannot be read.
func (d *Deltas) Undecodable(err error) {
	d.b.undecodable(&d.event, nil, err)
	d.c.index, d.c.broken = d.event.index, true
}

// End ends the row of the claim check. Where a snapshot had no messages, it is unknown
// whether that is all of it, so no marker follows.
func (d *Deltas) End() {
	if c := d.c; c.full && c.index > 0 && !c.broken {
		d.b.snapshotEnd(&d.event, c.flagged)
	}
	d.b.end(d.c.ID, d.first)
}
