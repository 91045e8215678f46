package table

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

//go:embed sql/relation.sql
var relationSQL string

//go:embed sql/columns.sql
var columnsSQL string

//go:embed sql/numbering.sql
var numberingSQL string

//go:embed sql/delta.sql
var deltaSQL string

//go:embed sql/sharing.sql
var sharingSQL string

// introspect reads the definition of the table, and refuses what the relay cannot read.
func (t *Table) introspect(ctx context.Context, q pg.Querier) error {
	name := t.Qualified()

	var kind string
	var rowSecurity, usage, canRead bool
	err := q.QueryRow(ctx, relationSQL, t.Schema, t.Name).Scan(&t.OID, &t.Filenode, &kind, &rowSecurity, &t.Unlogged, &usage, &canRead,
		&t.NoEncoding, &t.database, &t.recovering)
	if errors.Is(err, pgx.ErrNoRows) {
		return relay.Fatal(fmt.Errorf("outbox table %s does not exist, though pgtrickle.pgt_outbox_config names it: "+
			"disable_outbox and enable_outbox create it again", name))
	}
	if err != nil {
		return fmt.Errorf("read definition of %s: %w", name, err)
	}
	rows, err := q.Query(ctx, columnsSQL, t.OID)
	if err != nil {
		return fmt.Errorf("read columns of %s: %w", name, err)
	}
	t.types = make(map[string]column)
	var col string
	var c column
	_, err = pgx.ForEachRow(rows, []any{&col, &c.typ, &c.notNull, &c.def, &c.soleKey}, func() error {
		t.types[col] = c
		return nil
	})
	if err != nil {
		return fmt.Errorf("read columns of %s: %w", name, err)
	}

	t.Partitioned = kind == "p"
	switch {
	case kind != "r" && kind != "p":
		return relay.Fatal(fmt.Errorf("%s is not a table: the relay needs the locks and transactions of its writers", name))
	case !usage:
		return relay.Fatal(fmt.Errorf("no permission for schema %s: GRANT USAGE ON SCHEMA %s TO pgtrickle_relay",
			t.Schema, pg.Identifier(t.Schema)))
	case !canRead && t.types["payload"].typ == "":
		return relay.Fatal(fmt.Errorf("%s is no outbox: SELECT pgtrickle.enable_outbox('%s.%s') makes an outbox for it; "+
			"a table of your own needs GRANT SELECT ON %s TO pgtrickle_relay", name, t.Schema, t.Name, name))
	case !canRead:
		return relay.Fatal(fmt.Errorf("no permission to read %s: GRANT SELECT ON %s TO pgtrickle_relay", name, name))
	case rowSecurity:
		return relay.Fatal(fmt.Errorf("row level security would hide rows of %s from the relay: "+
			"CREATE POLICY relay ON %s FOR SELECT TO pgtrickle_relay USING (true), "+
			"and ALTER ROLE … BYPASSRLS for the relay's login role", name, name))
	}
	return nil
}

// assign decides which column plays which part.
func (t *Table) assign(set Settings) error {
	var missing error
	pick := func(key, want, fallback string) string {
		if want == "" {
			return t.ifThere(fallback)
		}
		if t.ifThere(want) == "" && missing == nil {
			missing = relay.Fatal(fmt.Errorf("%s: table %s has no column %q; it has %s",
				key, t.Qualified(), want, strings.Join(t.columnNames(), ", ")))
		}
		return want
	}
	t.Columns = Columns{
		ID:      cmp.Or(pick("id_column", set.IDColumn, "id"), t.soleKey()),
		Payload: pick("payload_column", set.PayloadColumn, "payload"),
		Created: pick("created_at_column", set.CreatedColumn, "created_at"),
		Op:      pick("op_column", set.OpColumn, ""),
		Key:     pick("key_column", set.KeyColumn, ""),
		Headers: pick("headers_column", set.HeadersColumn, ""),
		Xid:     cmp.Or(pick("xid_column", set.XidColumn, ""), t.xidColumn()),
	}
	if missing != nil {
		return missing
	}
	own := set.PayloadColumn != "" || set.OpColumn != "" || set.KeyColumn != "" || set.HeadersColumn != ""
	t.Plain = own || t.ifThere("is_claim_check") == ""
	if !t.Plain {
		t.Columns.Claim, t.Columns.Refresh = "is_claim_check", t.ifThere("refresh_id")
		// The relay's outboxes have these columns, the extension's have not.
		t.Columns.Headers = t.ifTyped("headers", "jsonb")
		t.Columns.Key, t.Columns.EventID = t.ifTyped("key", "text"), t.ifTyped("event_id", "text")
	}
	return t.checkTypes()
}

func (t *Table) ifThere(name string) string {
	if _, ok := t.types[name]; ok {
		return name
	}
	return ""
}

func (t *Table) ifTyped(name, typ string) string {
	if t.types[name].typ != typ {
		return ""
	}
	return name
}

// xidColumn returns the last column, by name, that records the writing transaction.
func (t *Table) xidColumn() (found string) {
	for _, name := range t.columnNames() {
		if c := t.types[name]; c.typ == "xid8" && strings.Contains(c.def, "pg_current_xact_id()") {
			found = name
		}
	}
	return found
}

