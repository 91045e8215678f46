package migrate_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// payloads returns what an outbox holds, in order, without the empty lists.
func payloads(t testing.TB, pool *pgxpool.Pool, outbox string) string {
	t.Helper()
	return strings.Join(query(t, pool, fmt.Sprintf(`
		SELECT (SELECT jsonb_object_agg(key, value) FROM jsonb_each(payload::jsonb - 'v') WHERE value <> '[]')::text
		FROM pgtrickle.%s WHERE payload ->> 'v' = '1' ORDER BY id`, pgx.Identifier{outbox}.Sanitize())), "\n")
}

func TestCapture(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for name, tc := range map[string]struct{ table, setup, writes, want string }{
		"one row": {
			"a", `CREATE TABLE a (id int PRIMARY KEY, v text)`,
			`INSERT INTO a VALUES (1, 'x'); UPDATE a SET v = 'y'; DELETE FROM a`,
			`{"inserted": [{"v": "x", "id": 1}]}
{"updated": [{"new": {"v": "y", "id": 1}, "old": {"v": "x", "id": 1}}]}
{"deleted": [{"v": "y", "id": 1}]}`,
		},
		"many rows of one statement": {
			"b", `CREATE TABLE b (id int)`,
			`INSERT INTO b VALUES (1), (2); UPDATE b SET id = id + 1; DELETE FROM b`,
			`{"inserted": [{"id": 1}]}
{"inserted": [{"id": 2}]}
{"updated": [{"new": {"id": 2}, "old": {"id": 1}}]}
{"updated": [{"new": {"id": 3}, "old": {"id": 2}}]}
{"deleted": [{"id": 2}]}
{"deleted": [{"id": 3}]}`,
		},
		"statements without rows": {"c", `CREATE TABLE c (id int)`, `INSERT INTO c SELECT 1 WHERE false; UPDATE c SET id = 1; DELETE FROM c; TRUNCATE c`, ``},
		"truncate": {
			"d", `CREATE TABLE d (id int)`, `INSERT INTO d VALUES (1), (2); TRUNCATE d`,
			`{"inserted": [{"id": 1}]}
{"inserted": [{"id": 2}]}
{"deleted": [{"id": 1}]}
{"deleted": [{"id": 2}]}`,
		},
		"upsert": {
			"e", `CREATE TABLE e (id int PRIMARY KEY, n int)`, `INSERT INTO e VALUES (1, 1); INSERT INTO e VALUES (1, 2), (2, 2) ON CONFLICT (id) DO UPDATE SET n = excluded.n`,
			`{"inserted": [{"n": 1, "id": 1}]}
{"updated": [{"new": {"n": 2, "id": 1}, "old": {"n": 1, "id": 1}}]}
{"inserted": [{"n": 2, "id": 2}]}`,
		},
		"stored generated column": {"f", `CREATE TABLE f (id int, g int GENERATED ALWAYS AS (id * 2) STORED)`, `INSERT INTO f VALUES (2)`, `{"inserted": [{"g": 4, "id": 2}]}`},
		"columns come and go": {
			"g", `CREATE TABLE g (id int, old text)`, `INSERT INTO g VALUES (1); ALTER TABLE g DROP COLUMN old; ALTER TABLE g ADD new int DEFAULT 5; INSERT INTO g VALUES (2)`,
			`{"inserted": [{"id": 1, "old": null}]}
{"inserted": [{"id": 2, "new": 5}]}`,
		},
		"foreign key cascade": {
			"h", `CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE h (id int REFERENCES parent ON DELETE CASCADE); INSERT INTO parent VALUES (1)`,
			`INSERT INTO h VALUES (1); DELETE FROM parent`, `{"inserted": [{"id": 1}]}
{"deleted": [{"id": 1}]}`,
		},
		"partitions": {
			"p", `CREATE TABLE p (k int, id int) PARTITION BY LIST (k); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 (id int, k int); ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)`,
			`INSERT INTO p VALUES (1, 1), (2, 2); INSERT INTO p2 VALUES (3, 2); UPDATE p SET k = 2 WHERE id = 1; CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3); INSERT INTO p VALUES (3, 4); DELETE FROM p WHERE k = 2; TRUNCATE p; SELECT pgtrickle.outbox_attach_partitions('public.p'); INSERT INTO p3 VALUES (3, 5); TRUNCATE p`,
			`{"inserted": [{"k": 1, "id": 1}]}
{"inserted": [{"k": 2, "id": 2}]}
{"inserted": [{"k": 2, "id": 3}]}
{"deleted": [{"k": 1, "id": 1}]}
{"inserted": [{"k": 2, "id": 1}]}
{"inserted": [{"k": 3, "id": 4}]}
{"deleted": [{"k": 2, "id": 2}]}
{"deleted": [{"k": 2, "id": 3}]}
{"deleted": [{"k": 2, "id": 1}]}
{"deleted": [{"k": 3, "id": 4}]}
{"inserted": [{"k": 3, "id": 5}]}
{"deleted": [{"k": 3, "id": 5}]}`,
		},
		"the same bytes whoever writes": {
			"s", `CREATE TABLE s (at timestamptz, i interval, b bytea, f float8)`,
			`SET TimeZone = 'Asia/Tokyo'; SET IntervalStyle = 'iso_8601'; SET bytea_output = 'escape'; SET extra_float_digits = -10; INSERT INTO s VALUES ('2024-01-01 00:00+00', '1 day', '\x00', 1.0/3); RESET ALL`,
			`{"inserted": [{"b": "\\x00", "f": 0.3333333333333333, "i": "1 day", "at": "2024-01-01T00:00:00+00:00"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, pool, tc.setup)
			run(t, pool, `SELECT pgtrickle.enable_outbox($1)`, "public."+tc.table)
			run(t, pool, tc.writes)
			if got := payloads(t, pool, "outbox_"+tc.table); got != tc.want {
				t.Errorf("%s records\n%s\nwant\n%s", tc.writes, got, tc.want)
			}
		})
	}
}

// TestCaptureColumnsOfAnyName has tables with a column that is called as something
// in the trigger function is, or was.
func TestCaptureColumnsOfAnyName(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for name := range strings.FieldsSeq("t x hidden n j before none o w r s k part count old new old_rows new_rows to_jsonb tg_op tg_relid") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			table := pgx.Identifier{"with_" + name}.Sanitize()
			run(t, pool, fmt.Sprintf(`CREATE TABLE %s (%s jsonb, identifier int)`, table, pgx.Identifier{name}.Sanitize()))
			run(t, pool, `SELECT pgtrickle.enable_outbox($1)`, table)
			writes := strings.NewReplacer("TABLE", table, "COLUMN", pgx.Identifier{name}.Sanitize()).Replace(`
				INSERT INTO TABLE VALUES (NULL, 1);
				UPDATE TABLE SET COLUMN = '{"a": 1}';
				INSERT INTO TABLE VALUES (NULL, 2), ('[]', 3);
				UPDATE TABLE SET identifier = identifier + 10;
				DELETE FROM TABLE WHERE identifier = 11;
				DELETE FROM TABLE;
				INSERT INTO TABLE VALUES ('4', 4), (NULL, 5);
				TRUNCATE TABLE`)
			if _, err := pool.Exec(context.Background(), writes); err != nil {
				t.Fatalf("a write to a table with a column %s fails: %v", name, err)
			}
			want := strings.ReplaceAll(`{"inserted": [{"COLUMN": null, "identifier": 1}]}
{"updated": [{"new": {"COLUMN": {"a": 1}, "identifier": 1}, "old": {"COLUMN": null, "identifier": 1}}]}
{"inserted": [{"COLUMN": null, "identifier": 2}]}
{"inserted": [{"COLUMN": [], "identifier": 3}]}
{"updated": [{"new": {"COLUMN": {"a": 1}, "identifier": 11}, "old": {"COLUMN": {"a": 1}, "identifier": 1}}]}
{"updated": [{"new": {"COLUMN": null, "identifier": 12}, "old": {"COLUMN": null, "identifier": 2}}]}
{"updated": [{"new": {"COLUMN": [], "identifier": 13}, "old": {"COLUMN": [], "identifier": 3}}]}
{"deleted": [{"COLUMN": {"a": 1}, "identifier": 11}]}
{"deleted": [{"COLUMN": null, "identifier": 12}]}
{"deleted": [{"COLUMN": [], "identifier": 13}]}
{"inserted": [{"COLUMN": 4, "identifier": 4}]}
{"inserted": [{"COLUMN": null, "identifier": 5}]}
{"deleted": [{"COLUMN": 4, "identifier": 4}]}
{"deleted": [{"COLUMN": null, "identifier": 5}]}`, "COLUMN", name)
			if got := payloads(t, pool, "outbox_with_"+name); got != want {
				t.Errorf("a table with a column %s records\n%s\nwant\n%s", name, got, want)
			}
		})
	}
}

func TestVirtualColumnsAreLeftOut(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	if one(t, pool, `SELECT (current_setting('server_version_num')::int < 180000)::text`) == "true" {
		t.Skip("virtual generated columns came with PostgreSQL 18")
	}
	run(t, pool, `CREATE TABLE t (id int, v int GENERATED ALWAYS AS (id * 2) VIRTUAL)`)
	run(t, pool, `SELECT pgtrickle.enable_outbox('t')`)
	run(t, pool, `INSERT INTO t VALUES (1); INSERT INTO t VALUES (2), (3); UPDATE t SET id = 9 WHERE id = 1; TRUNCATE t`)
	want := `{"inserted": [{"id": 1}]}
{"inserted": [{"id": 2}]}
{"inserted": [{"id": 3}]}
{"updated": [{"new": {"id": 9}, "old": {"id": 1}}]}
{"deleted": [{"id": 2}]}
{"deleted": [{"id": 3}]}
{"deleted": [{"id": 9}]}`
	if got := payloads(t, pool, "outbox_t"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestLargeStatement changes 12,000 rows by one statement each. The rows are recorded
// in order, one outbox row each, and an update with its own old values.
func TestLargeStatement(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE t (id int, v text)`)
	run(t, pool, `SELECT pgtrickle.enable_outbox('t')`)
	run(t, pool, `INSERT INTO t SELECT g, repeat('x', 1024) FROM generate_series(1, 12000) g`)
	run(t, pool, `UPDATE t SET id = -id`)
	run(t, pool, `DELETE FROM t`)
	got := one(t, pool, `SELECT format('%s %s %s', sum(inserted_count), sum(deleted_count), count(*)) FROM pgtrickle.outbox_t`)
	if got != "24000 24000 36000" {
		t.Errorf("inserted, deleted, rows = %s; want 24000 24000 36000", got)
	}
	unordered := one(t, pool, `
		SELECT count(*)::text FROM (
			SELECT (o.payload -> 'inserted' -> 0 ->> 'id')::int - lag((o.payload -> 'inserted' -> 0 ->> 'id')::int) OVER (ORDER BY o.id) AS step
			FROM pgtrickle.outbox_t o WHERE o.deleted_count = 0) s WHERE step <> 1`)
	mispaired := one(t, pool, `
		SELECT count(*)::text FROM pgtrickle.outbox_t o
		WHERE (o.payload -> 'updated' -> 0 -> 'old' ->> 'id')::int <> -(o.payload -> 'updated' -> 0 -> 'new' ->> 'id')::int`)
	if unordered != "0" || mispaired != "0" {
		t.Errorf("%s rows out of order, %s updates with another row's old values; want none", unordered, mispaired)
	}
}

func TestOutboxNames(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE SCHEMA "Other Schema"; CREATE TABLE orders (id int); CREATE TABLE "Other Schema".orders (id int)`)
	run(t, pool, `SELECT pgtrickle.enable_outbox('orders')`)
	run(t, pool, `SELECT pgtrickle.enable_outbox('"Other Schema".orders')`)
	run(t, pool, `INSERT INTO orders VALUES (1); INSERT INTO "Other Schema".orders VALUES (2)`)
	other := one(t, pool, `SELECT pgtrickle.outbox_status('Other Schema.orders') ->> 'outbox_table_name'`)
	if got := payloads(t, pool, "outbox_orders") + payloads(t, pool, other); got != `{"inserted": [{"id": 1}]}{"inserted": [{"id": 2}]}` {
		t.Errorf("tables of the same name in two schemas record %s", got)
	}
	run(t, pool, `ALTER TABLE orders RENAME TO sales`)
	run(t, pool, `INSERT INTO sales VALUES (3)`)
	if got := one(t, pool, `SELECT pgtrickle.outbox_status('public.sales') ->> 'row_count'`); got != "2" {
		t.Errorf("a renamed table's outbox has %s rows; want 2", got)
	}
	run(t, pool, `SELECT pgtrickle.disable_outbox('sales')`)
	refused(t, pool, "42704", "outbox not enabled for stream table: orders", `SELECT pgtrickle.disable_outbox('orders')`)

	long := strings.Repeat("ä", 31) // 62 bytes
	for _, name := range []string{`"; DROP TABLE pgtrickle.relay_cursors; --`, `'); DROP TABLE pgtrickle.relay_cursors; --`, `a"b'c\d`, `$capture$`, `%s%1$I`, "Näme mit Raum", "select", "x.y", long, long + "x"} {
		run(t, pool, `CREATE TABLE `+pgx.Identifier{name}.Sanitize()+` ("odd ""col" int PRIMARY KEY)`)
		qualified := pgx.Identifier{"public", name}.Sanitize()
		run(t, pool, `SELECT pgtrickle.enable_outbox($1)`, qualified)
		run(t, pool, `INSERT INTO `+qualified+` VALUES (1); UPDATE `+qualified+` SET "odd ""col" = 2; TRUNCATE `+qualified)
		outbox := one(t, pool, `SELECT pgtrickle.outbox_status($1) ->> 'outbox_table_name'`, qualified)
		if got := one(t, pool, `SELECT pgtrickle.outbox_status($1) ->> 'row_count'`, outbox); got != "3" || len(outbox) > 63 {
			t.Errorf("outbox %q of table %q has %s rows; want 3", outbox, name, got)
		}
		run(t, pool, `SELECT pgtrickle.disable_outbox($1)`, "public."+name)
	}
	if got := one(t, pool, `SELECT string_agg(relname, ' ') FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relkind = 'r' AND relname LIKE 'outbox%'`); got != other {
		t.Errorf("left behind: %s; want %s only", got, other)
	}
	if got := query(t, pool, `SELECT proname::text FROM pg_proc WHERE proname LIKE 'pgtrickle\_outbox%'`); len(got) != 1 {
		t.Errorf("trigger functions left behind: %q; want one", got)
	}
}

