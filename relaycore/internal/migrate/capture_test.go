package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
)

// TestCaptureOrder: what a statement changes by itself is recorded before what triggers
// and foreign keys change because of it.
func TestCaptureOrder(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for name, tc := range map[string]struct{ table, setup, writes, want string }{
		"an AFTER STATEMENT trigger whose name begins with a": {
			"taxed", `CREATE TABLE taxed (id int, tax int);
				CREATE FUNCTION apply_tax() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE taxed SET tax = 1 WHERE tax IS NULL; RETURN NULL; END $$;
				CREATE TRIGGER apply_tax AFTER INSERT ON taxed FOR EACH STATEMENT EXECUTE FUNCTION apply_tax()`,
			`INSERT INTO taxed VALUES (1), (2)`,
			`{"inserted": [{"id": 1, "tax": null}]}
{"inserted": [{"id": 2, "tax": null}]}
{"updated": [{"new": {"id": 1, "tax": 1}, "old": {"id": 1, "tax": null}}]}
{"updated": [{"new": {"id": 2, "tax": 1}, "old": {"id": 2, "tax": null}}]}`,
		},
		"an AFTER ROW trigger that changes its own row": {
			"rated", `CREATE TABLE rated (id int, tax int);
				CREATE FUNCTION rate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE rated SET tax = 1 WHERE id = NEW.id; RETURN NULL; END $$;
				CREATE TRIGGER a AFTER INSERT ON rated FOR EACH ROW EXECUTE FUNCTION rate()`,
			`INSERT INTO rated VALUES (1)`,
			`{"inserted": [{"id": 1, "tax": null}]}
{"updated": [{"new": {"id": 1, "tax": 1}, "old": {"id": 1, "tax": null}}]}`,
		},
		"a foreign key to the table itself": {
			"tree", `CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree ON UPDATE CASCADE)`,
			`INSERT INTO tree VALUES (1, NULL), (2, 1); UPDATE tree SET id = 9 WHERE id = 1`,
			`{"inserted": [{"id": 1, "up": null}]}
{"inserted": [{"id": 2, "up": 1}]}
{"updated": [{"new": {"id": 9, "up": null}, "old": {"id": 1, "up": null}}]}
{"updated": [{"new": {"id": 2, "up": 9}, "old": {"id": 2, "up": 1}}]}`,
		},
		"rows that move, of which the target partition drops some": {
			"moving", `CREATE TABLE moving (k int, id int) PARTITION BY LIST (k);
				CREATE TABLE moving1 PARTITION OF moving FOR VALUES IN (1); CREATE TABLE moving2 PARTITION OF moving FOR VALUES IN (2);
				CREATE FUNCTION drop_some() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW.id <= 2 THEN RETURN NULL; END IF; RETURN NEW; END $$;
				CREATE TRIGGER d BEFORE INSERT ON moving2 FOR EACH ROW EXECUTE FUNCTION drop_some()`,
			`INSERT INTO moving SELECT 1, generate_series(1, 4); UPDATE moving SET k = 2 WHERE id = 1; UPDATE moving SET k = 2`,
			`{"inserted": [{"k": 1, "id": 1}]}
{"inserted": [{"k": 1, "id": 2}]}
{"inserted": [{"k": 1, "id": 3}]}
{"inserted": [{"k": 1, "id": 4}]}
{"deleted": [{"k": 1, "id": 1}]}
{"deleted": [{"k": 1, "id": 2}]}
{"deleted": [{"k": 1, "id": 3}]}
{"inserted": [{"k": 2, "id": 3}]}
{"deleted": [{"k": 1, "id": 4}]}
{"inserted": [{"k": 2, "id": 4}]}`,
		},
		"partitions that are attached and detached": {
			"parts", `CREATE TABLE parts (k int, id int) PARTITION BY LIST (k); CREATE TABLE parts1 (k int, id int)`,
			`INSERT INTO parts1 VALUES (1, 0); ALTER TABLE parts ATTACH PARTITION parts1 FOR VALUES IN (1);
				INSERT INTO parts1 VALUES (1, 1); INSERT INTO parts VALUES (1, 2); ALTER TABLE parts DETACH PARTITION parts1; INSERT INTO parts1 VALUES (1, 3)`,
			`{"inserted": [{"k": 1, "id": 1}]}
{"inserted": [{"k": 1, "id": 2}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, pool, tc.setup)
			run(t, pool, `SELECT pgtrickle.enable_outbox($1)`, "public."+tc.table)
			run(t, pool, tc.writes)
			if got := payloads(t, pool, "outbox_"+tc.table); got != tc.want {
				t.Errorf("%s records\n%s\nwant\n%s", tc.writes, got, tc.want)
			}
		})
	}

	run(t, pool, `CREATE TABLE early (id int); CREATE FUNCTION early() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
		CREATE TRIGGER " a" AFTER INSERT ON early FOR EACH ROW EXECUTE FUNCTION early()`)
	refused(t, pool, "55000", `AFTER ROW trigger " a" of public.early fires before the changes are recorded`, `SELECT pgtrickle.enable_outbox('early')`)
}

// TestCaptureNeverFailsAWriter writes what jsonb refuses, and settings that make no
// headers: the write succeeds, and the row holds what the column holds.
func TestCaptureNeverFailsAWriter(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE docs (id int, j json); SELECT pgtrickle.enable_outbox('docs')`)
	for i, value := range []string{`{"a":"\u0000"}`, `{"a":"\ud800"}`, `{"n":1e200000}`, `{"b":1,"a":1.10,"b":2}`, "{\"a\":\n 1}"} {
		run(t, pool, `INSERT INTO docs VALUES ($1, $2)`, i, value)
		if got := one(t, pool, `SELECT payload::text FROM pgtrickle.outbox_docs ORDER BY id DESC LIMIT 1`); !strings.Contains(got, `,"j":`+value+`}],"updated":[],"deleted":[]}`) {
			t.Errorf("a column of type json holds %s, the outbox %s", value, got)
		}
	}

	for setting, want := range map[string]string{
		`{"traceparent": "00-1", "tenant": "a"}`: `{"tenant": "a", "traceparent": "00-1"}`,
		``:                                       `null`,
		`{}`:                                     `null`,
		`not json`:                               `{"Pgtrickle-Dropped": "all"}`,
		`[1]`:                                    `{"Pgtrickle-Dropped": "all"}`,
		`{"n": 1, "ok": "x"}`:                    `{"ok": "x", "Pgtrickle-Dropped": "1"}`,
		`{"Nats-Msg-Id": "x", "webhook-id": "1"}`: `{"Pgtrickle-Dropped": "2"}`,
		`{"a b": "x"}`:        `{"Pgtrickle-Dropped": "1"}`,
		`{"ok": "line\nend"}`: `{"Pgtrickle-Dropped": "1"}`,
		`{"` + strings.Repeat("n", 129) + `": "x"}`: `{"Pgtrickle-Dropped": "1"}`,
		`{"a":"\u0000"}`: `{"Pgtrickle-Dropped": "all"}`,
		`{"content-type": "x", "ce-id": "1", "k": "v"}`: `{"k": "v", "Pgtrickle-Dropped": "2"}`,
	} {
		err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(context.Background(), `SELECT set_config('pgtrickle.headers', $1, true), set_config('pgtrickle.key', 'K', true)`, setting); err != nil {
				return err
			}
			_, err := tx.Exec(context.Background(), `INSERT INTO docs VALUES (0, '1')`)
			return err
		})
		if err != nil {
			t.Errorf("with pgtrickle.headers = %s: %v", setting, err)
			continue
		}
		if got := one(t, pool, `SELECT coalesce(headers, 'null')::text || ' ' || key FROM pgtrickle.outbox_docs ORDER BY id DESC LIMIT 1`); got != want+" K" {
			t.Errorf("pgtrickle.headers = %s records headers and key %s, want %s K", setting, got, want)
		}
	}
	run(t, pool, `INSERT INTO docs VALUES (0, '1')`) // a setting of a transaction that ended is '' in its session
	if got := one(t, pool, `SELECT num_nulls(headers, key, event_id)::text FROM pgtrickle.outbox_docs ORDER BY id DESC LIMIT 1`); got != "3" {
		t.Errorf("a row without settings has %s of headers, key and event_id null, want 3", got)
	}
}

