package migrate_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// ofSuperusers counts the objects of schema pgtrickle, and the schema itself, that
// belong to a superuser.
const ofSuperusers = `SELECT count(*)::text FROM (
	SELECT nspowner FROM pg_namespace WHERE nspname = 'pgtrickle'
	UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace
	UNION ALL SELECT proowner FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace) o(oid)
	JOIN pg_roles r USING (oid) WHERE r.rolsuper`

// as migrates as a role, or with its name as the owner.
func as(t testing.TB, pool *pgxpool.Pool, role, owner string) (report migrate.Report, err error) {
	t.Helper()
	return report, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if role != "" {
			if _, err := tx.Exec(t.Context(), `SET LOCAL SESSION AUTHORIZATION `+role); err != nil {
				return err
			}
		}
		report, err = migrate.Install(t.Context(), tx, migrate.Options{Owner: owner})
		return err
	})
}

func wantErr(t testing.TB, err error, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error %v; want %q in it", err, part)
		}
	}
}

// TestSuperuserOwnsNothing: functions that run with their owner's rights must not belong to
// a superuser, also where an older version has made them.
func TestSuperuserOwnsNothing(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	if got := one(t, pool, ofSuperusers); got != "0" {
		t.Errorf("migrate made %s objects of a superuser; want 0", got)
	}

	run(t, pool, `CREATE TABLE public.t (id int); SELECT pgtrickle.enable_outbox('public.t'), pgtrickle.create_inbox('box'), pgtrickle.create_outbox('events');
		INSERT INTO public.t VALUES (1)`)
	run(t, pool, `DO $$ DECLARE s text; BEGIN
		FOR s IN SELECT format('ALTER TABLE %s OWNER TO CURRENT_USER', oid::regclass) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relkind IN ('r', 'v')
			UNION ALL SELECT format('ALTER FUNCTION %s OWNER TO CURRENT_USER', oid::regprocedure) FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace
			UNION ALL SELECT 'ALTER SCHEMA pgtrickle OWNER TO CURRENT_USER' LOOP EXECUTE s; END LOOP; END $$`)
	report, err := as(t, pool, "", "")
	if err != nil {
		t.Fatalf("migrate over a superuser's schema: %v", err)
	}
	for _, want := range []string{"ALTER SCHEMA pgtrickle OWNER TO pgtrickle_owner", "ALTER TABLE pgtrickle.outbox_t OWNER TO pgtrickle_owner"} {
		if !strings.Contains(strings.Join(report.HandedOver, "\n"), want) {
			t.Errorf("the report has no %q: %q", want, report)
		}
	}
	if got := one(t, pool, ofSuperusers); got != "0" {
		t.Errorf("%s objects of a superuser after the hand-over; want 0", got)
	}
	run(t, pool, `INSERT INTO public.t VALUES (2); TRUNCATE public.t; SELECT pgtrickle.outbox_publish('events', '{"a":1}'), pgtrickle.inbox_health('box')`)
	if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.outbox_t`); got != "4" {
		t.Errorf("the outbox has %s rows after the hand-over; want 4", got)
	}
	if report, err := as(t, pool, "", ""); err != nil || len(report.HandedOver) > 0 {
		t.Errorf("a second migrate: %q, %v; want nothing", report, err)
	}
}

// TestSchemaOfAnotherRole: a role that owns the schema owns what is made in it. So no
// other role migrates there, unless it names the owner.
func TestSchemaOfAnotherRole(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mallory, other := roles(t, pool)
	run(t, pool, `CREATE SCHEMA pgtrickle AUTHORIZATION `+mallory)
	_, err := as(t, pool, "", "")
	wantErr(t, err, "schema pgtrickle belongs to role "+mallory, "--owner="+mallory)
	run(t, pool, `GRANT ALL ON SCHEMA pgtrickle TO `+other)
	_, err = as(t, pool, other, "")
	wantErr(t, err, "schema pgtrickle belongs to role "+mallory)
	_, err = as(t, pool, "", other)
	wantErr(t, err, "schema pgtrickle belongs to role "+mallory)
	if got := one(t, pool, `SELECT count(*)::text FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace`); got != "0" {
		t.Errorf("%s functions were made; want none", got)
	}

	if _, err := as(t, pool, "", mallory); err != nil {
		t.Fatalf("migrate with the owner's name: %v", err)
	}
	if got := one(t, pool, `SELECT DISTINCT proowner::regrole::text FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace`); got != mallory {
		t.Errorf("the functions belong to %s; want %s", got, mallory)
	}
}

// TestSquattedName: a relation or function with one of our names and another owner is not
// taken for one of the extension's.
func TestSquattedName(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"table":    `CREATE VIEW pgtrickle.relay_dead_letters AS SELECT 1 AS id`,
		"function": `CREATE FUNCTION pgtrickle._relay_stream_oid(text) RETURNS regclass LANGUAGE sql AS 'SELECT NULL::regclass'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			owner, mallory := roles(t, pool)
			run(t, pool, fmt.Sprintf(`CREATE SCHEMA pgtrickle AUTHORIZATION %s; GRANT ALL ON SCHEMA pgtrickle TO %s; SET ROLE %[2]s; %[3]s; RESET ROLE`, owner, mallory, sql))
			_, err := as(t, pool, owner, "")
			wantErr(t, err, "belongs to role "+mallory)
		})
	}
}