// TestOutboxesOfLongNames: two tables whose names are equal in all that fits into the name
// of an index have an outbox each.
func TestOutboxesOfLongNames(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	long := strings.Repeat("t", 62)
	for _, table := range []string{long + "a", long + "b"} {
		run(t, pool, `CREATE TABLE `+table+` (id int)`)
		run(t, pool, `SELECT pgtrickle.enable_outbox($1)`, table)
		run(t, pool, `INSERT INTO `+table+` VALUES (1)`)
		if got := one(t, pool, `SELECT pgtrickle.outbox_status($1) ->> 'row_count'`, table); got != "1" {
			t.Errorf("the outbox of %s has %s rows, want 1", table, got)
		}
	}
	if got := one(t, pool, `SELECT count(*)::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid WHERE c.relname LIKE 'outbox_tt%'`); got != "6" {
		t.Errorf("the outboxes have %s indexes, want three each", got)
	}
}

// warned runs sql and returns the warnings, a line each.
func warned(t testing.TB, pool *pgxpool.Pool, sql string) string {
	t.Helper()
	var got []string
	config := pool.Config().ConnConfig
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" {
			got = append(got, n.Message)
		}
	}
	conn, err := pgx.ConnectConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(got, "\n")
}

// TestOutboxOfPartition: an outbox that would miss what is written through the
// parent is refused.
func TestOutboxOfPartition(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE SCHEMA shop;
		CREATE TABLE shop.sales (k int, j int, id int) PARTITION BY LIST (k);
		CREATE TABLE s1 PARTITION OF shop.sales FOR VALUES IN (1) PARTITION BY LIST (j);
		CREATE TABLE s11 PARTITION OF s1 FOR VALUES IN (1);
		CREATE TABLE s2 (k int, j int, id int)`)
	for _, name := range []string{"s1", "s11"} {
		refused(t, pool, "42809", "public."+name+" is a partition of shop.sales: its outbox would not record what is written through that table", `SELECT pgtrickle.enable_outbox($1)`, name)
	}
	if got := warned(t, pool, `SELECT pgtrickle.enable_outbox('s2'); SELECT pgtrickle.enable_outbox('shop.sales')`); got != "" {
		t.Errorf("enable_outbox of a table and of a partitioned one warns: %s", got)
	}
	run(t, pool, `ALTER TABLE shop.sales ATTACH PARTITION s2 FOR VALUES IN (2)`)
	if got := warned(t, pool, `SELECT pgtrickle.outbox_attach_partitions('shop.sales')`); got != "" {
		t.Errorf("outbox_attach_partitions warns %q of a partition with an outbox of its own", got)
	}
	writes := func(id int) string {
		return fmt.Sprintf(`INSERT INTO s2 VALUES (2, 0, %[1]d); INSERT INTO shop.sales VALUES (2, 0, %[1]d + 1)`, id)
	}
	run(t, pool, writes(1))
	both := `{"inserted": [{"j": 0, "k": 2, "id": 1}]}
{"inserted": [{"j": 0, "k": 2, "id": 2}]}`
	for _, outbox := range []string{"outbox_s2", "outbox_sales"} {
		if got := payloads(t, pool, outbox); got != both {
			t.Errorf("%s records\n%s\nwant\n%s", outbox, got, both)
		}
	}
	if got := warned(t, pool, `SELECT pgtrickle.disable_outbox('s2'); SELECT pgtrickle.outbox_attach_partitions('shop.sales')`); got != "" {
		t.Errorf("outbox_attach_partitions warns %q of a partition without an outbox", got)
	}
	run(t, pool, `TRUNCATE pgtrickle.outbox_sales; `+writes(3))
	if got := payloads(t, pool, "outbox_sales"); got != `{"inserted": [{"j": 0, "k": 2, "id": 3}]}
{"inserted": [{"j": 0, "k": 2, "id": 4}]}` {
		t.Errorf("the parent's outbox alone records %s", got)
	}
}

// TestOutboxWithInheritance shows the text of the warnings.
func TestOutboxWithInheritance(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE parent (id int); CREATE TABLE child (extra int) INHERITS (parent)`)
	for table, want := range map[string]string{
		"parent": "public.parent has children by INHERITS: what changes their rows is recorded by outboxes of their own only",
		"child":  "",
	} {
		if got := warned(t, pool, `SELECT pgtrickle.enable_outbox('`+table+`')`); got != want {
			t.Errorf("enable_outbox of %s warns %q, want %q", table, got, want)
		}
	}
	run(t, pool, `INSERT INTO child VALUES (1, 5); UPDATE parent SET id = 2; TRUNCATE parent`)
	for outbox, want := range map[string]string{
		"outbox_parent": ``,
		"outbox_child": `{"inserted": [{"id": 1, "extra": 5}]}
{"updated": [{"new": {"id": 2, "extra": 5}, "old": {"id": 1, "extra": 5}}]}
{"deleted": [{"id": 2, "extra": 5}]}`,
	} {
		if got := payloads(t, pool, outbox); got != want {
			t.Errorf("%s records\n%s\nwant\n%s", outbox, got, want)
		}
	}
}