// TestForeignPartition: a statement on a partitioned table with a foreign partition
// succeeds, and what it changes there is recorded.
func TestForeignPartition(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	if one(t, pool, `SELECT (count(*) = 0)::text FROM pg_available_extensions WHERE name = 'postgres_fdw'`) == "true" {
		t.Skip("this server has no postgres_fdw")
	}
	run(t, pool, `CREATE EXTENSION postgres_fdw;
		DO $$ BEGIN EXECUTE format('CREATE SERVER here FOREIGN DATA WRAPPER postgres_fdw OPTIONS (dbname %L, host %L, port %L)',
			current_database(), split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port')); END $$;
		CREATE USER MAPPING FOR CURRENT_USER SERVER here OPTIONS (user 'postgres');
		CREATE TABLE far (k int, id int);
		CREATE TABLE f (k int, id int) PARTITION BY LIST (k); CREATE TABLE f1 PARTITION OF f FOR VALUES IN (1);
		CREATE FOREIGN TABLE f2 PARTITION OF f FOR VALUES IN (2) SERVER here OPTIONS (table_name 'far');
		SELECT pgtrickle.enable_outbox('f')`)
	run(t, pool, `INSERT INTO f VALUES (1, 1)`)
	run(t, pool, `INSERT INTO f VALUES (2, 2)`)
	run(t, pool, `UPDATE f SET id = id + 10`)
	run(t, pool, `DELETE FROM f`)
	want := `{"inserted": [{"k": 1, "id": 1}]}
{"inserted": [{"k": 2, "id": 2}]}
{"updated": [{"new": {"k": 1, "id": 11}, "old": {"k": 1, "id": 1}}]}
{"updated": [{"new": {"k": 2, "id": 12}, "old": {"k": 2, "id": 2}}]}
{"deleted": [{"k": 1, "id": 11}]}
{"deleted": [{"k": 2, "id": 12}]}`
	if got := payloads(t, pool, "outbox_f"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestCaptureSettings walks pg_settings: no setting of a session changes the text of a
// captured row.
func TestCaptureSettings(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := migrated(t)
	run(t, pool, `CREATE TYPE pair AS (at timestamptz, span interval);
		CREATE DOMAIN price AS float8;
		CREATE TABLE s (id int, tz timestamptz, tt timetz, d date, ts timestamp, i interval, b bytea, f4 float4, f8 float8, p price, n numeric,
			m money, r tstzrange, dr daterange, c pair, l timestamptz[], j json, jb jsonb, x xml, o regclass, rt regtype, pt point, v tsvector, e text, bits bit(3), addr inet);
		SELECT pgtrickle.enable_outbox('s')`)
	const insert = `INSERT INTO s VALUES (1, '2024-01-02 03:04:05+00', '03:04:05+02', '2024-01-02', '2024-01-02 03:04:05', '1 year 2 days 03:04:05', '\x00ff', 0.1, 1e20, 0.3, 12345.6789,
		12.34, '[2024-01-02 00:00+00,2024-02-03 00:00+00)', '[2024-01-02,2024-02-03)', '("2024-01-02 03:04:05+00","1 day")', '{"2024-01-02 03:04:05+00"}', '{"a": 1}', '{"a": 1.50}', '<a/>',
		'public.s', 'timestamp with time zone', '(0.1,0.2)', 'a b', 'ä''"\', '101', '10.0.0.1/8')`
	record := func(set string) (text string, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, set); err != nil {
				return errRollback // not a value of this setting
			}
			if _, err := tx.Exec(ctx, insert); err != nil {
				return errRollback // the setting forbids the write itself
			}
			if err := tx.QueryRow(ctx, `SELECT payload::text FROM pgtrickle.outbox_s ORDER BY id DESC LIMIT 1`).Scan(&text); err != nil {
				return err
			}
			return errRollback
		})
		if errors.Is(err, errRollback) {
			err = nil
		}
		return text, err
	}
	want, err := record(`SELECT 1`)
	if err != nil || want == "" {
		t.Fatalf("the plain insert: %q, %v", want, err)
	}
	tried := 0
	for _, set := range query(t, pool, `
		SELECT format('SET LOCAL %I = %L', s.name, v.value) FROM pg_settings s
		CROSS JOIN LATERAL (
			SELECT unnest(s.enumvals) WHERE s.vartype = 'enum'
			UNION ALL SELECT unnest(ARRAY['on', 'off']) WHERE s.vartype = 'bool'
			UNION ALL SELECT x.value FROM (VALUES ('TimeZone', 'Asia/Kolkata'), ('DateStyle', 'German'), ('DateStyle', 'SQL, DMY'), ('DateStyle', 'Postgres, YMD'),
				('extra_float_digits', '-10'), ('extra_float_digits', '3'), ('lc_monetary', 'de_DE.utf8'), ('lc_monetary', 'C'), ('lc_numeric', 'de_DE.utf8'), ('lc_time', 'de_DE.utf8'),
				('search_path', 'pg_catalog'), ('search_path', 'nowhere'), ('default_text_search_config', 'german')) x(name, value) WHERE x.name = s.name
		) v(value)
		WHERE s.context IN ('user', 'superuser') AND s.name NOT IN ('session_replication_role', 'log_statement', 'zero_damaged_pages', 'ignore_checksum_failure', 'transaction_read_only')`) {
		if strings.Contains(set, "search_path") {
			set = strings.Replace(insert, "INTO s ", "INTO public.s ", 1) + "; " + set
		}
		got, err := record(set)
		if err != nil {
			t.Errorf("%s: %v", set, err)
		}
		if got == "" {
			continue
		}
		tried++
		if got != want {
			t.Errorf("after %s the row is\n%s\nwant\n%s", set, got, want)
		}
	}
	if tried < 100 {
		t.Errorf("only %d values of settings were tried", tried)
	}
}

