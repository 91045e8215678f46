package inbox

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// field is a part of a message that can go to a column.
type field int

const (
	fieldID field = iota
	fieldPayload
	fieldEventType
	fieldSource
	fieldAggregateID
	fieldTraceID
	fieldReceivedAt // filled by the server
)

// column is one that an insert fills.
type column struct {
	field field
	name  string // quoted
	array uint32 // type of the array in which it is sent
	cast  string // type to cast to, where an assignment would not do

	// constant is the number of the parameter for a column in which the whole batch
	// has one value. The array is then empty, and unnest pads it with nulls. An array
	// costs the server several times as much. 0 if the column has no such parameter.
	constant int
}

// table is what was found in the catalog, and the statements made from it.
type table struct {
	name        string // qualified and quoted
	idColumn    string
	columns     []column
	receivedAt  string // quoted, empty for none
	lookup      bool   // there can be no unique key on the event id alone
	targeted    bool   // ON CONFLICT may name the event id
	unlogged    bool
	asyncCommit bool

	insert    statement // passes over what is there
	plain     statement // fails on it, for less; empty with lookup
	compare   string    // see compareSQL
	lock      string
	paramOIDs []uint32
}

// attribute is a column of the table as the catalog has it.
type attribute struct {
	num       int16
	name      string
	base      uint32 // type, of a domain the base type
	category  string
	typeName  string // without a length
	qualified string // typeName with its schema, as SQL
	required  bool   // NOT NULL, and nothing fills it but an insert
	generated bool
	insert    bool // the role may insert it
	selects   bool // the role may read it
}

// inspect reads the catalog in a transaction with a search path of its own: the
// session's may have functions and types of other roles. See [table.insertSQL].
func inspect(ctx context.Context, pool *pgxpool.Pool, cfg Config) (t *table, err error) {
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog, pg_temp"); err != nil {
			return err
		}
		t, err = inspectTable(ctx, tx, cfg)
		return err
	})
	return t, err
}

func inspectTable(ctx context.Context, db pg.Querier, cfg Config) (*table, error) {
	schema := cfg.Schema
	if schema == "" {
		schema = "pgtrickle"
	}
	if cfg.Table == "" {
		return nil, relay.Fatal(fmt.Errorf("open inbox: no table is named: set inbox_table"))
	}
	rel, err := findTable(ctx, db, schema, cfg.Table)
	if err != nil {
		return nil, err
	}
	attrs, err := attributes(ctx, db, rel.oid)
	if err != nil {
		return nil, fmt.Errorf("read columns of inbox %s: %w", rel.name, err)
	}
	registered, err := registeredColumns(ctx, db, rel.schema, rel.table)
	if err != nil {
		return nil, fmt.Errorf("read pgtrickle.pgt_inbox_config for %s: %w", rel.name, err)
	}
	t := &table{name: rel.name, unlogged: rel.unlogged, asyncCommit: rel.asyncCommit}
	id, err := t.mapColumns(cfg.Columns, registered, attrs)
	if err != nil {
		return nil, err
	}
	if err := t.chooseConflict(ctx, db, rel, id); err != nil {
		return nil, err
	}
	t.lock = "SELECT pg_catalog.pg_advisory_xact_lock(" + strconv.FormatInt(int64(rel.oid), 10) +
		", pg_catalog.hashtext('pgtrickle_relay inbox'))"
	t.insert = newStatement(t.insertSQL(true))
	if !t.lookup {
		t.plain = newStatement(t.insertSQL(false))
	}
	return t, nil
}

// statement is SQL with the name under which it is prepared. The name is the same
// for the same SQL, so that sinks may share a pool.
type statement struct{ name, sql string }

func newStatement(sql string) statement {
	h := fnv.New64a()
	_, _ = h.Write([]byte(sql))
	return statement{name: "pgtrickle_inbox_" + strconv.FormatUint(h.Sum64(), 16), sql: sql}
}

type relation struct {
	oid         uint32
	schema      string
	table       string
	name        string // qualified and quoted
	partitioned bool
	unlogged    bool
	asyncCommit bool
}