func TestOutboxErrors(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE t (id int); CREATE VIEW v AS SELECT * FROM t; SELECT pgtrickle.enable_outbox('t', 48); SELECT pgtrickle.create_outbox('events')`)
	for _, tc := range []struct{ code, want, sql string }{
		{"42710", "outbox already enabled for stream table: public.t", `SELECT pgtrickle.enable_outbox('public.t')`},
		{"42P01", "stream table not found: nope", `SELECT pgtrickle.enable_outbox('nope')`},
		{"42P01", "stream table not found: a b; c", `SELECT pgtrickle.enable_outbox('a b; c')`},
		{"42809", "public.v is not a table", `SELECT pgtrickle.enable_outbox('v')`},
		{"42809", "pgtrickle.outbox_t belongs to the relay itself", `SELECT pgtrickle.enable_outbox('pgtrickle.outbox_t')`},
		{"42704", "outbox not enabled for stream table: nope", `SELECT pgtrickle.disable_outbox('nope')`},
		{"42704", "outbox not enabled for stream table: nope", `SELECT pgtrickle.outbox_rows_consumed('nope', 1)`},
		{"42704", "outbox not enabled for stream table: nope", `SELECT pgtrickle.outbox_publish('nope', '{}')`},
		{"42710", "outbox already enabled for stream table: events", `SELECT pgtrickle.create_outbox('events')`},
		{"22023", `unknown operation "upsert"`, `SELECT pgtrickle.outbox_publish('events', '{}', 'upsert')`},
		{"22023", `must be a JSON object or a list of objects`, `SELECT pgtrickle.outbox_publish('events', '[1]')`},
		{"22023", `must be a JSON object or a list of objects`, `SELECT pgtrickle.outbox_publish('events', NULL)`},
		{"22023", `the old row belongs to an update of one row`, `SELECT pgtrickle.outbox_publish('events', '{}', 'insert', '{}')`},
		{"22023", `unknown TRUNCATE policy "x"`, `SELECT pgtrickle.outbox_truncate_policy('t', 'x')`},
		{"22023", `retention_hours must be a positive number of hours, not 0`, `CREATE TABLE r (id int); SELECT pgtrickle.enable_outbox('r', 0)`},
	} {
		refused(t, pool, tc.code, tc.want, tc.sql)
	}
	run(t, pool, `SELECT pgtrickle.disable_outbox('nope', p_if_exists => true)`)
	if got := one(t, pool, `SELECT pgtrickle.outbox_status('nope')::text`); got != `{"enabled": false, "stream_table": "nope"}` {
		t.Errorf("outbox_status of nothing = %s", got)
	}

	run(t, pool, `INSERT INTO t VALUES (1); SELECT pgtrickle.outbox_truncate_policy('t', 'refuse')`)
	refused(t, pool, "55000", "TRUNCATE of public.t is refused", `TRUNCATE t`)
	run(t, pool, `SELECT pgtrickle.outbox_truncate_policy('t', 'ignore'); TRUNCATE t`)
	if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.outbox_t`); got != "1" {
		t.Errorf("TRUNCATE under policy ignore recorded %s rows; want only the insert", got)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `SELECT pgtrickle.create_outbox('events')`)
	run(t, pool, `SELECT pgtrickle.outbox_publish('events', '{"a":1}')`)
	run(t, pool, `SELECT pgtrickle.outbox_publish('events', '[{"a":1},{"a":2}]', 'delete')`)
	run(t, pool, `SELECT pgtrickle.outbox_publish('outbox_events', '{"a":2}', 'update', '{"a":1}', '1f0b0000-0000-0000-0000-000000000000')`)
	want := `{"inserted": [{"a": 1}]}
{"deleted": [{"a": 1}, {"a": 2}]}
{"updated": [{"new": {"a": 2}, "old": {"a": 1}}]}`
	if got := payloads(t, pool, "outbox_events"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := one(t, pool, `SELECT string_agg(format('%s/%s', inserted_count, deleted_count), ' ' ORDER BY id) FROM pgtrickle.outbox_events`); got != "1/0 0/2 1/1" {
		t.Errorf("counts are %s; want 1/0 0/2 1/1", got)
	}
}