var errRollback = errors.New("roll back")

// TestCaptureRights: code of a table's owner that capture runs has the rights of the
// table's owner, whichever role writes.
func TestCaptureRights(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	owner, stranger := roles(t, pool)
	run(t, pool, fmt.Sprintf(`
		GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox TO %[1]s;
		CREATE SCHEMA app AUTHORIZATION %[1]s; GRANT USAGE ON SCHEMA app TO %[2]s;
		CREATE TABLE ran (by_whom text); GRANT INSERT ON ran TO PUBLIC;
		SET ROLE %[1]s;
		CREATE TYPE app.e AS ENUM ('a');
		CREATE FUNCTION app.e2j(app.e) RETURNS json LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ran VALUES ('cast as ' || current_user); RETURN '1'; END $$;
		CREATE CAST (app.e AS json) WITH FUNCTION app.e2j(app.e);
		CREATE TABLE app.o (id int PRIMARY KEY, v app.e);
		SELECT pgtrickle.enable_outbox('app.o');
		GRANT INSERT, TRUNCATE, SELECT ON app.o TO %[2]s;
		CREATE FUNCTION app.quiet() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ran VALUES ('index as ' || current_user); RETURN 1; END $$;
		CREATE FUNCTION app.ev(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN IF current_setting('app.armed', true) = 'on' THEN RETURN app.quiet(); END IF; RETURN 1; END $$;
		CREATE INDEX ON app.o ((1)) WHERE app.ev(1) = 1;
		RESET ROLE`, owner, stranger))

	run(t, pool, `INSERT INTO app.o VALUES (1, 'a')`)
	t.Cleanup(func() { run(t, pool, `DROP SCHEMA app CASCADE`) })
	run(t, pool, `SET LOCAL ROLE `+stranger+`; INSERT INTO app.o VALUES (2, 'a')`)
	run(t, pool, `SELECT set_config('app.armed', 'on', true); TRUNCATE app.o`)
	for _, who := range query(t, pool, `SELECT DISTINCT by_whom FROM public.ran`) {
		if !strings.HasSuffix(who, " as "+owner) && !strings.HasPrefix(who, "index as") {
			t.Errorf("capture ran the owner's code: %s", who)
		}
	}
	if got := one(t, pool, `SELECT count(*)::text FROM public.ran WHERE by_whom LIKE 'cast as %'`); got == "0" {
		t.Error("the cast did not run: the test shows nothing")
	}
	if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.outbox_o`); got != "4" {
		t.Errorf("%s rows are recorded, want 4: two inserts and two deletes", got)
	}
	if got := one(t, pool, `SELECT format('%s %s', p.proowner::regrole, p.pronamespace::regnamespace) FROM pg_proc p WHERE p.proname = 'pgtrickle_outbox_o'`); got != owner+" app" {
		t.Errorf("owner and schema of the trigger function: %s, want %s app", got, owner)
	}
}

// TestTableOutlivesSchema drops schema pgtrickle, and restores a table without it: the
// table takes writes.
func TestTableOutlivesSchema(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE t (id int); SELECT pgtrickle.enable_outbox('t'); INSERT INTO t VALUES (1)`)
	run(t, pool, `DROP SCHEMA pgtrickle CASCADE`)
	run(t, pool, `INSERT INTO t VALUES (2); UPDATE t SET id = 3; TRUNCATE t`)
	if got := one(t, pool, `SELECT count(*)::text FROM pg_trigger WHERE tgrelid = 't'::regclass`); got != "0" {
		t.Errorf("%s triggers are left", got)
	}
	// What pg_dump restores first is the function, which needs nothing of schema pgtrickle.
	if got := one(t, pool, `SELECT count(*)::text FROM pg_proc WHERE proname = 'pgtrickle_outbox_t'`); got != "1" {
		t.Errorf("%s trigger functions are left, want 1", got)
	}
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatal(err)
	}
	run(t, pool, `SELECT pgtrickle.enable_outbox('t'); INSERT INTO t VALUES (4)`)
	if got, want := payloads(t, pool, "outbox_t"), `{"inserted": [{"id": 4}]}`; got != want {
		t.Errorf("after migrate and enable_outbox the table records %s, want %s", got, want)
	}
}