const findTableSQL = `
SELECT c.oid, c.relkind::text, c.relpersistence = 'u', has_schema_privilege(n.oid, 'USAGE'),
       current_setting('synchronous_commit') = 'off', current_user::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind NOT IN ('i', 'I', 'S', 'c', 't')`

// findTable takes name as a name in schema, else as "schema.table".
func findTable(ctx context.Context, db pg.Querier, schema, name string) (relation, error) {
	candidates := [][2]string{{schema, name}}
	if s, t, dotted := strings.Cut(name, "."); dotted {
		candidates = append(candidates, [2]string{strings.Trim(s, `"`), strings.Trim(t, `"`)})
	}
	for _, c := range candidates {
		r := relation{schema: c[0], table: c[1], name: pgx.Identifier{c[0], c[1]}.Sanitize()}
		var kind, role string
		var usage bool
		err := db.QueryRow(ctx, findTableSQL, r.schema, r.table).Scan(&r.oid, &kind, &r.unlogged, &usage, &r.asyncCommit, &role)
		if err == pgx.ErrNoRows { //nolint:errorlint // QueryRow returns it bare
			continue
		}
		if err != nil {
			return relation{}, fmt.Errorf("look up inbox %s: %w", name, err)
		}
		if kind != "r" && kind != "p" {
			return relation{}, relay.Fatal(fmt.Errorf(
				"inbox %s is not a table: name a table, because views and foreign tables cannot drop duplicates", r.name))
		}
		if !usage {
			return relation{}, relay.Fatal(fmt.Errorf("role %q may not use the schema of inbox %s: GRANT USAGE ON SCHEMA %s TO %s",
				role, r.name, pgx.Identifier{r.schema}.Sanitize(), pgx.Identifier{role}.Sanitize()))
		}
		r.partitioned = kind == "p"
		return r, nil
	}
	last := candidates[len(candidates)-1]
	elsewhere, err := registeredSchema(ctx, db, last[1])
	if err != nil {
		return relation{}, fmt.Errorf("read pgtrickle.pgt_inbox_config for %s: %w", last[1], err)
	}
	if elsewhere != "" {
		return relation{}, relay.Fatal(fmt.Errorf("inbox table %s does not exist: inbox %q is registered in schema %q; set inbox_schema to that",
			pgx.Identifier{last[0], last[1]}.Sanitize(), last[1], elsewhere))
	}
	return relation{}, relay.Fatal(fmt.Errorf(
		"inbox table %s does not exist: create it with SELECT pgtrickle.create_inbox('%s', '%s'), or set inbox_table and inbox_schema",
		pgx.Identifier{last[0], last[1]}.Sanitize(), strings.ReplaceAll(last[1], "'", "''"), strings.ReplaceAll(last[0], "'", "''")))
}

const attributesSQL = `
SELECT a.attnum, a.attname::text, b.oid, b.typcategory::text, format_type(b.oid, NULL), b.qualified,
       (a.attnotnull OR t.typnotnull) AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL,
       a.attgenerated <> '' OR a.attidentity = 'a',
       has_column_privilege($1::oid, a.attnum, 'INSERT'), has_column_privilege($1::oid, a.attnum, 'SELECT')
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
JOIN LATERAL (
    WITH RECURSIVE d AS (
        SELECT t.oid, t.typbasetype
        UNION ALL
        SELECT p.oid, p.typbasetype FROM pg_catalog.pg_type p JOIN d ON p.oid = d.typbasetype
    )
    SELECT p.oid, p.typcategory, format('%I.%I', n.nspname, p.typname) AS qualified
    FROM d JOIN pg_catalog.pg_type p ON p.oid = d.oid JOIN pg_catalog.pg_namespace n ON n.oid = p.typnamespace WHERE d.typbasetype = 0
) b ON true
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum`

func attributes(ctx context.Context, db pg.Querier, oid uint32) ([]attribute, error) {
	rows, err := db.Query(ctx, attributesSQL, oid)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (a attribute, err error) {
		err = row.Scan(&a.num, &a.name, &a.base, &a.category, &a.typeName, &a.qualified, &a.required, &a.generated, &a.insert, &a.selects)
		return a, err
	})
}