// TestPublishedHeaders: headers, key and event id go into their columns, and what cannot
// travel is refused.
func TestPublishedHeaders(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `SELECT pgtrickle.create_outbox('events')`)
	run(t, pool, `SELECT pgtrickle.outbox_publish('events', '{"a":1}', p_headers => '{"traceparent": "00-1"}', p_key => 'k', p_event_id => 'e-1')`)
	run(t, pool, `SELECT pgtrickle.outbox_publish('events', '[{"a":1},{"a":2}]', p_key => 'k')`)
	if got := query(t, pool, `SELECT format('%s %s %s', headers, key, event_id) FROM pgtrickle.outbox_events ORDER BY id`); strings.Join(got, "; ") != `{"traceparent": "00-1"} k e-1;  k ` {
		t.Errorf("headers, key and event id are %q", got)
	}
	refused(t, pool, "23505", "event_id", `SELECT pgtrickle.outbox_publish('events', '{"a":1}', p_event_id => 'e-1')`)
	for header, want := range map[string]string{
		`{"a": 1}`:                   "headers must be a JSON object of strings",
		`["a"]`:                      "headers must be a JSON object of strings",
		`{"a b": "x"}`:               `header "a b": a header name is 1 to 128`,
		`{"": "x"}`:                  `header "": a header name is 1 to 128`,
		`{"Nats-Expected": "x"}`:     `header "Nats-Expected": the name is reserved`,
		`{"pgtrickle-op": "x"}`:      `header "pgtrickle-op": the name is reserved`,
		`{"Idempotency-Key": "x"}`:   `header "Idempotency-Key": the name is reserved`,
		`{"CE-Id": "x"}`:             `header "CE-Id": the name is reserved`,
		`{"aws.x": "x"}`:             `header "aws.x": the name is reserved`,
		`{"Content-Type": "x"}`:      `header "Content-Type": the name is reserved`,
		`{"webhook-signature": "x"}`: `header "webhook-signature": the name is reserved`,
		`{"a": "x\r\ny: z"}`:         `header "a": the value holds a control character`,
	} {
		refused(t, pool, "22023", want, `SELECT pgtrickle.outbox_publish('events', '{}', p_headers => $1)`, header)
	}
	refused(t, pool, "22023", "an event id belongs to one event", `SELECT pgtrickle.outbox_publish('events', '[{}]', p_event_id => 'e')`)
	refused(t, pool, "22023", "an event id belongs to one event", `SELECT pgtrickle.outbox_publish('events', '{}', p_event_id => '')`)
}

