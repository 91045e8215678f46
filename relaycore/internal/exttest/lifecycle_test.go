package exttest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

const pipeline = `SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"orders","sink_type":"stdout"}')`

func up(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	if missing, err := migrate.Missing(context.Background(), pool); err != nil || len(missing) > 0 {
		t.Errorf("Missing = %q, %v", missing, err)
	}
}

// release runs what migrate --release-extension prints for this database, without
// comments and without what belongs to other databases, up to a comment.
func release(t *testing.T, pool *pgxpool.Pool, until string) (printed string) {
	t.Helper()
	lines, err := migrate.Release(context.Background(), pool)
	if err != nil {
		t.Fatalf("Release: %v", err)
	}
	ran := 0
	for _, l := range lines {
		if until != "" && strings.Contains(l, until) {
			break
		}
		if strings.HasPrefix(l, "--") || strings.HasPrefix(l, "CREATE EXTENSION") {
			continue
		}
		exec(t, pool, l)
		ran++
	}
	if ran == 0 {
		t.Errorf("Release = %q: nothing to run", lines)
	}
	return strings.Join(lines, "\n")
}

func names(t *testing.T, pool *pgxpool.Pool) (got string) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), `SELECT coalesce(string_agg(name, ' '), '') FROM pgtrickle.list_relay_configs()`).Scan(&got); err != nil {
		t.Fatalf("list_relay_configs: %v", err)
	}
	return got
}

// oneVersion skips the test beside the real extension, of which a server has one version.
func oneVersion(t *testing.T) {
	t.Helper()
	if exttest.Real() {
		t.Skip("the server has one version of pg_trickle")
	}
}

// TestUpdateTo46 goes from 0.45 to 0.46 with a plain database beside: the printed
// statements free the role in both, and pipelines survive.
func TestUpdateTo46(t *testing.T) {
	t.Parallel()
	oneVersion(t)
	pool, _ := extension(t)
	beside := pgtest.Pool(t)
	up(t, pool)
	up(t, beside)
	exec(t, pool, pipeline)
	both := []string{pool.Config().ConnConfig.Database, beside.Config().ConnConfig.Database}
	if err := exttest.Update(pool, both...); err == nil || !strings.Contains(err.Error(), "cannot be dropped") {
		t.Fatalf("Update with grants: %v", err)
	}
	printed := release(t, pool, "after the update")
	if err := exttest.Update(pool, both...); err == nil {
		t.Error("the update passed while the other database has grants")
	}
	if want := fmt.Sprintf("-- in database %s\nDROP OWNED BY pgtrickle_relay;", pgx.Identifier{both[1]}.Sanitize()); !strings.Contains(strings.ReplaceAll(printed, both[1], `"`+both[1]+`"`), want) &&
		!strings.Contains(printed, strings.ReplaceAll(want, `"`, "")) {
		t.Errorf("printed %s\nwant %s", printed, want)
	}
	exec(t, beside, `DROP OWNED BY pgtrickle_relay`)
	if err := exttest.Update(pool, both...); err != nil {
		t.Fatalf("Update: %v", err)
	}

	if missing, err := migrate.Missing(context.Background(), pool); err != nil || len(missing) != 1 || !strings.Contains(missing[0], "were dropped since") {
		t.Errorf("Missing after the update = %q, %v", missing, err)
	}
	up(t, pool)
	up(t, beside)
	up(t, pool) // a second run changes nothing
	if got := names(t, pool); got != "p" {
		t.Errorf("pipelines %q survived, want p", got)
	}
	usable(t, pool)
}

// usable reads a plain outbox and a table of one's own.
func usable(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, `CREATE TABLE public.plain (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.plain'); INSERT INTO public.plain VALUES (1)`)
	exec(t, pool, `CREATE TABLE public.own (id bigserial PRIMARY KEY, payload jsonb); INSERT INTO public.own (payload) VALUES ('{"a":1}')`)
	exec(t, pool, `SELECT pgtrickle.outbox_publish('plain', '{"id":3}'); SELECT pgtrickle.relay_grant_access()`)
	for name, n := range map[string]int{"public.plain": 2, "public.own": 1} {
		src, err := outbox.Open(context.Background(), pool, outbox.Config{Outbox: name, Group: "g", Pipeline: "q"})
		if err != nil {
			t.Errorf("Open(%s): %v", name, err)
			continue
		}
		msgs, err := src.Look(context.Background(), 10)
		if err != nil || len(msgs) != n {
			t.Errorf("%s has %d messages, %v; want %d", name, len(msgs), err, n)
		}
		_ = src.Close()
	}
	if denied, err := migrate.Denied(context.Background(), pool); err != nil || len(denied) > 0 {
		t.Errorf("Denied = %q, %v", denied, err)
	}
}

// TestFresh46: migrate in a database that has had no older pg_trickle.
func TestFresh46(t *testing.T) {
	t.Parallel()
	pool := pgtest.Open(t, exttest.NewerURL(t))
	exttest.InstallNewer(t, pool)
	up(t, pool)
	exec(t, pool, pipeline)
	usable(t, pool)
}