const readableSQL = `
SELECT coalesce(bool_or(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')), false)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgtrickle' AND c.relname = 'pgt_inbox_config'`

// registeredColumns reads the mapping that create_inbox and
// enable_inbox_tracking have stored, where there is one and the role may read it.
func registeredColumns(ctx context.Context, db pg.Querier, schema, name string) (Columns, error) {
	var c Columns
	var readable bool
	if err := db.QueryRow(ctx, readableSQL).Scan(&readable); err != nil || !readable {
		return c, err
	}
	err := db.QueryRow(ctx, `SELECT id_column, event_type_column, received_at_column
		FROM pgtrickle.pgt_inbox_config WHERE inbox_schema = $1 AND inbox_name = $2`, schema, name).
		Scan(&c.ID, &c.EventType, &c.ReceivedAt)
	if err == pgx.ErrNoRows { //nolint:errorlint // QueryRow returns it bare
		return c, nil
	}
	return c, err
}

// registeredSchema returns the schema of a registered inbox that has its table, "" if there
// is none or the role may not read it.
func registeredSchema(ctx context.Context, db pg.Querier, name string) (schema string, err error) {
	var readable bool
	if err := db.QueryRow(ctx, readableSQL).Scan(&readable); err != nil || !readable {
		return "", err
	}
	err = db.QueryRow(ctx, `SELECT coalesce(max(i.inbox_schema), '') FROM pgtrickle.pgt_inbox_config i
		JOIN pg_catalog.pg_class c ON c.relname = i.inbox_name AND c.relnamespace = to_regnamespace(quote_ident(i.inbox_schema))
		WHERE i.inbox_name = $1`, name).Scan(&schema)
	return schema, err
}

// wanted is a field with the possible names of its column; the first one counts.
type wanted struct {
	field                         field
	configured, registered, usual string
	needed                        bool
}

// mapColumns decides which columns are filled, and returns that of the event id.
func (t *table) mapColumns(configured, registered Columns, attrs []attribute) (id attribute, err error) {
	filled := make(map[string]bool)
	var payload attribute
	source := ""
	for _, w := range []wanted{
		{fieldID, configured.ID, registered.ID, "event_id", true},
		{fieldPayload, configured.Payload, registered.Payload, "payload", true},
		{fieldEventType, configured.EventType, registered.EventType, "event_type", false},
		{fieldSource, configured.Source, registered.Source, "source", false},
		{fieldAggregateID, configured.AggregateID, registered.AggregateID, "aggregate_id", false},
		{fieldTraceID, configured.TraceID, registered.TraceID, "trace_id", false},
		{fieldReceivedAt, configured.ReceivedAt, registered.ReceivedAt, "received_at", false},
	} {
		attr, ok, err := t.columnOf(&w, attrs)
		if err != nil {
			return id, relay.Fatal(err)
		}
		if !ok {
			continue
		}
		if filled[attr.name] {
			return id, relay.Fatal(fmt.Errorf("column %q of inbox %s has two meanings, one of them %s: map each to its own column",
				attr.name, t.name, w.usual))
		}
		filled[attr.name] = true
		if w.field == fieldReceivedAt {
			t.receivedAt = pgx.Identifier{attr.name}.Sanitize()
			continue
		}
		t.columns = append(t.columns, newColumn(w.field, attr))
		switch {
		case w.field == fieldID:
			id, t.idColumn = attr, attr.name
		case w.field == fieldPayload:
			payload = attr
		case w.field == fieldSource && attr.selects:
			source = pgx.Identifier{attr.name}.Sanitize()
		}
	}
	t.compare = t.compareSQL(id, payload, source)
	t.numberParams()
	return id, t.checkRequired(filled, attrs)
}