// TestPublishKeepsItsGrants: a role that might call outbox_publish with five parameters
// may call it with eight.
func TestPublishKeepsItsGrants(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	publisher, _ := roles(t, pool)
	run(t, pool, `SELECT pgtrickle.create_outbox('events'); DROP FUNCTION pgtrickle.outbox_publish;
		CREATE FUNCTION pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
		COMMENT ON FUNCTION pgtrickle.outbox_publish IS 'pgtrickle-relay: the older form';
		REVOKE EXECUTE ON FUNCTION pgtrickle.outbox_publish FROM PUBLIC; GRANT EXECUTE ON FUNCTION pgtrickle.outbox_publish TO `+publisher+`;
		UPDATE pgtrickle.relay_migrations SET checksum = 'old'`)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, `SELECT pgtrickle.outbox_grant_publish('events', $1)`, publisher)
	if got := query(t, pool, `SELECT format('%s %s', pronargs, has_function_privilege($1, oid, 'EXECUTE')) FROM pg_proc WHERE proname = 'outbox_publish'`, publisher); strings.Join(got, ",") != "8 t" {
		t.Errorf("parameters and privilege of outbox_publish: %q, want 8 t", got)
	}
	run(t, pool, `SET LOCAL ROLE `+publisher+`; SELECT pgtrickle.outbox_publish('events', '{"a": 1}', 'insert', NULL, NULL)`)
}

// roles makes a role that owns tables and one that has nothing to do with them.
func roles(t testing.TB, pool *pgxpool.Pool) (owner, stranger string) {
	t.Helper()
	db := one(t, pool, `SELECT current_database()::text`)
	owner, stranger = db+"_app", db+"_mallory"
	for _, role := range []string{owner, stranger} {
		run(t, pool, `CREATE ROLE `+role)
		t.Cleanup(func() { run(t, pool, `DROP OWNED BY `+role+`; DROP ROLE `+role) })
	}
	return owner, stranger
}