func (t *Table) checkTypes() error {
	c, name := t.Columns, t.Qualified()
	switch {
	case c.ID == "":
		return relay.Fatal(fmt.Errorf("table %s has no column id and no primary key of one integer column: set id_column", name))
	case c.Payload == "":
		return relay.Fatal(fmt.Errorf("table %s is no outbox, it has no column payload: "+
			"SELECT pgtrickle.enable_outbox('%s.%s') makes an outbox for it, or set payload_column",
			name, t.Schema, t.Name))
	case !t.types[c.ID].integer():
		return relay.Fatal(fmt.Errorf("column %s of %s has type %s: an outbox is read in the order of an integer id: "+
			"ALTER TABLE %s ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, then set id_column to seq", c.ID, name, t.Type(c.ID), name))
	case !slices.Contains([]string{"json", "jsonb", "text", "bytea", "character varying"}, t.Type(c.Payload)):
		return relay.Fatal(fmt.Errorf("payload column %s of %s has type %s: must be jsonb, json, text or bytea",
			c.Payload, name, t.Type(c.Payload)))
	case c.Headers != "" && !strings.HasPrefix(t.Type(c.Headers), "json"):
		return relay.Fatal(fmt.Errorf("headers column %s of %s has type %s: must be jsonb", c.Headers, name, t.Type(c.Headers)))
	}
	return nil
}

// numbering finds the sequence of the ids and the indexes that reads can use.
func (t *Table) numbering(ctx context.Context, q pg.Querier) error {
	name, s := t.Qualified(), &t.Sequence
	var indexed bool
	err := q.QueryRow(ctx, numberingSQL, t.OID, t.Columns.ID, t.Columns.Xid).
		Scan(&s.OID, &s.Filenode, &s.Name, &s.Increment, &s.Cache, &s.Start, &s.Cycle, &s.Readable, &indexed, &t.IDUnique, &t.XidIndexed)
	if err != nil {
		return fmt.Errorf("find the sequence and the indexes of %s: %w", name, err)
	}
	if !indexed {
		return relay.Fatal(fmt.Errorf("column %s of %s has no index: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s)",
			t.Columns.ID, name, name, t.ID()))
	}
	return nil
}

// FindDelta finds the claim-check table of an outbox. The extension builds its name
// from the first 45 bytes of the stream table; other writers of the format use
// the outbox's own name. The zero Delta is returned if there is none.
func FindDelta(ctx context.Context, q pg.Querier, t *Table) (Delta, error) {
	rows, err := q.Query(ctx, deltaSQL, t.Schema, t.StreamTable, t.Name)
	if err != nil {
		return Delta{}, fmt.Errorf("find the delta table of %s: %w", t.Qualified(), err)
	}
	var d Delta
	var name string
	var cols []string
	_, err = pgx.ForEachRow(rows, []any{&name, &cols}, func() error {
		has := func(a, b string) bool { return slices.Contains(cols, a) && slices.Contains(cols, b) }
		switch {
		case d.Name != "" || !has("outbox_id", "row_num"):
		case has("row_op", "row_data"):
			d = Delta{Name: pg.Identifier(t.Schema, name), Op: "row_op", Data: "row_data"}
		case has("op", "payload"):
			d = Delta{Name: pg.Identifier(t.Schema, name), Op: "op", Data: "payload"}
		}
		return nil
	})
	if err != nil {
		return Delta{}, fmt.Errorf("find the delta table of %s: %w", t.Qualified(), err)
	}
	return d, nil
}

// Sharing returns the qualified names of the other outboxes whose deltas are in the
// delta table of t. The extension goes by names that can be equal.
func Sharing(ctx context.Context, q pg.Querier, t *Table) ([]string, error) {
	if !t.extension {
		return nil, nil
	}
	rows, err := q.Query(ctx, sharingSQL, t.StreamTable, t.Name)
	if err != nil {
		return nil, fmt.Errorf("find outboxes that share the delta table of %s: %w", t.Qualified(), err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("find outboxes that share the delta table of %s: %w", t.Qualified(), err)
	}
	return names, nil
}

// HighestID returns the highest id in the table, 0 if it is empty.
func HighestID(ctx context.Context, q pg.Querier, t *Table) (highest int64, err error) {
	if err := q.QueryRow(ctx, `SELECT coalesce(max(`+t.ID()+`), 0)::bigint FROM `+t.Qualified()).Scan(&highest); err != nil {
		return 0, fmt.Errorf("read the highest id of %s: %w", t.Qualified(), err)
	}
	return highest, nil
}

// FirstID returns the lowest id in the table, nil if the table is empty.
func FirstID(ctx context.Context, q pg.Querier, t *Table) (*int64, error) {
	var first *int64
	if err := q.QueryRow(ctx, `SELECT min(`+t.ID()+`)::bigint FROM `+t.Qualified()).Scan(&first); err != nil {
		return nil, fmt.Errorf("read first id of %s: %w", t.Qualified(), err)
	}
	return first, nil
}
