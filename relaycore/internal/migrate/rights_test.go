package migrate_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
)

// TestBorrowedRights lets a superuser's session run a stranger's code, in the ways
// in which PostgreSQL switches to the stranger's rights. The objects of other roles
// must be as safe as from the stranger's own session.
func TestBorrowedRights(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := migrated(t)
	owner, stranger := roles(t, pool)
	run(t, pool, fmt.Sprintf(`
		GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox, pgtrickle.create_inbox TO %[1]s, %[2]s;
		CREATE SCHEMA app AUTHORIZATION %[1]s; CREATE SCHEMA evil AUTHORIZATION %[2]s; GRANT USAGE ON SCHEMA app TO %[2]s;
		SET ROLE %[1]s;
		CREATE TABLE app.payments (id int); SELECT pgtrickle.enable_outbox('app.payments'); INSERT INTO app.payments VALUES (1);
		CREATE TABLE app.other (id int); CREATE TABLE app.free (event_id text PRIMARY KEY);
		SELECT pgtrickle.create_inbox('box', 'app');
		RESET ROLE;
		SELECT pgtrickle.create_outbox('events')`, owner, stranger))

	const config = `to_jsonb(ROW('free', 'app', 3, '1s', false, false, 72,
		'event_id', 'event_id', 'event_id', 'event_id', 'event_id', 'event_id', true, now())::pgtrickle.pgt_inbox_config)`
	requests := []string{
		`'drop outbox', 'outbox_payments', NULL`,
		`'drop outbox', 'outbox_events', NULL`,
		`'describe outbox', 'outbox_payments', '{"policy": "ignore"}'`,
		`'describe outbox', 'outbox_events', '{"policy": "ignore"}'`,
		`'create outbox', 'app.other'::regclass::oid::text, '{"retention_hours": 1}'`,
		`'unregister inbox', 'box', NULL`,
		`'register inbox', 'app.free', ` + config,
	}
	attempts := []string{
		`SELECT pgtrickle.disable_outbox('app.payments')`,
		`SELECT pgtrickle.disable_outbox('events')`,
		`SELECT pgtrickle._relay_drop_outbox('outbox_events')`,
		`SELECT pgtrickle._relay_describe_outbox('outbox_payments', 'app.payments', 'ignore')`,
		`SELECT pgtrickle._relay_create_outbox('app.other', 1)`,
		`SELECT pgtrickle.enable_outbox('app.other')`,
		`SELECT pgtrickle.drop_inbox('box')`,
		`SELECT pgtrickle.create_outbox('more')`,
		`SELECT pgtrickle.set_relay_outbox('p', 'events', NULL, '{"type": "stdout"}')`,
	}
	for _, request := range requests {
		attempts = append(attempts,
			`INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES (`+request+`)`,
			`INSERT INTO pgtrickle._relay_requests (caller, action, target, detail) VALUES (session_user, `+request+`)`)
	}
	var body strings.Builder
	for _, sql := range attempts {
		fmt.Fprintf(&body, "BEGIN EXECUTE %s; EXCEPTION WHEN OTHERS THEN NULL; END;\n", "$q$"+sql+"$q$")
	}
	run(t, pool, fmt.Sprintf(`SET ROLE %s;
		CREATE TABLE evil.ran (at timestamptz DEFAULT clock_timestamp());
		CREATE FUNCTION evil.try() RETURNS int LANGUAGE plpgsql VOLATILE AS $f$ BEGIN INSERT INTO evil.ran DEFAULT VALUES; %s RETURN 1; END $f$;
		CREATE FUNCTION evil.armed() RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT rolsuper AND current_setting('role') = 'none' FROM pg_roles WHERE rolname = session_user $$;
		CREATE FUNCTION evil.quiet(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN IF evil.armed() THEN RETURN $1 + evil.try() * 0; END IF; RETURN $1; END $$;
		CREATE FUNCTION evil.definer() RETURNS int LANGUAGE sql SECURITY DEFINER AS $$ SELECT evil.try() $$;
		CREATE FUNCTION evil.on_insert() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM evil.try(); RETURN NEW; END $$;
		CREATE TABLE evil.indexed (id int); INSERT INTO evil.indexed SELECT generate_series(1, 3); CREATE INDEX indexed_idx ON evil.indexed (evil.quiet(id));
		CREATE MATERIALIZED VIEW evil.mv AS SELECT evil.quiet(id) FROM evil.indexed;
		CREATE TABLE evil.t (id int); CREATE TRIGGER t BEFORE INSERT ON evil.t FOR EACH ROW EXECUTE FUNCTION evil.on_insert();
		RESET ROLE`, stranger, body.String()))

	const state = `SELECT format('%s %s %s %s %s %s',
		(SELECT string_agg(outbox_table_name || ' ' || coalesce(truncate_policy, ''), ',' ORDER BY 1) FROM pgtrickle.relay_outboxes o),
		(SELECT string_agg(outbox_table_name, ',' ORDER BY 1) FROM pgtrickle.pgt_outbox_config),
		(SELECT string_agg(inbox_name, ',' ORDER BY 1) FROM pgtrickle.pgt_inbox_config),
		(SELECT string_agg(relname, ',' ORDER BY 1) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname LIKE 'outbox%'),
		(SELECT count(*) FROM pgtrickle.relay_outbox_config),
		(SELECT count(*) FROM pg_trigger WHERE tgrelid IN ('app.payments'::regclass, 'app.other'::regclass)))`
	before := one(t, pool, state)
	for name, sql := range map[string]string{
		"ANALYZE of an index's expression":      `ANALYZE evil.indexed`,
		"VACUUM ANALYZE":                        `VACUUM ANALYZE evil.indexed`,
		"REINDEX":                               `REINDEX TABLE evil.indexed`,
		"REFRESH MATERIALIZED VIEW":             `REFRESH MATERIALIZED VIEW evil.mv`,
		"a call of a SECURITY DEFINER function": `SELECT evil.definer()`,
		"a SECURITY DEFINER trigger":            `INSERT INTO evil.t VALUES (1)`,
	} {
		t.Run(name, func(t *testing.T) {
			run(t, pool, `TRUNCATE evil.ran`)
			conn, err := pool.Acquire(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			if _, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
			if one(t, pool, `SELECT (count(*) > 0)::text FROM evil.ran`) != "true" {
				t.Fatalf("%s did not run the stranger's code", sql)
			}
			if got := one(t, pool, state); got != before {
				t.Errorf("after %s:\n got %s\nwant %s", sql, got, before)
			}
		})
	}
	t.Run("the stranger's own session", func(t *testing.T) {
		// Not even where all privileges on tables were given away.
		run(t, pool, `GRANT INSERT, SELECT ON pgtrickle._relay_requests TO `+stranger)
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(ctx)
		if _, err := tx.Exec(ctx, `SET LOCAL SESSION AUTHORIZATION `+stranger+`; SELECT evil.try(); SET LOCAL SESSION AUTHORIZATION DEFAULT`); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if got := one(t, pool, state); got != before {
			t.Errorf("got %s\nwant %s", got, before)
		}
	})

	// The same requests are granted to the owner, and to a role that has its rights.
	for _, sql := range []string{
		`SET LOCAL ROLE ` + owner + `; SELECT pgtrickle.enable_outbox('app.other'); SELECT pgtrickle.outbox_truncate_policy('app.other', 'ignore')`,
		`SET LOCAL SESSION AUTHORIZATION ` + owner + `; SELECT pgtrickle.disable_outbox('app.other'); SELECT pgtrickle.drop_inbox('box')`,
		`SET LOCAL session_replication_role = replica; SELECT pgtrickle.enable_outbox('app.other')`,
		`SELECT pgtrickle.disable_outbox('app.other'); SELECT pgtrickle.disable_outbox('events')`,
		// A function of the owner is the owner.
		`CREATE FUNCTION app.stop() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ SELECT pgtrickle.disable_outbox('app.payments') $$;
		 ALTER FUNCTION app.stop() OWNER TO ` + owner + `; GRANT USAGE ON SCHEMA app TO ` + stranger + `; SET LOCAL SESSION AUTHORIZATION ` + stranger + `; SELECT app.stop()`,
	} {
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		}); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	const left = `SELECT (SELECT count(*) FROM pgtrickle.relay_outboxes) || ' ' || (SELECT count(*) FROM pgtrickle.pgt_inbox_config) || ' ' ||
		(SELECT count(*) FROM pgtrickle._relay_requests) || ' ' || (SELECT count(*) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relname LIKE 'outbox%')`
	if got := one(t, pool, left); got != "0 0 0 0" {
		t.Errorf("outboxes, inboxes, requests and tables left: %s; want none", got)
	}
}

