package rows

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// Layout is the list of columns that a read selects, and the index of each.
type Layout struct {
	names, types []string // expressions, and their types

	id, payload, created, refresh, claim, op, key, headers, eventID int // -1 = not selected
	size                                                            int // stored, of a large payload; null for others

	whole string // expression of the payload, however large
}

// largeStored is the stored size of a payload, in bytes, above which a read returns the
// size alone. What is stored may be compressed, hardly ever to less than a fiftieth.
const largeStored = 128 << 10

// NewLayout selects the columns of t that play a part.
func NewLayout(t *table.Table) *Layout {
	l := &Layout{}
	c := &t.Columns
	add := func(name, typ string) int {
		if name == "" {
			return -1
		}
		expr := pg.Identifier(name)
		if t.Type(name) != typ {
			expr += "::" + typ
		}
		if t.NoEncoding && (typ == "text" || strings.HasPrefix(typ, "json")) {
			// One text that is not UTF-8 would make the server refuse the whole read.
			expr, typ = "convert_to(("+expr+")::text, 'SQL_ASCII')", "bytea"
		}
		l.names = append(l.names, expr)
		l.types = append(l.types, typ)
		return len(l.names) - 1
	}
	l.id = add(c.ID, t.Type(c.ID))
	l.payload = add(c.Payload, t.Type(c.Payload))
	l.whole = l.names[l.payload]
	size := "pg_column_size(" + l.whole + ")"
	l.names[l.payload] = fmt.Sprintf("CASE WHEN %s <= %d THEN %s END", size, largeStored, l.whole)
	l.created = add(c.Created, "timestamp with time zone")
	l.refresh = add(c.Refresh, "text")
	l.claim = add(c.Claim, t.Type(c.Claim))
	l.op = add(c.Op, "text")
	l.key = add(c.Key, "text")
	l.headers = add(c.Headers, t.Type(c.Headers))
	l.eventID = add(c.EventID, "text")
	l.size = len(l.names)
	l.names = append(l.names, fmt.Sprintf("CASE WHEN %s > %d THEN %s END", size, largeStored, size))
	l.types = append(l.types, "integer")
	return l
}

// LeaveSnapshots leaves the payloads of snapshots on the server. Their rows are claim
// checks.
func (l *Layout) LeaveSnapshots() {
	array := "jsonb_typeof((" + l.whole + ")::jsonb) = 'array'"
	l.names[l.claim] = "CASE WHEN " + l.names[l.claim] + " THEN 't' WHEN " + array + " THEN 's' ELSE 'f' END"
	l.types[l.claim] = "text"
	for _, i := range []int{l.payload, l.size} {
		// The type of a payload is looked at last, because that reads it.
		l.names[i] = "CASE WHEN (" + l.names[i] + ") IS NOT NULL AND (" + array + ") IS NOT TRUE THEN " + l.names[i] + " END"
	}
}

// Columns renders the select list, under the names c0, c1, … The id is c0.
func (l *Layout) Columns() string { return l.render(l.names, "") }

// Nulls renders a select list of the same names and types without values.
func (l *Layout) Nulls() string { return l.render(l.types, "NULL::") }

func (l *Layout) render(items []string, prefix string) string {
	var b strings.Builder
	for i, item := range items {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(prefix + item + " AS c" + strconv.Itoa(i))
	}
	return b.String()
}

// Formats returns the result formats of the columns, and of extra text columns behind
// them. The time and columns of type bytea are binary, all others are text.
func (l *Layout) Formats(extra int) []int16 {
	f := make([]int16, len(l.names)+extra)
	if l.created >= 0 {
		f[l.created] = 1
	}
	for i, typ := range l.types {
		if typ == "bytea" {
			f[i] = 1
		}
	}
	return f
}

// ParseID decodes an integer in text format.
func ParseID(b []byte) (int64, error) {
	var n int64
	neg := false
	for i, c := range b {
		switch {
		case c == '-' && i == 0:
			neg = true
		case '0' <= c && c <= '9':
			n = n*10 - int64(c-'0') // negative, so that the least int64 fits
		default:
			return 0, fmt.Errorf("row id %q is not a number", b)
		}
	}
	if len(b) == 0 {
		return 0, fmt.Errorf("row has no id")
	}
	if !neg {
		n = -n
	}
	return n, nil
}

// epoch is PostgreSQL's epoch in Unix seconds.
const epoch = 946684800

// parseTime decodes a timestamptz in binary format. Infinity becomes the zero time.
func parseTime(b []byte) time.Time {
	if len(b) != 8 {
		return time.Time{}
	}
	us := int64(binary.BigEndian.Uint64(b))
	if us == 1<<63-1 || us == -1<<63 {
		return time.Time{}
	}
	return time.Unix(epoch+us/1e6, us%1e6*1e3).UTC()
}
