// Package table describes an outbox table: its name, the part that each column plays,
// the sequence of its ids, its server and its file. It also lists the readers of a table,
// and the tables that the relay's retention sweeps.
//
// The package reads catalogs only. [Resolve] builds a [Table] once for an opening; a
// Table never changes afterwards. SQL stands in the files of directory sql.
package table

import (
	"context"
	"math"
	"slices"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// Beginning lies before every id.
const Beginning = math.MinInt64

// Table is what the catalogs know about an outbox table.
type Table struct {
	Schema, Name string
	OID          uint32
	Filenode     uint32
	Partitioned  bool
	Unlogged     bool     // a crash of the server empties it
	StreamTable  string   // value of {stream_table}
	Keys         []string // primary key of the stream table; nil = unknown
	Plain        bool     // a row is one event, not a container of deltas
	NoEncoding   bool     // the database is SQL_ASCII, so text can be any bytes

	Columns    Columns
	IDUnique   bool
	XidIndexed bool
	Sequence   Sequence // of the ids
	Delta      Delta

	types      map[string]column
	stream     entry
	extension  bool   // the extension made it, and its catalog could be read
	database   uint32 // its oid
	recovering bool   // the server is a standby
}

// Columns names the column that plays each part; "" = none does.
type Columns struct {
	ID, Payload, Created, Refresh, Claim, Op, Key, Headers, EventID, Xid string
}

type column struct {
	typ     string // as format_type prints it
	notNull bool
	def     string // expression of the default
	soleKey bool   // it is the whole primary key
}

func (c column) integer() bool {
	return c.typ == "bigint" || c.typ == "integer" || c.typ == "smallint"
}

// Sequence numbers the rows. OID is 0 if the ids come from no sequence.
type Sequence struct {
	OID, Filenode           uint32
	Name                    string
	Increment, Cache, Start int64
	Cycle                   bool
	Readable                bool
}

// Numbers reports whether the sequence's last value can be read. No session has an
// id above that value; sessions may hold ids below it that they have yet to use.
func (s *Sequence) Numbers() bool { return s.OID != 0 && s.Readable && s.Increment > 0 }

// Exact reports whether the sequence's last value is the highest id that any
// transaction has taken. For that it must be readable, and sessions must not cache ids.
func (s *Sequence) Exact() bool { return s.Numbers() && s.Cache == 1 }

// LastSQL reads the highest id that was handed out. pg_sequence_last_value
// would take the lock that writers take.
func (s *Sequence) LastSQL() string {
	return `SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM ` + s.Name
}

// Delta is the table beside an outbox that holds the rows of claim checks.
type Delta struct {
	Name     string // quoted and qualified; "" = there is none
	Op, Data string // column names
}

// Qualified returns the table's name, quoted for SQL.
func (t *Table) Qualified() string { return pg.Identifier(t.Schema, t.Name) }

// String returns the table's name for people and metrics: schema.name.
func (t *Table) String() string { return t.Schema + "." + t.Name }

// ConsumedName returns the name by which outbox_rows_consumed finds the outbox. The
// extension looks for a name without a schema in current_schema().
func (t *Table) ConsumedName() string {
	if t.extension && t.stream.Schema != "" {
		return t.stream.Schema + "." + t.stream.Table
	}
	return t.StreamTable
}

// Registered reports whether the extension's catalog names the outbox of a
// stream table. That can change while the outbox is read.
func (t *Table) Registered() bool { return t.extension }

// Stream returns the stream table's name, quoted for SQL; "" = unknown.
func (t *Table) Stream() string {
	if t.stream.Table == "" || t.stream.Schema == "" {
		return ""
	}
	return pg.Identifier(t.stream.Schema, t.stream.Table)
}

// Type returns a column's type as format_type prints it, "" if there is no such column.
func (t *Table) Type(column string) string { return t.types[column].typ }

// NotNull reports whether a column is declared NOT NULL.
func (t *Table) NotNull(column string) bool { return t.types[column].notNull }

// ID returns the quoted name of the id column, Xid that of the transaction id column.
func (t *Table) ID() string { return pg.Identifier(t.Columns.ID) }

// Xid returns the quoted name of the transaction id column.
func (t *Table) Xid() string { return pg.Identifier(t.Columns.Xid) }

// BeforeFirstID returns the id before the first that the sequence hands out,
// [Beginning] if that is unknown.
func (t *Table) BeforeFirstID() int64 {
	if t.Sequence.OID != 0 && t.Sequence.Increment > 0 {
		return t.Sequence.Start - 1
	}
	return Beginning
}

// soleKey returns the integer column that is the whole primary key, "" if none is.
func (t *Table) soleKey() string {
	for name, c := range t.types {
		if c.soleKey && c.integer() {
			return name
		}
	}
	return ""
}

func (t *Table) columnNames() []string {
	var names []string
	for n := range t.types {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Resolve finds the outbox that a pipeline calls name, and describes it.
func Resolve(ctx context.Context, q pg.Querier, name string, set Settings) (*Table, error) {
	t, err := locate(ctx, q, name)
	if err != nil {
		return nil, err
	}
	if err := t.introspect(ctx, q); err != nil {
		return nil, err
	}
	if err := t.assign(set); err != nil {
		return nil, err
	}
	if err := t.numbering(ctx, q); err != nil {
		return nil, err
	}
	if !t.Plain {
		if t.Delta, err = FindDelta(ctx, q, t); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// split cuts a name in two at its first dot outside double quotes, and unquotes.
func split(name string) (schema, rel string) {
	parts := []string{}
	var cur strings.Builder
	quoted := false
	for i := 0; i < len(name); i++ {
		switch c := name[i]; {
		case c == '"' && quoted && i+1 < len(name) && name[i+1] == '"':
			cur.WriteByte('"')
			i++
		case c == '"':
			quoted = !quoted
		case c == '.' && !quoted && len(parts) == 0:
			parts = append(parts, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(c)
		}
	}
	if len(parts) == 1 {
		return parts[0], cur.String()
	}
	return "", cur.String()
}