// TestOutboxesAreForTrustedOwners lets a table's owner make an outbox once the
// schema's owner has granted it, which lasts.
func TestOutboxesAreForTrustedOwners(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := migrated(t)
	owner, _ := roles(t, pool)
	run(t, pool, `REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE TABLE mine (id int); ALTER TABLE mine OWNER TO `+owner)
	const enable = `; SELECT pgtrickle.enable_outbox('public.mine')`
	as := `SET LOCAL ROLE ` + owner
	refused(t, pool, "42501", "enable_outbox", as+enable)
	refused(t, pool, "42501", "enable_outbox", as+`; INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES ('create outbox', 'public.mine'::regclass::oid::text, '{"retention_hours": 1}')`)
	refused(t, pool, "42501", "enable_outbox", as+`; SELECT pgtrickle._relay_enable_outbox('public.mine', '{}', 1)`)
	run(t, pool, `GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox TO `+owner+`; UPDATE pgtrickle.relay_migrations SET checksum = 'old'`)
	refused(t, pool, "42501", "may not create the trigger function of public.mine in schema public", as+enable)
	run(t, pool, `GRANT CREATE ON SCHEMA public TO `+owner)
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, as+enable+`; SELECT pgtrickle.disable_outbox('public.mine')`)
}

// TestSchemaOwnerWithoutRights lets a role that may not see the tables' schema own
// ours: the owner of the tables needs nothing from it there.
func TestSchemaOwnerWithoutRights(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	owner, relay := roles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT CREATE ON DATABASE %[3]s TO %[2]s; DROP SCHEMA pgtrickle CASCADE; CREATE SCHEMA app AUTHORIZATION %[1]s`,
		owner, relay, one(t, pool, `SELECT quote_ident(current_database())`)))
	if err := pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(context.Background(), `SET LOCAL SESSION AUTHORIZATION `+relay); err != nil {
			return err
		}
		return migrate.Up(context.Background(), tx, nil)
	}); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, `GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox, pgtrickle.create_inbox TO `+owner)
	run(t, pool, `SET LOCAL ROLE `+owner+`; CREATE TABLE app.t (id int); SELECT pgtrickle.create_inbox('box', 'app'); SELECT pgtrickle.enable_outbox('app.t');
		INSERT INTO app.t VALUES (1); SELECT pgtrickle.outbox_truncate_policy('app.t', 'ignore'); TRUNCATE app.t;
		SELECT pgtrickle.drop_inbox('box'); SELECT pgtrickle.disable_outbox('app.t')`)
}
