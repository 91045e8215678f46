package outbox

import (
	"encoding/binary"
	"strings"
	"time"
)

// layout is the list of columns that a read asks for, and where each stands.
type layout struct {
	names                                                       []string // expressions
	types                                                       []string
	id, payload, created, refresh, claim, op, key, headers, xid int // -1 = not asked for
}

func newLayout(t *table) *layout {
	l := &layout{}
	add := func(name, typ, cast string) int {
		if name == "" {
			return -1
		}
		expr := quote(name)
		if cast != "" {
			expr, typ = expr+"::"+cast, cast
		}
		l.names = append(l.names, expr)
		l.types = append(l.types, typ)
		return len(l.names) - 1
	}
	cast := func(name, want string) string {
		if t.columns[name].typ == want {
			return ""
		}
		return want
	}
	typ := t.columns[t.payload].typ
	l.id = add(t.id, t.columns[t.id].typ, "")
	l.payload = add(t.payload, typ, "")
	l.created = add(t.created, "timestamp with time zone", cast(t.created, "timestamp with time zone"))
	l.refresh = add(t.refresh, "uuid", cast(t.refresh, "text"))
	l.claim = add(t.claim, "boolean", "")
	l.op = add(t.op, "text", "text")
	l.key = add(t.key, "text", "text")
	l.headers = add(t.headers, t.columns[t.headers].typ, "")
	return l
}

// list renders the columns under the names c0, c1, …
func (l *layout) list(prefix string) string {
	var b strings.Builder
	for i, n := range l.names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(prefix + n + " AS c" + itoa(int64(i)))
	}
	return b.String()
}

// nulls renders a row of the same types without values.
func (l *layout) nulls() string {
	var b strings.Builder
	for i, t := range l.types {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("NULL::" + t + " AS c" + itoa(int64(i)))
	}
	return b.String()
}

// formats asks for text, but for the time, and for bytea where the payload is.
func (l *layout) formats(extra int) []int16 {
	f := make([]int16, len(l.names)+extra)
	if l.created >= 0 {
		f[l.created] = 1
	}
	if l.types[l.payload] == "bytea" {
		f[l.payload] = 1
	}
	return f
}

// epoch is PostgreSQL's, in Unix seconds.
const epoch = 946684800

// parseTime decodes a timestamptz in binary format. Infinity is no time.
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