func problems(t testing.TB, pool *pgxpool.Pool, outbox string) string {
	t.Helper()
	return strings.Join(query(t, pool, `SELECT problem FROM pgtrickle._relay_outbox_problems($1)`, outbox), "\n")
}

// TestOutboxProblems changes captured tables: outbox_status reports that they are not
// recorded as they should be, and outbox_upgrade mends it.
func TestOutboxProblems(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	other, _ := roles(t, pool)
	run(t, pool, `GRANT CREATE ON SCHEMA public TO `+other)
	for name, tc := range map[string]struct{ table, setup, change, write, want string }{
		"drop and create": {"a", `CREATE TABLE a (id int)`, `DROP TABLE a; CREATE TABLE a (id int)`, `INSERT INTO a VALUES (1)`, "public.a has no trigger that records its changes"},
		"triggers disabled": {
			"b", `CREATE TABLE b (id int)`, `ALTER TABLE b DISABLE TRIGGER USER`, `INSERT INTO b VALUES (1)`,
			"the trigger that records the changes of public.b is disabled\na TRUNCATE of public.b is not recorded",
		},
		"another owner":                     {"c", `CREATE TABLE c (id int)`, `ALTER TABLE c OWNER TO ` + other, `INSERT INTO c VALUES (1)`, "public.c has another owner than the function that records its changes"},
		"a column of a type with a setting": {"d", `CREATE TABLE d (id int)`, `ALTER TABLE d ADD at timestamptz`, `INSERT INTO d VALUES (1)`, "the columns of public.d have changed since its changes are recorded"},
		"a partition that came later":       {"e", `CREATE TABLE e (id int) PARTITION BY LIST (id)`, `CREATE TABLE e1 PARTITION OF e FOR VALUES IN (1)`, `INSERT INTO e VALUES (1)`, "a TRUNCATE of public.e1 is not recorded"},
		"a renamed table":                   {"f", `CREATE TABLE f (id int)`, `ALTER TABLE f RENAME TO g; ALTER TABLE g RENAME COLUMN id TO id2`, `INSERT INTO g VALUES (1)`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			outbox := "outbox_" + tc.table
			run(t, pool, tc.setup)
			run(t, pool, `SELECT pgtrickle.enable_outbox($1)`, tc.table)
			if got := problems(t, pool, outbox); got != "" {
				t.Fatalf("a new outbox has problems: %s", got)
			}
			run(t, pool, tc.change)
			if got := problems(t, pool, outbox); got != tc.want {
				t.Errorf("after %s:\n%s\nwant\n%s", tc.change, got, tc.want)
			}
			run(t, pool, `SELECT pgtrickle.outbox_upgrade($1)`, outbox)
			if got := problems(t, pool, outbox); got != "" {
				t.Errorf("outbox_upgrade leaves: %s", got)
			}
			before := one(t, pool, `SELECT count(*)::text FROM pgtrickle.`+outbox)
			run(t, pool, tc.write)
			if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.`+outbox); got == before {
				t.Errorf("after outbox_upgrade %s is not recorded", tc.write)
			}
		})
	}
	run(t, pool, `CREATE TABLE gone (id int); SELECT pgtrickle.enable_outbox('gone'); DROP TABLE gone`)
	if got := one(t, pool, `SELECT pgtrickle.outbox_status('outbox_gone') -> 'problems' -> 0 ->> 'problem'`); got != "table public.gone is gone, or belongs to another role" {
		t.Errorf("outbox_status of a dropped table tells: %s", got)
	}
}

// legacy is what enable_outbox made before capture by row, as far as it matters here.
const legacy = `
	CREATE TABLE old (id int PRIMARY KEY, v float8);
	SELECT pgtrickle.enable_outbox('old');
	DROP FUNCTION public.pgtrickle_outbox_old() CASCADE;
	ALTER TABLE pgtrickle.outbox_old DROP COLUMN headers, DROP COLUMN key, DROP COLUMN event_id, ALTER COLUMN payload TYPE jsonb USING payload::jsonb;
	UPDATE pgtrickle.relay_outboxes SET capture_function = 'outbox_old_capture', stream_owner = NULL;
	CREATE FUNCTION pgtrickle.outbox_old_capture() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
		INSERT INTO pgtrickle.outbox_old (inserted_count, payload) SELECT count(*), jsonb_build_object('v', 1, 'inserted', jsonb_agg(to_jsonb(x.*)), 'updated', '[]'::jsonb, 'deleted', '[]'::jsonb) FROM new_rows x;
		RETURN NULL; END $$;
	CREATE TRIGGER pgtrickle_outbox_insert AFTER INSERT ON old REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION pgtrickle.outbox_old_capture();
	UPDATE pgtrickle.relay_migrations SET checksum = 'old'`

// TestUpgradeOfAnOlderOutbox: migrate leaves the table and the type of an older outbox
// alone, and outbox_upgrade, by the table's owner, brings both to the present form.
func TestUpgradeOfAnOlderOutbox(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, legacy)
	run(t, pool, `INSERT INTO old VALUES (1, 0.5), (2, 1)`)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, `INSERT INTO old VALUES (3, 1)`)
	run(t, pool, `SELECT pgtrickle.outbox_publish('outbox_old', '{"id": 4}', p_headers => '{"a": "b"}', p_event_id => 'e1')`)
	want := `the changes of public.old are captured by statement triggers of an older version
outbox pgtrickle.outbox_old has a payload of type jsonb, which costs more`
	if got := problems(t, pool, "outbox_old"); !strings.HasPrefix(got, want[:40]) || !strings.HasSuffix(got, "which costs more") {
		t.Errorf("problems of an older outbox:\n%s\nwant\n%s", got, want)
	}
	run(t, pool, `SELECT pgtrickle.outbox_upgrade('old')`)
	if got := problems(t, pool, "outbox_old"); got != "" {
		t.Errorf("problems after outbox_upgrade: %s", got)
	}
	run(t, pool, `INSERT INTO old VALUES (5, 1); DELETE FROM old WHERE id < 3`)
	wantRows := `{"inserted": [{"v": 0.5, "id": 1}, {"v": 1, "id": 2}]}
{"inserted": [{"v": 1, "id": 3}]}
{"inserted": [{"id": 4}]}
{"inserted": [{"v": 1, "id": 5}]}
{"deleted": [{"v": 0.5, "id": 1}]}
{"deleted": [{"v": 1, "id": 2}]}`
	if got := payloads(t, pool, "outbox_old"); got != wantRows {
		t.Errorf("the outbox holds\n%s\nwant\n%s", got, wantRows)
	}
	if got := one(t, pool, `SELECT string_agg(p.proname, ' ' ORDER BY p.proname) FROM pg_proc p WHERE p.proname LIKE '%outbox_old%'`); got != "pgtrickle_outbox_old pgtrickle_outbox_old_rows pgtrickle_outbox_old_rows" {
		t.Errorf("functions of the outbox: %s", got)
	}
}
