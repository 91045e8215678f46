package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// table is what is known about an outbox table.
type table struct {
	schema, name string
	oid          uint32
	filenode     uint32
	partitioned  bool
	rls          bool
	stream       entry    // where the catalog has it
	streamTable  string   // for {stream_table}
	keys         []string // primary key of the stream table
	columns      map[string]column
	plain        bool // a row is one event, not a container of deltas

	id, payload, created, refresh, claim, op, key, headers, xid string // columns; "" = none

	idIndexed, xidIndexed, idUnique bool
	idOwner                         sequence
	delta                           delta
}

type column struct {
	typ     string // format_type
	notNull bool
	def     string // the default's expression
	soleKey bool   // it is the whole primary key
}

func (c column) integer() bool {
	return c.typ == "bigint" || c.typ == "integer" || c.typ == "smallint"
}

// sequence numbers the rows.
type sequence struct {
	oid, filenode           uint32
	name                    string
	increment, cache, start int64
	cycle                   bool
	readable                bool
}

// numbers reports whether the sequence can be asked how far ids have been handed
// out, be it to sessions that have yet to use them.
func (q *sequence) numbers() bool { return q.oid != 0 && q.readable && q.increment > 0 }

// tells reports whether the sequence's last value is the highest id that anybody
// has been given: it may be read, and sessions do not take ids in advance.
func (q *sequence) tells() bool {
	return q.numbers() && q.cache == 1
}

// lastSQL reads the highest id that was handed out. It takes no lock that a
// writer takes, as pg_sequence_last_value does.
func (q *sequence) lastSQL() string {
	return `SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM ` + q.name
}

// delta is the table beside an outbox that holds the rows of claim checks.
type delta struct {
	name     string // quoted and qualified; "" = there is none
	op, data string // quoted columns
	looked   bool
}

func (t *table) qualified() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// resolve finds the outbox that a pipeline calls name.
func resolve(ctx context.Context, q querier, name string, set Settings) (*table, error) {
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
	if !t.plain {
		if err := t.findDelta(ctx, q); err != nil {
			return nil, err
		}
	}
	return t, nil
}

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// split cuts a name in two at its dot; quoted names are understood.
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

// enabledSQL finds the extension's outboxes. Its stream_table_oid is a number of its
// own catalog.
const enabledSQL = `
SELECT c.outbox_table_name, c.stream_table_name, coalesce(s.sch, ''), c.stream_table_name
FROM pgtrickle.pgt_outbox_config c
LEFT JOIN LATERAL (%s) s ON true
WHERE ($1 = '' OR $1 = 'pgtrickle') AND c.outbox_table_name = $2
   OR c.stream_table_name = $2 AND ($1 = '' OR s.sch IS NULL OR s.sch = $1)
ORDER BY (c.outbox_table_name = $2) DESC, c.created_at, c.outbox_table_name`

// The schema of a stream table: as the extension has it, and, where its catalog is
// not for us, by the oid of the relation.
const (
	extensionSchemaSQL = `SELECT p.pgt_schema::text AS sch FROM pgtrickle.pgt_stream_tables p WHERE p.pgt_id = c.stream_table_oid::bigint`
	relationSchemaSQL  = `SELECT n.nspname::text AS sch FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = c.stream_table_oid AND r.relname = c.stream_table_name`
)