// TestOwnerRole: the owner is no superuser, and the migrating role must be able to become it.
func TestOwnerRole(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	migrator, other := roles(t, pool)
	database := one(t, pool, `SELECT quote_ident(current_database())`)
	_, err := as(t, pool, migrator, "")
	wantErr(t, err, "run it as the database's owner, or let that role GRANT CREATE ON DATABASE")
	run(t, pool, fmt.Sprintf(`GRANT CREATE ON DATABASE %s TO %s`, database, migrator))

	_, err = as(t, pool, "", one(t, pool, `SELECT current_user::text`))
	wantErr(t, err, "is a superuser")
	_, err = as(t, pool, migrator, other)
	wantErr(t, err, fmt.Sprintf("GRANT %s TO %s", other, migrator))
	_, err = as(t, pool, migrator, migrator+"_new")
	wantErr(t, err, fmt.Sprintf("CREATE ROLE %s_new NOLOGIN", migrator))

	run(t, pool, `ALTER ROLE `+migrator+` CREATEROLE`)
	t.Cleanup(func() { run(t, pool, `DROP OWNED BY `+migrator+`_new CASCADE; DROP ROLE `+migrator+`_new`) })
	if _, err := as(t, pool, migrator, migrator+"_new"); err != nil {
		t.Fatalf("migrate with a role that it may create: %v", err)
	}
	if got := one(t, pool, `SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'pgtrickle'`); got != migrator+"_new" {
		t.Errorf("the schema belongs to %s; want the new role", got)
	}
	if _, err := as(t, pool, migrator, migrator+"_new"); err != nil {
		t.Errorf("migrate again: %v", err)
	}
}

// TestGrantsLeft: what the owner role may not grant is reported.
func TestGrantsLeft(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	owner, _ := roles(t, pool)
	run(t, pool, fmt.Sprintf(`CREATE SCHEMA app AUTHORIZATION %[1]s; GRANT EXECUTE ON FUNCTION pgtrickle.create_inbox TO %[1]s; SET ROLE %[1]s; SELECT pgtrickle.create_inbox('box', 'app'); RESET ROLE;
		REVOKE ALL ON app.box FROM pgtrickle_relay; UPDATE pgtrickle.relay_migrations SET checksum = 'old'`, owner))
	report, err := migrate.Install(context.Background(), pool, migrate.Options{})
	if want := "GRANT SELECT, INSERT ON TABLE app.box TO pgtrickle_relay"; err != nil || len(report.ToRun) != 1 || report.ToRun[0] != want {
		t.Errorf("report %q, %v; want %q", report, err, want)
	}
}