// columnOf returns the column for w, and whether there is one that can be filled.
func (t *table) columnOf(w *wanted, attrs []attribute) (attr attribute, ok bool, err error) {
	name := cmp.Or(w.configured, w.registered, w.usual)
	if name == "-" && !w.needed {
		return attr, false, nil
	}
	attr, ok = find(attrs, name)
	switch {
	case !ok && (w.needed || w.configured != ""):
		return attr, false, t.noColumn(name, w.usual, attrs)
	case !ok:
		return attr, false, nil
	case attr.generated:
		return attr, false, fmt.Errorf("column %q of inbox %s is generated, so nothing can be written to it: map %s to another column",
			name, t.name, w.usual)
	case !attr.insert:
		return attr, false, fmt.Errorf("no INSERT privilege on column %q of %s: GRANT INSERT ON %s to the relay's role, or map %s to \"-\"",
			name, t.name, t.name, w.usual)
	case w.field == fieldReceivedAt && attr.base != pgtype.TimestamptzOID && attr.base != pgtype.TimestampOID:
		return attr, false, nil // a column of the user's own; its default fills it
	}
	return attr, true, nil
}

// checkRequired makes sure that every column that must have a value gets one.
func (t *table) checkRequired(filled map[string]bool, attrs []attribute) error {
	for _, a := range attrs {
		if a.required && !a.generated && !filled[a.name] {
			return relay.Fatal(fmt.Errorf(
				"column %q of inbox %s is NOT NULL without a default: ALTER TABLE %s ALTER COLUMN %s SET DEFAULT …",
				a.name, t.name, t.name, pgx.Identifier{a.name}.Sanitize()))
		}
	}
	return nil
}

// numberParams numbers the parameters: first the arrays, then the constants.
func (t *table) numberParams() {
	for _, c := range t.columns {
		t.paramOIDs = append(t.paramOIDs, c.array)
	}
	for i := range t.columns {
		if c := &t.columns[i]; c.field != fieldID && c.field != fieldPayload {
			t.paramOIDs = append(t.paramOIDs, pgtype.TextOID)
			c.constant = len(t.paramOIDs)
		}
	}
}

func find(attrs []attribute, name string) (attribute, bool) {
	for _, a := range attrs {
		if a.name == name {
			return a, true
		}
	}
	return attribute{}, false
}

func (t *table) noColumn(name, usual string, attrs []attribute) error {
	names := make([]string, len(attrs))
	for i, a := range attrs {
		names[i] = a.name
	}
	hint := "it has " + strings.Join(names, ", ")
	if near := relaycfg.Nearest(name, names); near != "" {
		hint = "did you mean " + strconv.Quote(near) + "?"
	}
	return fmt.Errorf("inbox %s has no column %q for the %s: %s", t.name, name, strings.ReplaceAll(usual, "_", " "), hint)
}

// newColumn picks the cheapest form in which the server takes the field.
// Strings are not cast, because a cast to varchar(n) would cut them silently
// where an assignment is an error.
func newColumn(f field, a attribute) column {
	c := column{field: f, name: pgx.Identifier{a.name}.Sanitize(), array: pgtype.TextArrayOID}
	if f == fieldPayload {
		switch a.base {
		case pgtype.JSONBOID:
			// Text, because an array of jsonb is larger than its text, and the server
			// builds the whole array before it uses the first row.
			c.cast = "pg_catalog.jsonb"
			return c
		case pgtype.JSONOID:
			c.array = pgtype.JSONArrayOID
			return c
		case pgtype.ByteaOID:
			c.array = pgtype.ByteaArrayOID
			return c
		}
	}
	if a.category != "S" {
		c.cast = a.qualified
	}
	return c
}

const uniqueKeysSQL = `
SELECT count(*) FILTER (WHERE alone), count(*) FILTER (WHERE indisunique AND NOT alone), coalesce(bool_or(leads), false)
FROM (
    SELECT i.indisunique,
           i.indisunique AND i.indimmediate AND i.indnkeyatts = 1 AND i.indkey[0] = $2 AND i.indpred IS NULL AS alone,
           i.indkey[0] = $2 AND i.indpred IS NULL AS leads
    FROM pg_catalog.pg_index i
    WHERE i.indrelid = $1::oid AND i.indisvalid AND i.indislive
) k`