// plainSQL finds the outboxes that we made. Their tables are known by their triggers,
// as stream_table_oid is stale after a restore, and answer to the name that they have
// now and to the one that they had when their outbox was made. The inner query leaves
// few for which the triggers must be looked for.
const plainSQL = `
SELECT e.outbox_table_name, e.stream_table_name, coalesce(s.sch, e.stream_schema, ''), coalesce(s.rel, e.stream_table_name)
FROM (
	SELECT c.outbox_table_name, c.stream_table_name, c.created_at, o.stream_schema
	FROM pgtrickle.pgt_outbox_config c LEFT JOIN pgtrickle.relay_outboxes o USING (outbox_table_name)
	WHERE c.outbox_table_name = $2::text OR c.stream_table_name = $2 OR o.capture_function IN (
		SELECT p.proname FROM pg_class r JOIN pg_trigger g ON g.tgrelid = r.oid JOIN pg_proc p ON p.oid = g.tgfoid WHERE r.relname = $2)) e
LEFT JOIN LATERAL (SELECT n.nspname::text AS sch, r.relname::text AS rel
	FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = pgtrickle._relay_stream_oid(e.outbox_table_name)) s ON true
WHERE ($1::text = '' OR $1 = 'pgtrickle') AND e.outbox_table_name = $2
   OR s.rel = $2 AND ($1 = '' OR s.sch = $1)
   OR e.stream_table_name = $2 AND ($1 = '' OR e.stream_schema IS NULL OR e.stream_schema = $1)
ORDER BY (e.outbox_table_name = $2) DESC, e.created_at, e.outbox_table_name`

// entry is an outbox of pgt_outbox_config. Stream is its stream table as it was called
// when the outbox was made, and Schema and Table are what it is called now.
type entry struct{ Outbox, Stream, Schema, Table string }

// noOutboxError says that no outbox has a name.
type noOutboxError struct{ name string }

func (e *noOutboxError) Error() string {
	return fmt.Sprintf("there is no outbox %q: SELECT pgtrickle.enable_outbox('%s') makes one, or give the name of an outbox table", e.name, e.name)
}

// ambiguousError says that a name is that of several stream tables.
type ambiguousError struct {
	name  string
	found []entry
}

func (e *ambiguousError) Error() string {
	var names []string
	for _, f := range e.found {
		names = append(names, f.Schema+"."+f.Table+" (outbox "+f.Outbox+")")
	}
	return fmt.Sprintf("stream_table %q means more than one stream table: %s; give the schema or the outbox table's name", e.name, strings.Join(names, ", "))
}

func (e *ambiguousError) outboxes() []string {
	var names []string
	for _, f := range e.found {
		names = append(names, f.Outbox)
	}
	return names
}

// locate finds an outbox and the primary key of its stream table.
func locate(ctx context.Context, q querier, name string) (*table, error) {
	t, err := find(ctx, q, name)
	if err == nil && t.stream.Table != "" {
		t.keys, err = primaryKey(ctx, q, t.stream.Schema, t.stream.Table)
	}
	return t, err
}

