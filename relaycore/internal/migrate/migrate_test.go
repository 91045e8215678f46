package migrate_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

var update = flag.Bool("update", false, "rewrite golden files")

// migrated returns a pool on a fresh database with the relay's catalog.
func migrated(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	return pool
}

func run(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// query returns the rows of one text column.
func query(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) []string {
	t.Helper()
	rows, err := pool.Query(context.Background(), sql, args...)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return got
}

func one(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) string {
	t.Helper()
	got := query(t, pool, sql, args...)
	if len(got) != 1 {
		t.Fatalf("%s: %d rows; want 1", sql, len(got))
	}
	return got[0]
}

// refused runs sql and checks that it fails with this SQLSTATE and message.
func refused(t testing.TB, pool *pgxpool.Pool, code, message, sql string, args ...any) {
	t.Helper()
	_, err := pool.Exec(context.Background(), sql, args...)
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		t.Errorf("%s: %v; want error %s", sql, err, code)
		return
	}
	if pgErr.Code != code || !strings.Contains(pgErr.Message, message) {
		t.Errorf("%s:\n got %s %s\nwant %s %s", sql, pgErr.Code, pgErr.Message, code, message)
	}
}

// schemaSQL describes all that migrate makes, for comparison.
const schemaSQL = `
SELECT format('%s %s %s', c.relkind, c.relname, c.relacl::text) FROM pg_class c WHERE c.relnamespace = 'pgtrickle'::regnamespace
UNION ALL
SELECT format('%s.%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid))
	FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
	WHERE c.relnamespace = 'pgtrickle'::regnamespace
UNION ALL
SELECT pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') || coalesce(obj_description(p.oid, 'pg_proc'), '') FROM pg_proc p WHERE p.pronamespace = 'pgtrickle'::regnamespace
UNION ALL
SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'pgtrickle'::regnamespace
UNION ALL
SELECT pg_get_triggerdef(g.oid) FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid WHERE c.relnamespace = 'pgtrickle'::regnamespace AND NOT tgisinternal
UNION ALL
SELECT k::text FROM pgtrickle.relay_backend_keys k
UNION ALL
SELECT format('%s %s %s', version, name, checksum) FROM pgtrickle.relay_migrations
ORDER BY 1`

func schema(t testing.TB, pool *pgxpool.Pool) string {
	return strings.Join(query(t, pool, schemaSQL), "\n")
}

func TestUpIsSafeWhenManyStart(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	group, ctx := errgroup.WithContext(context.Background())
	for range 10 {
		group.Go(func() error { return migrate.Up(ctx, pool, nil) })
	}
	if err := group.Wait(); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got, want := schema(t, pool), schema(t, migrated(t)); got != want {
		t.Errorf("ten at once make another schema than one")
	}
}