// chooseConflict decides how duplicates are recognised.
func (t *table) chooseConflict(ctx context.Context, db pg.Querier, rel relation, id attribute) error {
	var alone, others int
	var leads bool
	if err := db.QueryRow(ctx, uniqueKeysSQL, rel.oid, id.num).Scan(&alone, &others, &leads); err != nil {
		return fmt.Errorf("read unique keys of inbox %s: %w", t.name, err)
	}
	column := pgx.Identifier{id.name}.Sanitize()
	switch {
	case alone > 0 && id.selects:
		t.targeted = true
	case alone > 0 && others == 0:
		// ON CONFLICT DO NOTHING can only mean the event id.
	case alone > 0:
		return relay.Fatal(fmt.Errorf(
			"inbox %s has several unique keys and %s is unreadable: GRANT SELECT (%s) ON %s to the relay's role",
			t.name, column, column, t.name))
	case rel.partitioned && leads && id.selects:
		t.lookup = true
	case rel.partitioned && leads:
		return relay.Fatal(fmt.Errorf(
			"inbox %s is partitioned without a unique key on %s alone: GRANT SELECT (%s) ON %s to the relay's role",
			t.name, column, column, t.name))
	case rel.partitioned:
		return relay.Fatal(fmt.Errorf("inbox %s has no index by which a duplicate is found: CREATE INDEX ON %s (%s)",
			t.name, t.name, column))
	default:
		return relay.Fatal(fmt.Errorf(
			"inbox %s has no unique key on %s (not partial, not deferrable): ALTER TABLE %s ADD UNIQUE (%s)",
			t.name, column, t.name, column))
	}
	return nil
}

// insertSQL returns the INSERT of a batch, which with dedup passes over messages
// that are there.
//
// It runs with the role's own search path, which triggers of the table may need, and
// names the schema of every function, type and operator. unnest of several arrays is
// syntax: PostgreSQL takes its own.
func (t *table) insertSQL(dedup bool) string {
	var into, values, params, names strings.Builder
	for i, c := range t.columns {
		if i > 0 {
			for _, b := range []*strings.Builder{&into, &values, &params, &names} {
				b.WriteString(", ")
			}
		}
		n := strconv.Itoa(i + 1)
		into.WriteString(c.name)
		names.WriteString("c" + n)
		params.WriteString("$" + n + "::" + arrayType(c.array))
		values.WriteString(c.value(n))
	}
	if t.receivedAt != "" {
		into.WriteString(", " + t.receivedAt)
		values.WriteString(", pg_catalog.clock_timestamp()")
	}
	ordinality := ""
	if t.lookup {
		ordinality = " WITH ORDINALITY"
		names.WriteString(", n")
	}
	sql := "INSERT INTO " + t.name + " (" + into.String() + ")\nSELECT " + values.String() +
		"\nFROM unnest(" + params.String() + ")" + ordinality + " AS m(" + names.String() + ")"
	id := pgx.Identifier{t.idColumn}.Sanitize()
	switch {
	case !dedup:
		return sql
	case t.targeted:
		return sql + "\nON CONFLICT (" + id + ") DO NOTHING"
	case t.lookup:
		return sql + "\nWHERE NOT EXISTS (SELECT FROM " + t.name + " AS old WHERE old." + id +
			" OPERATOR(pg_catalog.=) " + t.columns[0].value("1") + ")" +
			"\nORDER BY m.n" // the plan may be a hash join, which would lose the order
	}
	return sql + "\nON CONFLICT DO NOTHING"
}

func (c column) value(n string) string {
	v := "m.c" + n
	if c.constant > 0 {
		v = "coalesce(" + v + ", $" + strconv.Itoa(c.constant) + "::pg_catalog.text)"
	}
	if c.cast != "" {
		v += "::" + c.cast
	}
	return v
}

func arrayType(oid uint32) string {
	switch oid {
	case pgtype.JSONArrayOID:
		return "pg_catalog.json[]"
	case pgtype.ByteaArrayOID:
		return "pg_catalog.bytea[]"
	}
	return "pg_catalog.text[]"
}