// TestPrivileges tries what a stranger and what a table's owner may do.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := migrated(t)
	owner, stranger := roles(t, pool)
	run(t, pool, `GRANT EXECUTE ON FUNCTION pgtrickle.create_inbox TO `+owner)
	run(t, pool, `CREATE SCHEMA app AUTHORIZATION `+owner)
	run(t, pool, `GRANT CREATE, USAGE ON SCHEMA public TO `+stranger)
	as := func(role, sql string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL ROLE `+role); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, sql)
			return err
		})
	}
	may := func(role, sql string) {
		t.Helper()
		if err := as(role, sql); err != nil {
			t.Errorf("%s may not %s: %v", role, sql, err)
		}
	}
	mayNot := func(role, sql string) {
		t.Helper()
		if err := as(role, sql); err == nil {
			t.Errorf("%s may %s", role, sql)
		}
	}
	mayNot(owner, `CREATE TABLE app.t (id int); SELECT pgtrickle.enable_outbox('app.t')`)
	run(t, pool, `GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox TO `+owner)
	may(owner, `CREATE TABLE app.t (id int); SELECT pgtrickle.enable_outbox('app.t')`)
	may(owner, `INSERT INTO app.t VALUES (1); TRUNCATE app.t`)
	may(owner, `SELECT pgtrickle.outbox_status('app.t')`)
	may(owner, `SELECT pgtrickle.create_inbox('box', 'app'); SELECT pgtrickle.inbox_health('box')`)
	mayNot(owner, `INSERT INTO pgtrickle.outbox_t (id, payload) VALUES (9, '{}')`)
	mayNot(owner, `INSERT INTO pgtrickle.outbox_t (event_id) VALUES ('forged')`)
	mayNot(owner, `DELETE FROM pgtrickle.outbox_t`)
	mayNot(owner, `SELECT pgtrickle.outbox_publish('app.t', '{}')`)
	mayNot(owner, `SELECT pgtrickle.create_inbox('box2')`) // no CREATE on schema pgtrickle

	run(t, pool, `GRANT USAGE ON SCHEMA app TO `+stranger+`; GRANT INSERT, TRUNCATE ON app.t TO `+stranger)
	may(stranger, `INSERT INTO app.t VALUES (2)`) // recorded without rights on the outbox
	for _, sql := range []string{
		`SELECT * FROM pgtrickle.outbox_t`,
		`SELECT pgtrickle.outbox_status('app.t')`,
		`SELECT pgtrickle.disable_outbox('app.t')`,
		`SELECT pgtrickle._relay_drop_outbox('outbox_t')`,
		`SELECT pgtrickle._relay_create_outbox('app.t', 24)`,
		`SELECT pgtrickle._relay_describe_outbox('outbox_t', 'app.t', 'ignore')`,
		`SELECT pgtrickle.outbox_truncate_policy('app.t', 'ignore')`,
		`SELECT pgtrickle.outbox_publish('app.t', '{}')`,
		`SELECT pgtrickle.outbox_rows_consumed('app.t', 1)`,
		`SELECT pgtrickle.create_outbox('mine')`,
		`SELECT pgtrickle.drop_inbox('box')`,
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('drop outbox', 'outbox_t')`,
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('unregister inbox', 'box')`,
		`INSERT INTO pgtrickle._relay_requests (caller, action, target) VALUES ('` + owner + `', 'unregister inbox', 'box')`,
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('nothing', 'box')`,
		`SELECT * FROM pgtrickle._relay_requests`,
		`SELECT pgtrickle.replay_inbox_messages('box', '{}')`,
		`SELECT pgtrickle.set_relay_outbox('p', config => '{}')`,
		`SELECT pgtrickle.enable_relay('p')`,
		`SELECT * FROM pgtrickle.list_relay_configs()`,
		`SELECT * FROM pgtrickle.relay_dlq_list()`,
		`SELECT pgtrickle.relay_grant_access()`,
		`SELECT pgtrickle._relay_capture_truncate('app.t'::regclass, 'x', 'delete', 'outbox_t', NULL, NULL)`,
		`SELECT pgtrickle._relay_write_capture('outbox_t', 'app.t')`,
		`SELECT pgtrickle._relay_drop_capture('outbox_t', 'app.t')`,
		`SELECT pgtrickle.outbox_upgrade('app.t')`,
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('upgrade outbox', 'outbox_t')`,
		// A trigger of its own on the capture function would forge events.
		`CREATE TABLE public.forge (id int); CREATE TRIGGER x AFTER INSERT ON public.forge FOR EACH ROW EXECUTE FUNCTION app.pgtrickle_outbox_t()`,
		// Functions of its own must not be called in place of ours.
		`CREATE FUNCTION public.to_jsonb(record) RETURNS jsonb LANGUAGE sql AS $$ SELECT '{}'::jsonb $$; SET LOCAL search_path = public, pg_catalog; SELECT pgtrickle.disable_outbox('app.t')`,
	} {
		mayNot(stranger, sql)
	}
	run(t, pool, `SELECT pgtrickle.outbox_grant_publish('app.t', $1)`, stranger)
	may(stranger, `SELECT pgtrickle.outbox_publish('app.t', '{"id":3}')`)
	mayNot(stranger, `INSERT INTO pgtrickle.outbox_t (id, payload) VALUES (1, '{}')`)
	mayNot(stranger, `INSERT INTO pgtrickle.outbox_t (xid, payload) VALUES ('3', '{}')`)
	may(owner, `SELECT pgtrickle.drop_inbox('box', p_cascade => true)`)
	may(owner, `SELECT pgtrickle.disable_outbox('app.t')`)
}

// TestGrantPublishWithExtension: pg_trickle's outboxes take their ids from a serial
// column's default, and that by the rights of the role that inserts.
func TestGrantPublishWithExtension(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exttest.Install(t, pool)
	run(t, pool, `CREATE TABLE orders (id int)`)
	exttest.EnableOutbox(t, pool, "public.orders")
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	_, publisher := roles(t, pool)
	publish := `SET LOCAL ROLE ` + publisher + `; SELECT pgtrickle.outbox_publish('orders', '{"id": 1}')`
	refused(t, pool, "42501", "permission denied", publish)
	run(t, pool, `SELECT pgtrickle.outbox_grant_publish('orders', $1)`, publisher)
	run(t, pool, publish)
	if got := payloads(t, pool, "outbox_orders"); got != `{"inserted": [{"id": 1}]}` {
		t.Errorf("the outbox has %s", got)
	}
	refused(t, pool, "42501", "permission denied", `SET LOCAL ROLE `+publisher+`; SELECT setval('pgtrickle.outbox_orders_id_seq', 99)`)
	// DROP OWNED BY revokes only what the owner of an object has granted.
	run(t, pool, `SET LOCAL ROLE pgtrickle_owner; REVOKE ALL ON pgtrickle.outbox_orders FROM `+publisher+
		`; REVOKE USAGE ON SEQUENCE pgtrickle.outbox_orders_id_seq FROM `+publisher+
		`; REVOKE ALL ON SCHEMA pgtrickle FROM `+publisher)
}

// TestDropPartitionReadsLittle: a partition that has to stay costs no scan, and
// those above it are not looked at. They are made in another order than that of
// their bounds, and rows that are old lie above rows that are young.
func TestDropPartitionReadsLittle(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for by, tc := range map[string]struct{ key, bounds string }{
		"id":         {"id", `VALUES ('p1', '0', '1000'), ('p2', '1000', '2000'), ('p3', '2000', '3000'), ('p4', '3000', '4000')`},
		"created_at": {"id, created_at", `VALUES ('p1', '-infinity', now() - interval '40 hours'), ('p2', now() - interval '40 hours', now() - interval '30 hours'), ('p3', now() - interval '30 hours', now() - interval '20 hours'), ('p4', now() - interval '20 hours', 'infinity')`},
	} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			pool := migrated(t)
			run(t, pool, `SELECT pgtrickle.create_outbox('a', 10); SET LOCAL ROLE pgtrickle_owner; ALTER TABLE pgtrickle.outbox_a RENAME TO flat;
				CREATE TABLE pgtrickle.outbox_a (LIKE pgtrickle.flat INCLUDING DEFAULTS INCLUDING IDENTITY, PRIMARY KEY (`+tc.key+`)) PARTITION BY RANGE (`+by+`);
				COMMENT ON TABLE pgtrickle.outbox_a IS 'pgtrickle-relay: outbox of a'; DROP TABLE pgtrickle.flat`)
			run(t, pool, `DO $do$ DECLARE b record; BEGIN
				SET LOCAL ROLE pgtrickle_owner;
				FOR b IN SELECT * FROM (`+tc.bounds+`) b(name, lower, upper) ORDER BY name DESC LOOP
					EXECUTE format('CREATE TABLE pgtrickle.%I PARTITION OF pgtrickle.outbox_a FOR VALUES FROM (%L) TO (%L)', b.name, b.lower, b.upper);
				END LOOP;
			END $do$`)
			run(t, pool, `INSERT INTO pgtrickle.outbox_a (id, created_at, payload) SELECT g, now() - make_interval(hours => (ARRAY[45, 35, 25])[1 + g / 1000]), '{}' FROM generate_series(0, 2999) g`)
			drop := func(floor int, want string) {
				t.Helper()
				err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					// Of this transaction, and of earlier ones of the session that are not reported yet.
					scans := `SELECT coalesce(jsonb_object_agg(relname, seq_scan), '{}') FROM pg_stat_xact_user_tables WHERE relname ~ '^p[1-4]$'`
					var before, after map[string]int
					var got string
					if err := tx.QueryRow(ctx, scans).Scan(&before); err != nil {
						return err
					}
					if err := tx.QueryRow(ctx, `SELECT concat_ws(' ', part, deleted) FROM pgtrickle._relay_drop_partition('outbox_a', $1)`, floor).Scan(&got); err != nil {
						return err
					}
					if got != want {
						t.Errorf("drop a partition up to %d = %s, want %s", floor, got, want)
					}
					err := tx.QueryRow(ctx, scans).Scan(&after)
					for name, n := range after {
						if n > before[name] {
							t.Errorf("drop a partition up to %d = %s, and %s stays and is read as a whole", floor, got, name)
						}
					}
					return err
				})
				if err != nil {
					t.Fatalf("drop a partition up to %d: %v", floor, err)
				}
			}
			drop(998, "0")
			drop(2999, "pgtrickle.p1 1000")
			if by == "id" {
				run(t, pool, `UPDATE pgtrickle.outbox_a SET created_at = now() WHERE id BETWEEN 1000 AND 1999`)
			} else {
				run(t, pool, `UPDATE pgtrickle.outbox_a SET id = id + 9000 WHERE id BETWEEN 1000 AND 1999`)
			}
			drop(2999, "0")
		})
	}
}

func TestInbox(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE SCHEMA app; SELECT pgtrickle.create_inbox('Odd "inbox"', 'app', 2, with_stats => false, p_retention_hours => 5)`)
	run(t, pool, `INSERT INTO app."Odd ""inbox""" (event_id, retry_count, processed_at) VALUES ('new', 0, NULL), ('failed', 2, NULL), ('done', 0, now())`)
	if got := one(t, pool, `SELECT pgtrickle.inbox_health('Odd "inbox"')::text`); got !=
		`{"status": "WARNING", "inbox_name": "Odd \"inbox\"", "max_retries": 2, "dlq_messages": 1, "inbox_schema": "app", "total_messages": 3, "retention_hours": 5, "pending_messages": 1, "processed_messages": 1}` {
		t.Errorf("inbox_health = %s", got)
	}
	if got := one(t, pool, `SELECT string_agg(event_id, ' ') FROM app."Odd ""inbox""_dlq"`); got != "failed" {
		t.Errorf("the dlq view shows %s; want failed", got)
	}
	if got := one(t, pool, `SELECT pgtrickle.replay_inbox_messages('Odd "inbox"', '{failed,done,none}')::text`); got != "2" {
		t.Errorf("replayed %s; want 2", got)
	}
	if got := one(t, pool, `SELECT count(*)::text FROM app."Odd ""inbox""_pending"`); got != "3" {
		t.Errorf("%s are pending after the replay; want 3", got)
	}
	if got := one(t, pool, `SELECT format('%s %s %s %s', inbox_name, inbox_schema, with_dead_letter, with_stats) FROM pgtrickle.inbox_status()`); got != `Odd "inbox" app t f` {
		t.Errorf("inbox_status = %s", got)
	}
	refused(t, pool, "42710", `inbox already exists: Odd "inbox"`, `SELECT pgtrickle.create_inbox('Odd "inbox"', 'app')`)
	refused(t, pool, "42704", `inbox not found: nope`, `SELECT pgtrickle.drop_inbox('nope')`)
	refused(t, pool, "42704", `inbox not found: nope`, `SELECT pgtrickle.inbox_health('nope')`)
	refused(t, pool, "42622", `is too long`, `SELECT pgtrickle.create_inbox($1)`, strings.Repeat("x", 56))
	run(t, pool, `SELECT pgtrickle.drop_inbox('nope', p_if_exists => true)`)
	run(t, pool, `SELECT pgtrickle.drop_inbox('Odd "inbox"')`)
	if got := one(t, pool, `SELECT count(*)::text FROM app."Odd ""inbox"""`); got != "3" {
		t.Errorf("drop_inbox without p_cascade left %s rows; want 3", got)
	}
	run(t, pool, `SELECT pgtrickle.create_inbox('Odd "inbox"', 'app')`) // over the table that stayed
	run(t, pool, `SELECT pgtrickle.drop_inbox('Odd "inbox"', p_cascade => true)`)
}

