package migrate_test

import (
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
)

// TestRegisteredInboxes: an inbox is a real table of a role that may have inboxes. No role
// takes a name from another one.
func TestRegisteredInboxes(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	owner, mallory := roles(t, pool)
	run(t, pool, fmt.Sprintf(`CREATE SCHEMA app AUTHORIZATION %s; CREATE SCHEMA evil AUTHORIZATION %s`, owner, mallory))
	as := `SET LOCAL ROLE ` + mallory + `; `
	register := func(schema, name string) string {
		return fmt.Sprintf(`INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES ('register inbox', '%[1]s.%[2]s',
			to_jsonb(ROW('%[2]s', '%[1]s', 3, '1s', false, false, 72, 'event_id', 'event_id', 'event_id', 'event_id', 'event_id', 'event_id', true, now())::pgtrickle.pgt_inbox_config))`, schema, name)
	}

	refused(t, pool, "42501", "create_inbox", as+`SELECT pgtrickle.create_inbox('box', 'evil')`)
	refused(t, pool, "42501", "permission denied for function create_inbox", as+`CREATE TABLE evil.box (event_id text); `+register("evil", "box"))
	run(t, pool, fmt.Sprintf(`GRANT EXECUTE ON FUNCTION pgtrickle.create_inbox TO %s, %s`, owner, mallory))
	refused(t, pool, "42809", "evil.v is not a table that lasts", as+`CREATE VIEW evil.v AS SELECT 'x' AS event_id; `+register("evil", "v"))
	refused(t, pool, "42809", "is not a table", as+`CREATE TEMP TABLE box (event_id text, event_type text, received_at timestamptz, processed_at timestamptz, retry_count int); SELECT pgtrickle.create_inbox('box', (SELECT nspname FROM pg_namespace WHERE oid = pg_my_temp_schema()))`)

	run(t, pool, as+`SELECT pgtrickle.create_inbox('payments', 'evil')`)
	run(t, pool, `SET LOCAL ROLE `+owner+`; SELECT pgtrickle.create_inbox('payments', 'app'); SELECT pgtrickle.inbox_health('payments'), pgtrickle.inbox_health('app.payments')`)
	refused(t, pool, "42P09", `inbox "payments" is ambiguous: it could be app.payments, evil.payments`, `SELECT pgtrickle.drop_inbox('payments')`)
	refused(t, pool, "42501", "must be owner", as+`SELECT pgtrickle.drop_inbox('app.payments')`)
	run(t, pool, as+`DROP TABLE evil.payments CASCADE; SELECT pgtrickle.create_inbox('payments', 'evil'), pgtrickle.drop_inbox('evil.payments', p_cascade => true)`)
	if got := one(t, pool, `SELECT inbox_schema FROM pgtrickle.inbox_status('payments')`); got != "app" {
		t.Errorf("inbox payments is registered in %s; want app", got)
	}
}

// TestInboxFunctionsRunNoStrangersCode: a table's owner puts code into its indexes and
// triggers, and a view of another role is code. A superuser's call must not run it.
func TestInboxFunctionsRunNoStrangersCode(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	_, mallory := roles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT EXECUTE ON FUNCTION pgtrickle.create_inbox TO %[1]s; CREATE TABLE public.ran (as_role text); GRANT INSERT ON public.ran TO %[1]s;
		CREATE SCHEMA evil AUTHORIZATION %[1]s; SET ROLE %[1]s;
		CREATE FUNCTION evil.log() RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.ran VALUES (current_user); RETURN 1; END $$;
		CREATE FUNCTION evil.ev(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN
			IF current_user <> '%[1]s' THEN RETURN evil.log(); END IF; RETURN 1; END $$;
		SELECT pgtrickle.create_inbox('indexed', 'evil'), pgtrickle.create_inbox('swapped', 'evil'), pgtrickle.create_inbox('own', 'evil');
		CREATE INDEX ON evil.indexed ((1)) WHERE evil.ev(1) = 1;
		DROP TABLE evil.swapped CASCADE;
		CREATE VIEW evil.swapped AS SELECT evil.log()::text AS event_id, now() AS processed_at, 0 AS retry_count, '' AS error;
		RESET ROLE`, mallory))
	for _, call := range []string{
		`inbox_health('indexed')`, `inbox_health('swapped')`, `replay_inbox_messages('indexed', '{a}')`, `replay_inbox_messages('swapped', '{a}')`,
	} {
		refused(t, pool, "42501", "role "+mallory, `SELECT pgtrickle.`+call)
	}
	if got := query(t, pool, `SELECT as_role FROM public.ran`); len(got) > 0 {
		t.Errorf("the stranger's code ran as %q", got)
	}
	run(t, pool, `SET LOCAL ROLE `+mallory+`; SELECT pgtrickle.inbox_health('own'), pgtrickle.replay_inbox_messages('own', '{a}')`)
}

// TestOlderInboxes: inboxes that an older version registered by name alone stay.
func TestOlderInboxes(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE SCHEMA app; SELECT pgtrickle.create_inbox('box', 'app');
		ALTER TABLE pgtrickle.pgt_inbox_config DROP CONSTRAINT pgt_inbox_config_pkey;
		ALTER TABLE pgtrickle.pgt_inbox_config ADD CONSTRAINT pgt_inbox_config_pkey PRIMARY KEY (inbox_name);
		ALTER TABLE pgtrickle.pgt_inbox_priority_config ADD FOREIGN KEY (inbox_name) REFERENCES pgtrickle.pgt_inbox_config ON DELETE CASCADE;
		UPDATE pgtrickle.relay_migrations SET checksum = 'old'`)
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	run(t, pool, `SELECT pgtrickle.create_inbox('box'), pgtrickle.inbox_health('app.box')`)
}
