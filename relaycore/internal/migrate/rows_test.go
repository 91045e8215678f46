package migrate_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// captured makes a table with an outbox, and returns the function that reads its rows.
func captured(t testing.TB, pool *pgxpool.Pool, table, ddl string) (fn string) {
	t.Helper()
	run(t, pool, ddl)
	run(t, pool, fmt.Sprintf("SELECT pgtrickle.enable_outbox('public.%s')", table))
	return rowsFunction(t, pool, table)
}

func rowsFunction(t testing.TB, pool *pgxpool.Pool, table string) string {
	t.Helper()
	got := query(t, pool, fmt.Sprintf("SELECT coalesce(problem || ': ' || cure, fn) FROM pgtrickle._relay_rows_function(pgtrickle._relay_outbox_table('public.%s'))", table))
	return got[0]
}

// chunks reads the rows that a function returns, a few at a time.
func chunks(t testing.TB, pool *pgxpool.Pool, fn string, n int) (rows []string) {
	t.Helper()
	var after []string
	for {
		var key []string
		var row string
		var length int64
		result, err := pool.Query(context.Background(), "SELECT key, row, length FROM "+fn+"($1, $2, 1000000, 1000000)", after, n)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		_, err = pgx.ForEachRow(result, []any{&key, &row, &length}, func() error {
			found++
			if length != int64(len(row)) {
				t.Errorf("length %d of %s", length, row)
			}
			rows, after = append(rows, row), slices.Clone(key)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if found == 0 {
			return rows
		}
	}
}

// TestRowsOfEveryKey reads tables with keys of each kind in chunks: every row comes once,
// as the text that capture makes of it.
func TestRowsOfEveryKey(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE EXTENSION IF NOT EXISTS citext WITH SCHEMA public;
		CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE TYPE pair AS (a int, b text); CREATE DOMAIN code AS text COLLATE "C";
		CREATE COLLATION swedish (provider = icu, locale = 'sv-SE'); CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
	words := `(ARRAY['a','B','b','ä','z','Z',' ','''','"','\','{','}',',','NULL','null','ö','aa','Ä b','%s','x:y'])[i]`
	for name, tc := range map[string]struct{ columns, key, values string }{
		"int":         {"a int", "a", "i"},
		"bigint desc": {"a bigint", "a", "9223372036854775807 - i"},
		"numeric":     {"a numeric", "a", "coalesce((ARRAY['1e400','0.1','0.10000000000000000001','-5','NaN'])[i]::numeric, i / 3.0)"},
		"float8":      {"a float8", "a", "1 / i::float8"},
		"real":        {"a real", "a", "(1 / i::real)::real"},
		"text":        {"a text", "a", words},
		"text c":      {`a text COLLATE "C"`, "a", words},
		"text sv":     {"a text COLLATE swedish", "a", words},
		"citext":      {"a citext", "a", words + " || i % 10"},
		"blind":       {"a text COLLATE blind", "a", words + " || i"},
		"domain":      {"a code", "a", words},
		"varchar":     {"a varchar(9)", "a", words},
		"bpchar":      {"a char(9)", "a", words},
		"quoted char": {`a "char"`, "a", "chr(40 + i)::\"char\""},
		"name":        {"a name", "a", words},
		"bytea":       {"a bytea", "a", "decode(md5(i::text), 'hex')"},
		"uuid":        {"a uuid", "a", "md5(i::text)::uuid"},
		"date":        {"a date", "a", "date '2000-01-01' + i"},
		"timestamptz": {"a timestamptz", "a", "CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE '2020-10-25 02:30+02'::timestamptz + i * interval '1.000001 seconds' END"},
		"interval":    {"a interval", "a", "i * interval '1 month 3 days 00:00:00.000001'"},
		"boolean":     {"a bool, b int", "a, b", "i % 2 = 0, i"},
		"inet":        {"a inet", "a", "('10.0.0.' || i)::inet"},
		"bit":         {"a bit(5)", "a", "i::bit(5)"},
		"enum":        {"a mood, b int", "a, b", "(ARRAY['happy','sad','ok'])[1 + i % 3]::mood, i"},
		"array":       {"a text[]", "a", "ARRAY[" + words + ", i::text]"},
		"composite":   {"a pair", "a", "ROW(i % 3, " + words + ")::pair"},
		"range":       {"a int4range", "a", "int4range(i, i + 2)"},
		"jsonb":       {"a jsonb", "a", "jsonb_build_object('k', " + words + ", 'n', i)"},
		"money":       {"a money", "a", "i::money"},
		"three":       {`a text, "B ""c" int, d uuid`, `d, a, "B ""c"`, words + ", i % 4, md5((i % 3)::text)::uuid"},
		"mixed":       {"a int, b citext", "a, b", "i % 3, " + words},
	} {
		t.Run(name, func(t *testing.T) {
			table := "t_" + strings.ReplaceAll(name, " ", "_")
			fn := captured(t, pool, table, fmt.Sprintf("CREATE TABLE %s (gone int, %s, x timestamptz DEFAULT now(), PRIMARY KEY (%s)); ALTER TABLE %[1]s DROP COLUMN gone",
				table, tc.columns, tc.key))
			run(t, pool, fmt.Sprintf("INSERT INTO %s SELECT %s FROM generate_series(1, 20) i", table, tc.values))
			want := query(t, pool, fmt.Sprintf("SELECT payload -> 'inserted' ->> 0 FROM pgtrickle.outbox_%s", table))
			slices.Sort(want)
			run(t, pool, fmt.Sprintf(`SELECT pgtrickle.set_relay_outbox('%[1]s', config => '{"stream_table":"public.%[1]s","sink_type":"stdin"}')`, table))
			run(t, pool, fmt.Sprintf(`SET LOCAL "DateStyle" = 'SQL, DMY'; SET LOCAL "TimeZone" = 'Asia/Kabul'; SET LOCAL "IntervalStyle" = 'sql_standard';
				SET LOCAL bytea_output = 'escape'; SET LOCAL extra_float_digits = -3; SELECT pgtrickle.relay_snapshot('%s', 'true')`, table))
			byKey := query(t, pool, fmt.Sprintf(`SELECT r.row FROM pgtrickle.relay_snapshot_keys k JOIN pgtrickle.relay_snapshot_requests q ON q.id = k.request,
				%s(k.keys, 0, 1000, 1000000, 1000000) r WHERE q.pipeline = '%s'`, fn, table))
			if slices.Sort(byKey); !slices.Equal(byKey, want) {
				t.Errorf("by key: %d rows\n%s\nwant %d\n%s", len(byKey), strings.Join(byKey, "\n"), len(want), strings.Join(want, "\n"))
			}
			for _, n := range []int{1, 3, 20, 1000} {
				got := chunks(t, pool, fn, n)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("in chunks of %d: %d rows\n%s\nwant %d\n%s", n, len(got), strings.Join(got, "\n"), len(want), strings.Join(want, "\n"))
				}
			}
		})
	}
}

// TestRowsOfARewrittenTable starts a read that waits for a rewrite of the table. By the
// snapshot of the read the new file looks empty.
func TestRowsOfARewrittenTable(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ ddl, rewrite string }{
		"table":     {`CREATE TABLE w (id int PRIMARY KEY, v int)`, `ALTER TABLE w ALTER v TYPE bigint`},
		"truncate":  {`CREATE TABLE w (id int PRIMARY KEY, v int)`, `TRUNCATE w`},
		"partition": {`CREATE TABLE w (id int PRIMARY KEY, v int) PARTITION BY HASH (id); CREATE TABLE w0 PARTITION OF w FOR VALUES WITH (MODULUS 1, REMAINDER 0)`, `TRUNCATE w0`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := migrated(t)
			fn := captured(t, pool, "w", tc.ddl)
			run(t, pool, `INSERT INTO w SELECT g, g FROM generate_series(1, 10) g`)
			tx, err := pool.Begin(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(context.Background(), tc.rewrite); err != nil {
				t.Fatal(err)
			}
			read := make(chan error)
			go func() {
				_, err := pool.Exec(context.Background(), `SELECT FROM `+fn+`(NULL, 100, 1000000, 1000000)`)
				read <- err
			}()
			waitForLock(t, pool)
			if err := tx.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			if err := <-read; err == nil || !strings.Contains(err.Error(), "40001") {
				t.Errorf("a read that waited for %s: %v", tc.rewrite, err)
			}
		})
	}
}