// TestPlans checks that the reads on hot paths use their indexes.
func TestPlans(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `SELECT pgtrickle.create_outbox('events')`)
	run(t, pool, `INSERT INTO pgtrickle.outbox_events (payload) SELECT '{}' FROM generate_series(1, 20000)`)
	run(t, pool, `INSERT INTO pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, message_id, key, body, error, class, status)
		SELECT 'g', 'forward', 'p' || g % 50, g::text, (g % 100)::text, 'x', 'e', 'refused', 'dead' FROM generate_series(1, 20000) g`)
	run(t, pool, `SELECT pgtrickle.create_inbox('box')`)
	run(t, pool, `INSERT INTO pgtrickle.box (event_id, processed_at) SELECT g, CASE WHEN g % 1000 > 0 THEN now() END FROM generate_series(1, 20000) g`)
	run(t, pool, `ANALYZE`)
	for _, tc := range []struct{ sql, index string }{
		{`SELECT * FROM pgtrickle.outbox_events WHERE id > 19000 ORDER BY id LIMIT 100`, "outbox_events_pkey"},
		{`SELECT id FROM pgtrickle.outbox_events WHERE xid >= '999999999' ORDER BY id`, "outbox_events_xid_idx"},
		{`SELECT * FROM pgtrickle.relay_dead_letters WHERE relay_group_id = 'g' AND direction = 'forward' AND pipeline = 'p1' AND key = '1' ORDER BY id`, "relay_dead_letters_by_key"},
		{`SELECT * FROM pgtrickle.relay_dead_letters WHERE relay_group_id = 'g' AND direction = 'forward' AND pipeline = 'p1' AND message_id = '51'`, "relay_dead_letters"},
		{`SELECT * FROM pgtrickle.box_pending ORDER BY received_at`, "box_pending_idx"},
	} {
		plan := strings.Join(query(t, pool, `EXPLAIN (COSTS OFF) `+tc.sql), "\n")
		if !strings.Contains(plan, tc.index) || strings.Contains(plan, "Seq Scan") {
			t.Errorf("%s does not use %s:\n%s", tc.sql, tc.index, plan)
		}
	}
}