func TestUpAgainChangesNothing(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE public.t (id int)`)
	run(t, pool, `SELECT pgtrickle.enable_outbox('public.t')`)
	before, xact := schema(t, pool), one(t, pool, `SELECT max(xmin::text::bigint)::text FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace`)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := one(t, pool, `SELECT max(xmin::text::bigint)::text FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace`); got != xact {
		t.Errorf("Up wrote to a database that is up to date")
	}
	// As after an upgrade: everything is applied again over what is there.
	run(t, pool, `UPDATE pgtrickle.relay_migrations SET checksum = 'old'`)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := schema(t, pool); got != before {
		t.Errorf("Up over an older version makes another schema")
	}
}

func TestUpLeavesNewerCatalogAlone(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `INSERT INTO pgtrickle.relay_migrations VALUES (998, 'future', 'x')`)
	run(t, pool, `UPDATE pgtrickle.relay_migrations SET checksum = 'other' WHERE version > 0`)
	run(t, pool, `DROP FUNCTION pgtrickle.delete_relay(text)`)
	run(t, pool, `DELETE FROM pgtrickle.relay_backend_keys WHERE backend = 'nats' AND key <> 'url'`)
	if err := migrate.Up(context.Background(), pool, []migrate.Backend{{Name: "pigeon", HasSink: true}}); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := query(t, pool, `SELECT DISTINCT backend || '.' || key FROM pgtrickle.relay_backend_keys WHERE backend IN ('nats', 'pigeon') ORDER BY 1`); !slices.Equal(got, []string{"nats.url", "pigeon.type"}) {
		t.Errorf("Up over a newer version makes keys %v; want those of unknown backends alone", got)
	}
	if got := query(t, pool, `SELECT proname::text FROM pg_proc WHERE proname = 'delete_relay'`); len(got) > 0 {
		t.Errorf("Up put back a function of an older version")
	}
}

func TestSQLMakesTheSameSchema(t *testing.T) {
	t.Parallel()
	psql, err := exec.LookPath("psql")
	if err != nil {
		if os.Getenv("RELAY_TEST_REQUIRE") != "" {
			t.Fatal("psql is not installed")
		}
		t.Skip("psql is not installed")
	}
	sql, err := migrate.SQL(nil)
	if err != nil {
		t.Fatalf("SQL: %v", err)
	}
	url := pgtest.URL(t)
	for range 2 {
		cmd := exec.CommandContext(t.Context(), psql, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", url)
		cmd.Stdin = strings.NewReader(sql)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("psql: %v\n%s", err, out)
		}
	}
	if got, want := schema(t, pgtest.Open(t, url)), schema(t, migrated(t)); got != want {
		t.Errorf("psql makes another schema than Up")
	}
}

func TestSQLGolden(t *testing.T) {
	t.Parallel()
	got, err := migrate.SQL(nil)
	if err != nil {
		t.Fatalf("SQL: %v", err)
	}
	// The keys change with every backend; they have tests of their own.
	got = got[:strings.Index(got, "DO $keys$")]
	golden := filepath.Join("testdata", "migrate.golden.sql")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the SQL is not that of %s; run the test with -update and look at the difference", golden)
	}
}

func TestManagedDatabase(t *testing.T) {
	t.Parallel()
	admin := pgtest.Pool(t)
	db := one(t, admin, `SELECT current_database()::text`)
	role := db + "_owner"
	run(t, admin, `CREATE ROLE `+role+` LOGIN`)
	t.Cleanup(func() {
		run(t, admin, `REASSIGN OWNED BY `+role+` TO CURRENT_USER; DROP OWNED BY `+role+`; DROP ROLE `+role)
	})
	run(t, admin, `GRANT CREATE ON DATABASE `+db+` TO `+role)
	if err := migrate.Up(context.Background(), migrated(t), nil); err != nil { // the role exists
		t.Fatal(err)
	}
	config := admin.Config()
	config.ConnConfig.User, config.ConnConfig.Password = role, ""
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up without superuser: %v", err)
	}
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"t","sink_type":"stdout"}')`)
	run(t, pool, `CREATE SCHEMA app CREATE TABLE t (id int)`)
	run(t, pool, `SELECT pgtrickle.enable_outbox('app.t')`)
	run(t, pool, `INSERT INTO app.t VALUES (1)`)
	run(t, pool, `TRUNCATE app.t`)
	run(t, pool, `SELECT pgtrickle.create_inbox('box', 'app')`)
	if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.outbox_t`); got != "2" {
		t.Errorf("outbox has %s rows; want 2", got)
	}
	if got := one(t, pool, `SELECT has_table_privilege('pgtrickle_relay', 'app.box', 'INSERT')::text`); got != "true" {
		t.Errorf("the relay may not write app.box")
	}
}

func TestMissing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := pgtest.Pool(t)
	missing := func() string {
		t.Helper()
		got, err := migrate.Missing(ctx, pool)
		if err != nil {
			t.Fatalf("Missing: %v", err)
		}
		return strings.Join(got, "\n")
	}
	if got := missing(); !strings.Contains(got, `no relay catalog: run "pgtrickle-relay migrate"`) {
		t.Errorf("Missing on an empty database = %q", got)
	}
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := missing(); got != "" {
		t.Errorf("Missing after Up = %q", got)
	}
	run(t, pool, `DELETE FROM pgtrickle.relay_migrations WHERE version = (SELECT max(version) FROM pgtrickle.relay_migrations)`)
	if got := missing(); !strings.Contains(got, `this binary needs`) {
		t.Errorf("Missing on an old catalog = %q", got)
	}

	role := one(t, pool, `SELECT current_database() || '_stranger'`)
	run(t, pool, `CREATE ROLE `+role+` LOGIN`)
	t.Cleanup(func() { run(t, pool, `DROP ROLE `+role) })
	config := pool.Config()
	config.ConnConfig.User = role
	stranger, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stranger.Close)
	got, err := migrate.Missing(ctx, stranger)
	if err != nil || len(got) != 1 || !strings.Contains(got[0], `GRANT pgtrickle_relay TO "`+role+`"`) {
		t.Errorf("Missing for a stranger = %q, %v", got, err)
	}

	// What single tables lack is not the catalog's.
	run(t, pool, `TRUNCATE pgtrickle.relay_migrations`)
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, `CREATE TABLE public.orders (id int); SELECT pgtrickle.enable_outbox('public.orders'), pgtrickle.create_inbox('box')`)
	run(t, pool, `GRANT pgtrickle_relay TO `+role)
	if got, err := migrate.Denied(ctx, stranger); err != nil || len(got) != 0 {
		t.Errorf("Denied = %q, %v; want nothing", got, err)
	}
	run(t, pool, `REVOKE SELECT ON pgtrickle.outbox_orders FROM pgtrickle_relay; REVOKE INSERT ON pgtrickle.box FROM pgtrickle_relay`)
	if got, err := migrate.Missing(ctx, stranger); err != nil || len(got) != 0 {
		t.Errorf("Missing = %q, %v; want nothing, for the catalog is all there", got, err)
	}
	want := []string{"SELECT ON pgtrickle.outbox_orders", "INSERT ON pgtrickle.box"}
	if got, err := migrate.Denied(ctx, stranger); err != nil || !slices.Equal(got, want) {
		t.Errorf("Denied = %q, %v; want %q", got, err, want)
	}
}

func TestLinkedBackendReplacesKnown(t *testing.T) {
	t.Parallel()
	type config struct {
		URL  string `json:"url" relay:"required" doc:"Where to send."`
		Mode string `json:"mode" relay:"enum=slow|fast" doc:"How."`
	}
	sink := relaycfg.Sink(config{}, func(context.Context, relay.Env, config) (relay.Sink, error) { return nil, nil })
	pool := pgtest.Pool(t)
	specs := migrate.Specs([]relay.Backend{
		{Name: "pigeon", Aliases: []string{"dove"}, Sink: sink},
		{Name: "nats", Sink: sink},
	})
	if err := migrate.Up(context.Background(), pool, specs); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('a', config => '{"stream_table":"t","sink_type":"dove","pigeon_url":"coop","pigeon_mode":"fast"}')`)
	refused(t, pool, "P0001", `key "pigeon_mode": unknown value "fats"; did you mean "fast"?`,
		`SELECT pgtrickle.set_relay_outbox('a', config => '{"stream_table":"t","sink_type":"pigeon","pigeon_url":"coop","pigeon_mode":"fats"}')`)
	refused(t, pool, "P0001", `key "nats_stream": unknown key`,
		`SELECT pgtrickle.set_relay_outbox('a', config => '{"stream_table":"t","sink_type":"nats","nats_url":"x","nats_stream":"s"}')`)

	// A binary without the pigeon leaves its keys.
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.relay_backend_keys WHERE backend = 'pigeon'`); got != "3" {
		t.Errorf("%s keys of pigeon are left; want 3", got)
	}
}

// TestKnownBackends keeps the embedded list true to the settings of every
// pipeline, and each key's type one that the SQL validation knows.
func TestKnownBackends(t *testing.T) {
	t.Parallel()
	common := migrate.Backend{
		Name: migrate.Common, HasSink: true, HasSource: true,
		Sink: catalog.Keys(relay.Forward), Source: catalog.Keys(relay.Reverse),
	}
	got, err := migrate.Describe([]migrate.Backend{common})
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("backends.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("backends.json")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("backends.json is not true to catalog.Keys; run the test with -update")
	}

	backends, err := migrate.Known(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(backends) != 9 {
		t.Errorf("%d entries; want %s and eight backends", len(backends), migrate.Common)
	}
	types := "string integer number boolean duration size list object settings template secret"
	for _, b := range backends {
		for _, keys := range [][]relaycfg.Key{b.Sink, b.Source} {
			for _, k := range keys {
				if !strings.Contains(types, k.Type) {
					t.Errorf("%s.%s has type %q", b.Name, k.Name, k.Type)
				}
			}
		}
	}
}