// TestMigrateFirst: pg_trickle is installed into a database that has our catalog.
func TestMigrateFirst(t *testing.T) {
	t.Parallel()
	pool := pgtest.Open(t, exttest.URL(t))
	up(t, pool)
	exec(t, pool, pipeline)
	if err := exttest.Create(pool); err == nil {
		t.Fatal("CREATE EXTENSION passed")
	}
	lines, err := migrate.Release(context.Background(), pool)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range lines {
		switch {
		case strings.HasPrefix(l, "CREATE EXTENSION"):
			exttest.Install(t, pool)
		case strings.Contains(l, "pgtrickle-relay migrate"):
			up(t, pool)
		case !strings.HasPrefix(l, "--"):
			exec(t, pool, l)
		}
	}
	if got := names(t, pool); got != "p" {
		t.Errorf("pipelines %q, want p", got)
	}
}

// TestOn28: migrate works on 0.28, and what it made can be handed to the extension.
func TestOn28(t *testing.T) {
	t.Parallel()
	oneVersion(t)
	pool := pgtest.Pool(t)
	exttest.Install28(t, pool)
	up(t, pool)
	exec(t, pool, pipeline)
	release(t, pool, "")
	var members int
	if err := pool.QueryRow(context.Background(), `SELECT count(*) FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_trickle')
		AND (objid IN ('pgtrickle.relay_outbox_config'::regclass, 'pgtrickle.relay_inbox_config'::regclass, 'pgtrickle.relay_consumer_offsets'::regclass)
			OR objid IN (SELECT oid FROM pg_proc WHERE proname IN ('set_relay_outbox', 'set_relay_inbox', 'enable_relay', 'disable_relay', 'delete_relay', 'get_relay_config', 'list_relay_configs', 'relay_config_notify')))`).Scan(&members); err != nil || members != 11 {
		t.Errorf("%d objects are members of the extension, %v; want 11", members, err)
	}
}

// TestOwnerBesideExtension: migrate prints what an owner of the database without superuser lacks.
func TestOwnerBesideExtension(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool, _ := extension(t)
	database := pool.Config().ConnConfig.Database
	owner := database + "_owner"
	exec(t, pool, fmt.Sprintf(`CREATE ROLE %[1]s; ALTER DATABASE %[2]s OWNER TO %[1]s`, owner, database))
	t.Cleanup(func() {
		exec(t, pool, fmt.Sprintf(`ALTER DATABASE %[2]s OWNER TO postgres; REASSIGN OWNED BY %[1]s TO postgres; DROP OWNED BY %[1]s; DROP ROLE %[1]s`, owner, database))
	})
	as := func() error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `SET LOCAL SESSION AUTHORIZATION `+owner); err != nil {
				return err
			}
			return migrate.Up(ctx, tx, nil)
		})
	}
	err := as()
	if err == nil || !strings.Contains(err.Error(), "let a superuser run:") {
		t.Fatalf("Up as the owner: %v", err)
	}
	_, statements, _ := strings.Cut(err.Error(), "let a superuser run:\n")
	exec(t, pool, statements)
	if err := as(); err != nil {
		t.Fatalf("Up as the owner, after what it asked for: %v", err)
	}
	exec(t, pool, `SET LOCAL SESSION AUTHORIZATION `+owner+`; `+pipeline)
}

// TestGone: migrate makes again what was dropped since.
func TestGone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	up(t, pool)
	exec(t, pool, `DROP TABLE pgtrickle.relay_outbox_config CASCADE; DROP FUNCTION pgtrickle.list_relay_configs()`)
	up(t, pool)
	exec(t, pool, pipeline)
	if got := names(t, pool); got != "p" {
		t.Errorf("pipelines %q, want p", got)
	}
}

// TestMessages: errors name the right table and its cure.
func TestMessages(t *testing.T) {
	t.Parallel()
	pool, url := extension(t)
	up(t, pool)
	exec(t, pool, `CREATE SCHEMA app; SELECT pgtrickle.create_inbox('incoming', 'app'); SELECT pgtrickle.disable_outbox('public.orders')`)
	plain := pgtest.Open(t, exttest.RelayRole(t, pool, url))
	_, err := inbox.Open(context.Background(), plain, inbox.Config{Table: "incoming"})
	if err == nil || !strings.Contains(err.Error(), `inbox "incoming" is registered in schema "app"; set inbox_schema to that`) {
		t.Errorf("an inbox in another schema: %v", err)
	}
	_, err = outbox.Open(context.Background(), plain, outbox.Config{Outbox: "public.orders", Group: "g", Pipeline: "q"})
	if err == nil || !strings.Contains(err.Error(), `"public"."orders" is no outbox: SELECT pgtrickle.enable_outbox('public.orders') makes`) {
		t.Errorf("a stream table without outbox: %v", err)
	}
}