func TestAddXid(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for name, tc := range map[string]struct {
		table, setup string
		want         string // the statement that is left to run
		wantErr      string
	}{
		"none":              {"a", `CREATE TABLE a (id bigserial PRIMARY KEY)`, `CREATE INDEX CONCURRENTLY ON public.a (xid)`, ""},
		"odd name":          {`"B b"`, `CREATE TABLE "B b" (id bigserial PRIMARY KEY)`, `CREATE INDEX CONCURRENTLY ON public."B b" (xid)`, ""},
		"null":              {"c", `CREATE TABLE c (id bigserial PRIMARY KEY, tx xid8 DEFAULT pg_current_xact_id())`, `CREATE INDEX CONCURRENTLY ON public.c (tx)`, ""},
		"no default":        {"d", `CREATE TABLE d (id bigserial PRIMARY KEY, xid xid8)`, `CREATE INDEX CONCURRENTLY ON public.d (xid)`, ""},
		"partitioned":       {"e", `CREATE TABLE e (id bigserial PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE e1 PARTITION OF e FOR VALUES FROM (0) TO (99)`, `CREATE INDEX ON public.e (xid)`, ""},
		"another type":      {"f", `CREATE TABLE f (id bigserial PRIMARY KEY, xid bigint)`, "", "column xid of public.f has type bigint: must be xid8"},
		"a view":            {"g", `CREATE VIEW g AS SELECT 1 AS id`, "", "is not a table"},
		"all there":         {"h", `CREATE TABLE h (id bigserial PRIMARY KEY, xid xid8 NOT NULL DEFAULT pg_current_xact_id()); CREATE INDEX ON h (xid, id)`, "", ""},
		"an outbox of ours": {"pgtrickle.outbox_i", `SELECT pgtrickle.create_outbox('i')`, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, pool, tc.setup)
			if tc.wantErr == "" && name != "an outbox of ours" {
				run(t, pool, fmt.Sprintf("INSERT INTO %s (id) SELECT generate_series(1, 50)", tc.table))
				if name == "null" {
					run(t, pool, "UPDATE c SET tx = NULL WHERE id < 10")
				}
			}
			file := "SELECT coalesce(string_agg(pg_relation_filenode(relid)::text, ' '), '') FROM pg_partition_tree('" + tc.table + "'::regclass)"
			if tc.wantErr != "" {
				file = "SELECT ''"
			}
			before := query(t, pool, file)
			var got *string
			call := "SELECT pgtrickle.outbox_add_xid('" + tc.table + "')"
			err := pool.QueryRow(context.Background(), call).Scan(&got)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("%s = %v, want an error with %q", call, err, tc.wantErr)
				}
				return
			}
			if err != nil || (got == nil) != (tc.want == "") || got != nil && *got != tc.want {
				t.Fatalf("%s = %v, %v, want %q", call, got, err, tc.want)
			}
			if after := query(t, pool, file); after[0] != before[0] {
				t.Errorf("the table was rewritten: files %s, were %s", after[0], before[0])
			}
			if got == nil {
				return
			}
			run(t, pool, *got)
			if err := pool.QueryRow(context.Background(), call).Scan(&got); err != nil || got != nil {
				t.Errorf("called again: %v, %v; want nothing to do", got, err)
			}
			col := strings.Trim(tc.want[strings.LastIndexByte(tc.want, '('):], "()")
			if n := query(t, pool, fmt.Sprintf("SELECT count(*)::text FROM %s WHERE %s < pg_snapshot_xmax(pg_current_snapshot())", tc.table, col)); n[0] != "50" {
				t.Errorf("%s of 50 rows have a number", n[0])
			}
		})
	}
}