// find consults pgt_outbox_config first, since a stream table's name is also
// that of a table; the outbox's name is never derived from it.
func find(ctx context.Context, q querier, name string) (*table, error) {
	schema, rel := split(name)
	if rel == "" {
		return nil, relay.Fatal(errors.New("stream_table is empty: name a stream table or an outbox table"))
	}
	sql, err := catalogSQL(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("look for outbox %q: %w", name, err)
	}
	if sql != "" {
		rows, err := q.Query(ctx, sql, schema, rel)
		if err != nil {
			return nil, fmt.Errorf("look for outbox %q in pgtrickle.pgt_outbox_config: %w", name, err)
		}
		found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
		if err != nil {
			return nil, fmt.Errorf("look for outbox %q in pgtrickle.pgt_outbox_config: %w", name, err)
		}
		if len(found) > 1 && found[0].Outbox != rel {
			return nil, relay.Fatal(&ambiguousError{name, found})
		}
		if len(found) > 0 {
			return &table{schema: "pgtrickle", name: found[0].Outbox, streamTable: found[0].Stream, stream: found[0]}, nil
		}
	}
	t := &table{}
	err = q.QueryRow(ctx, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.oid = coalesce(to_regclass(CASE WHEN $1 = '' THEN format('%I', $2::text) ELSE format('%I.%I', $1::text, $2::text) END), to_regclass(CASE WHEN $1 = '' THEN format('pgtrickle.%I', $2::text) END))`,
		schema, rel).Scan(&t.schema, &t.name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, relay.Fatal(&noOutboxError{name})
	}
	if err != nil {
		return nil, fmt.Errorf("look for outbox %q: %w", name, err)
	}
	t.streamTable = strings.TrimPrefix(t.name, "outbox_")
	return t, nil
}

// catalogSQL returns the query that finds an outbox in the catalog that there is, ""
// where there is none.
func catalogSQL(ctx context.Context, q querier) (string, error) {
	var config, streams, extension, plain bool
	err := q.QueryRow(ctx, `SELECT
		coalesce(has_table_privilege(to_regclass('pgtrickle.pgt_outbox_config'), 'SELECT'), false),
		coalesce(has_table_privilege(to_regclass('pgtrickle.pgt_stream_tables'), 'SELECT'), false),
		to_regclass('pgtrickle.pgt_stream_tables') IS NOT NULL,
		coalesce(has_table_privilege(to_regclass('pgtrickle.relay_outboxes'), 'SELECT')
			AND has_function_privilege(to_regprocedure('pgtrickle._relay_stream_oid(text)'), 'EXECUTE'), false)`).Scan(&config, &streams, &extension, &plain)
	switch {
	case err != nil || !config:
		return "", err
	case streams:
		return fmt.Sprintf(enabledSQL, extensionSchemaSQL), nil
	case plain && !extension:
		return plainSQL, nil
	}
	return fmt.Sprintf(enabledSQL, relationSchemaSQL), nil
}

// primaryKey returns the columns of a table's primary key, nil when it has none
// or they cannot be known.
func primaryKey(ctx context.Context, q querier, schema, rel string) ([]string, error) {
	rows, err := q.Query(ctx, `
		SELECT a.attname::text
		FROM pg_index i
		JOIN pg_class c ON c.oid = i.indrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace
		CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(num, pos)
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num
		WHERE i.indisprimary AND n.nspname = $1 AND c.relname = $2
		ORDER BY k.pos`, schema, rel)
	if err != nil {
		return nil, fmt.Errorf("read primary key of %s.%s: %w", schema, rel, err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read primary key of %s.%s: %w", schema, rel, err)
	}
	// The extension's internal key says nothing to a reader of the row.
	if len(keys) == 0 || slices.Contains(keys, "__pgt_row_id") {
		return nil, nil
	}
	return keys, nil
}

func (t *table) introspect(ctx context.Context, q querier) error {
	var kind string
	var usage, canRead bool
	err := q.QueryRow(ctx, `SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0::oid), c.relkind::text, row_security_active(c.oid),
			has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2`, t.schema, t.name).
		Scan(&t.oid, &t.filenode, &kind, &t.rls, &usage, &canRead)
	if errors.Is(err, pgx.ErrNoRows) {
		return relay.Fatal(fmt.Errorf("outbox table %s does not exist, though pgtrickle.pgt_outbox_config names it: disable_outbox and enable_outbox make it again", t.qualified()))
	}
	if err != nil {
		return fmt.Errorf("read definition of %s: %w", t.qualified(), err)
	}
	t.partitioned = kind == "p"
	switch {
	case kind != "r" && kind != "p":
		return relay.Fatal(fmt.Errorf("%s is not a table: an outbox must be one, since its writers' locks and transactions are looked at", t.qualified()))
	case !usage:
		return relay.Fatal(fmt.Errorf("no permission for schema %s: GRANT USAGE ON SCHEMA %s TO pgtrickle_relay", t.schema, quote(t.schema)))
	case !canRead:
		return relay.Fatal(fmt.Errorf("no permission to read %s: GRANT SELECT ON %s TO pgtrickle_relay", t.qualified(), t.qualified()))
	case t.rls:
		return relay.Fatal(fmt.Errorf("row level security would hide rows of %s from the relay: CREATE POLICY relay ON %s FOR SELECT TO pgtrickle_relay USING (true), and ALTER ROLE … BYPASSRLS for the relay's login role", t.qualified(), t.qualified()))
	}
	rows, err := q.Query(ctx, `SELECT a.attname::text, format_type(a.atttypid, NULL), a.attnotnull, coalesce(pg_get_expr(d.adbin, d.adrelid), ''), coalesce(i.indnkeyatts = 1 AND i.indkey[0] = a.attnum, false)
		FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped`, t.oid)
	if err != nil {
		return fmt.Errorf("read columns of %s: %w", t.qualified(), err)
	}
	t.columns = make(map[string]column)
	var name string
	var c column
	_, err = pgx.ForEachRow(rows, []any{&name, &c.typ, &c.notNull, &c.def, &c.soleKey}, func() error {
		t.columns[name] = c
		return nil
	})
	if err != nil {
		return fmt.Errorf("read columns of %s: %w", t.qualified(), err)
	}
	return nil
}

// assign decides which column plays which part.
func (t *table) assign(set Settings) error {
	has := func(name string) string {
		if _, ok := t.columns[name]; ok {
			return name
		}
		return ""
	}
	var missing error
	pick := func(key, want, fallback string) string {
		if want != "" && has(want) == "" && missing == nil {
			missing = relay.Fatal(fmt.Errorf("%s: table %s has no column %q; it has %s", key, t.qualified(), want, strings.Join(t.columnNames(), ", ")))
		}
		if want != "" {
			return want
		}
		return has(fallback)
	}
	t.id = cmp.Or(pick("id_column", set.IDColumn, "id"), t.soleKey())
	t.payload = pick("payload_column", set.PayloadColumn, "payload")
	t.created = pick("created_at_column", set.CreatedColumn, "created_at")
	t.op = pick("op_column", set.OpColumn, "")
	t.key = pick("key_column", set.KeyColumn, "")
	t.headers = pick("headers_column", set.HeadersColumn, "")
	t.xid = pick("xid_column", set.XidColumn, "")
	if missing != nil {
		return missing
	}
	t.plain = has("is_claim_check") == "" || set.PayloadColumn != "" || set.OpColumn != "" || set.KeyColumn != "" || set.HeadersColumn != ""
	if !t.plain {
		t.claim, t.refresh = "is_claim_check", has("refresh_id")
	}
	if t.xid == "" {
		for _, name := range t.columnNames() {
			if c := t.columns[name]; c.typ == "xid8" && strings.Contains(c.def, "pg_current_xact_id()") {
				t.xid = name
			}
		}
	}
	switch {
	case t.id == "":
		return relay.Fatal(fmt.Errorf("table %s has no column id and no primary key of one integer column: set id_column", t.qualified()))
	case t.payload == "":
		return relay.Fatal(fmt.Errorf("table %s is no outbox, it has no column payload: SELECT pgtrickle.enable_outbox('%s.%s') makes an outbox for it, or set payload_column", t.qualified(), t.schema, t.name))
	}
	if c := t.columns[t.id]; !c.integer() {
		return relay.Fatal(fmt.Errorf("column %s of %s has type %s: an outbox is read in the order of an integer id; add one: ALTER TABLE %s ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
			t.id, t.qualified(), c.typ, t.qualified()))
	}
	switch typ := t.columns[t.payload].typ; typ {
	case "json", "jsonb", "text", "bytea", "character varying":
	default:
		return relay.Fatal(fmt.Errorf("payload column %s of %s has type %s: must be jsonb, json, text or bytea", t.payload, t.qualified(), typ))
	}
	if t.headers != "" && !strings.HasPrefix(t.columns[t.headers].typ, "json") {
		return relay.Fatal(fmt.Errorf("headers column %s of %s has type %s: must be jsonb", t.headers, t.qualified(), t.columns[t.headers].typ))
	}
	return nil
}

// soleKey returns the integer column that is the whole primary key, "" where there
// is none.
func (t *table) soleKey() string {
	for name, c := range t.columns {
		if c.soleKey && c.integer() {
			return name
		}
	}
	return ""
}

func (t *table) columnNames() []string {
	var names []string
	for n := range t.columns {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// numbering finds where ids come from and which indexes help to read by them.
func (t *table) numbering(ctx context.Context, q querier) error {
	err := q.QueryRow(ctx, `
		SELECT s.seqrelid, coalesce(pg_relation_filenode(s.seqrelid), 0::oid), s.seqrelid::regclass::text, s.seqincrement, s.seqcache, s.seqmin, s.seqcycle,
			coalesce(has_sequence_privilege(s.seqrelid, 'SELECT'), false)
		FROM pg_attribute a
		LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
		JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass
			AND (d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid AND d.deptype = 'n')
			OR (d.classid = 'pg_class'::regclass AND d.deptype = 'i' AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum)
		JOIN pg_sequence s ON s.seqrelid = CASE WHEN d.deptype = 'n' THEN d.refobjid ELSE d.objid END
		WHERE a.attrelid = $1 AND a.attname = $2
		LIMIT 1`, t.oid, t.id).
		Scan(&t.idOwner.oid, &t.idOwner.filenode, &t.idOwner.name, &t.idOwner.increment, &t.idOwner.cache, &t.idOwner.start, &t.idOwner.cycle, &t.idOwner.readable)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("look for the sequence of %s.%s: %w", t.qualified(), t.id, err)
	}
	err = q.QueryRow(ctx, `
		SELECT coalesce(bool_or(a.attname = $2), false), coalesce(bool_or(a.attname = $2 AND i.indisunique AND i.indnkeyatts = 1), false), coalesce(bool_or(a.attname = $3), false)
		FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
		JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am am ON am.oid = ic.relam
		WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL AND am.amname = 'btree'`, t.oid, t.id, t.xid).Scan(&t.idIndexed, &t.idUnique, &t.xidIndexed)
	if err != nil {
		return fmt.Errorf("look for indexes of %s: %w", t.qualified(), err)
	}
	if !t.idIndexed {
		return relay.Fatal(fmt.Errorf("column %s of %s has no index: CREATE UNIQUE INDEX CONCURRENTLY ON %s (%s)", t.id, t.qualified(), t.qualified(), quote(t.id)))
	}
	return nil
}

// findDelta looks for the claim-check table. The extension builds its name from
// the first 48 characters of the stream table; other writers of the format put
// the outbox's own name in it.
func (t *table) findDelta(ctx context.Context, q querier) error {
	rows, err := q.Query(ctx, `
		SELECT c.relname::text, array_agg(a.attname::text)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE n.nspname = $1 AND c.relkind IN ('r', 'p') AND c.relname = ANY (ARRAY[left('outbox_delta_rows_' || left($2, 48), 63), left('outbox_delta_rows_' || $2, 63), left('outbox_delta_rows_' || $3, 63)])
		GROUP BY c.relname ORDER BY c.relname = left('outbox_delta_rows_' || left($2, 48), 63) DESC`, t.schema, t.streamTable, t.name)
	if err != nil {
		return fmt.Errorf("look for the delta table of %s: %w", t.qualified(), err)
	}
	var name string
	var cols []string
	t.delta = delta{looked: true}
	_, err = pgx.ForEachRow(rows, []any{&name, &cols}, func() error {
		if t.delta.name != "" || !slices.Contains(cols, "outbox_id") || !slices.Contains(cols, "row_num") {
			return nil
		}
		switch {
		case slices.Contains(cols, "row_op") && slices.Contains(cols, "row_data"):
			t.delta.op, t.delta.data = "row_op", "row_data"
		case slices.Contains(cols, "op") && slices.Contains(cols, "payload"):
			t.delta.op, t.delta.data = "op", "payload"
		default:
			return nil
		}
		t.delta.name = pgx.Identifier{t.schema, name}.Sanitize()
		return nil
	})
	if err != nil {
		return fmt.Errorf("look for the delta table of %s: %w", t.qualified(), err)
	}
	return nil
}