func waitForLock(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	for range 500 {
		if one(t, pool, `SELECT count(*)::text FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) != "0" {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("nothing waits for a lock")
}

// TestRowsRights makes the function as an owner without rights of its own, and lets the
// relay's role alone call it.
func TestRowsRights(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	owner := fmt.Sprintf("rows_owner_%d", rand.Int64())
	run(t, pool, fmt.Sprintf(`CREATE ROLE %[1]s; CREATE SCHEMA mine AUTHORIZATION %[1]s;
		GRANT USAGE ON SCHEMA pgtrickle TO %[1]s; GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox TO %[1]s;
		SET ROLE %[1]s; CREATE TABLE mine.t (id int PRIMARY KEY); INSERT INTO mine.t VALUES (1);
		SELECT pgtrickle.enable_outbox('mine.t'); RESET ROLE`, owner))
	t.Cleanup(func() { run(t, pool, fmt.Sprintf("DROP OWNED BY %[1]s CASCADE; DROP ROLE %[1]s", owner)) })
	fn := one(t, pool, `SELECT coalesce(problem, fn) FROM pgtrickle._relay_rows_function('outbox_t')`)
	for _, signature := range []string{fn + "(text[], integer, bigint, bigint)", fn + "(text[], integer, integer, bigint, bigint)"} {
		got := query(t, pool, `SELECT a.grantee::regrole::text FROM pg_proc p, aclexplode(p.proacl) a WHERE p.oid = to_regprocedure($1) ORDER BY 1`, signature)
		if want := []string{"pgtrickle_relay", owner}; !slices.Equal(got, want) {
			t.Errorf("%s may be called by %v, want %v", signature, got, want)
		}
		if got := one(t, pool, `SELECT prosecdef || ' ' || proowner::regrole::text FROM pg_proc WHERE oid = to_regprocedure($1)`, signature); got != "true "+owner {
			t.Errorf("%s runs as %s", signature, got)
		}
	}
	run(t, pool, `SELECT pgtrickle.outbox_upgrade('mine.t'); SELECT pgtrickle.disable_outbox('mine.t')`)
	if n := one(t, pool, `SELECT count(*)::text FROM pg_proc WHERE pronamespace = 'mine'::regnamespace`); n != "0" {
		t.Errorf("%s functions are left", n)
	}
}
