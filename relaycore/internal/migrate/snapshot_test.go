package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestSnapshotConditions: a condition of relay_snapshot has the rights of its caller, and
// what the caller may not read it does not select.
func TestSnapshotConditions(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	ops, mallory := roles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT USAGE ON SCHEMA pgtrickle TO %[1]s, %[2]s; GRANT CREATE ON SCHEMA public TO %[1]s, %[2]s;
		GRANT EXECUTE ON FUNCTION pgtrickle.relay_snapshot, pgtrickle.relay_snapshot_cancel TO %[1]s, %[2]s;
		CREATE TABLE orders (id int PRIMARY KEY, region text, secret text); SELECT pgtrickle.enable_outbox('public.orders');
		INSERT INTO orders SELECT g, CASE g %% 2 WHEN 0 THEN 'eu' ELSE 'us' END, 's' FROM generate_series(1, 4000) g;
		GRANT SELECT (id, region) ON orders TO %[1]s; ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
		CREATE POLICY p ON orders FOR SELECT TO %[1]s USING (region = 'eu' OR id = 1);
		CREATE TABLE evidence (who name, session name); GRANT INSERT ON evidence TO %[1]s;
		SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"public.orders","sink_type":"stdin"}'), pgtrickle.relay_pipeline_owner('p', '%[1]s')`, ops, mallory))
	asOps, asMallory := `SET LOCAL ROLE `+ops+`; `, `SET LOCAL ROLE `+mallory+`; `

	for sql, code := range map[string]string{
		asMallory + `SELECT pgtrickle.relay_snapshot('p')`:                                "42501", // the pipeline is another's
		asMallory + `SELECT pgtrickle.relay_snapshot('p', 'true')`:                        "42501",
		asMallory + `SELECT pgtrickle.relay_snapshot_cancel('p')`:                         "42501",
		asOps + `SELECT pgtrickle.relay_snapshot('p', 'secret = ''s''')`:                  "42501", // the column may not be read
		asOps + `SELECT pgtrickle.relay_snapshot('p', 'true); DELETE FROM evidence; --')`: "42601",
		asOps + `SELECT pgtrickle.relay_snapshot('p', 'EXISTS (SELECT FROM evidence)')`:   "42501",
		asOps + `SELECT pgtrickle.relay_snapshot('p', 'nothing = 1')`:                     "42703",
		asOps + `SELECT pgtrickle.relay_snapshot('nope')`:                                 "P0002",
		asOps + `SELECT pgtrickle.relay_snapshot_cancel('p')`:                             "P0002", // none runs
		asOps + `INSERT INTO pgtrickle.relay_snapshot_keys VALUES (1, 0, '{{1}}')`:        "42501",
		asOps + `SELECT pgtrickle._relay_add_snapshot_keys('p', current_user, '{{1}}')`:   "42501",

		asOps + `INSERT INTO pgtrickle._relay_pipeline_requests (action, name, keys) VALUES ('snapshot keys', 'p', '{{1}}')`: "42501",
	} {
		refused(t, pool, code, "", sql)
	}
	if n := one(t, pool, `SELECT count(*)::text FROM pgtrickle.relay_snapshot_requests`); n != "0" {
		t.Fatalf("%s requests are left of those that were refused", n)
	}

	// The function in the condition is the caller's, and runs as the caller.
	run(t, pool, asOps+`CREATE FUNCTION public.seen() RETURNS boolean LANGUAGE sql VOLATILE AS
		'INSERT INTO public.evidence VALUES (current_user, session_user); SELECT true'`)
	run(t, pool, asOps+`SELECT pgtrickle.relay_snapshot('p', 'region = ''us'' AND public.seen() -- or all')`)
	if got := one(t, pool, `SELECT string_agg(DISTINCT who, ' ') || ' ' || count(*) FROM evidence`); got != ops+" 1" {
		t.Errorf("the condition ran as %s; want %s 1", got, ops)
	}
	if got := one(t, pool, `SELECT r.rows || ' ' || requested_by || ' ' || (SELECT keys::text FROM pgtrickle.relay_snapshot_keys)
		FROM pgtrickle.relay_snapshot_requests r`); got != "1 "+ops+" {{1}}" {
		t.Errorf("request %s; want row 1 alone, which the policy shows", got)
	}
	refused(t, pool, "55006", "runs already", asOps+`SELECT pgtrickle.relay_snapshot('p')`)
	refused(t, pool, "42501", "from relay_snapshot alone", // it is another transaction
		asOps+`INSERT INTO pgtrickle._relay_pipeline_requests (action, name, keys) VALUES ('snapshot keys', 'p', '{{2}}')`)
	run(t, pool, asOps+`SELECT pgtrickle.relay_snapshot_cancel('p')`)
	run(t, pool, asOps+`SELECT pgtrickle.relay_snapshot('p', 'true')`)
	if got := one(t, pool, `SELECT sum(array_length(keys, 1)) || ' in ' || max(array_length(keys, 1))
		FROM pgtrickle.relay_snapshot_keys k JOIN pgtrickle.relay_snapshot_requests r ON r.id = k.request WHERE finished_at IS NULL`); got != "2001 in 1000" {
		t.Errorf("%s keys were stored, want 2001 in blocks of 1000", got)
	}
	run(t, pool, `SELECT pgtrickle.rename_relay('p', 'q')`)
	run(t, pool, asOps+`SELECT pgtrickle.relay_snapshot_cancel('q')`)
	run(t, pool, `SELECT pgtrickle.delete_relay('q')`)
	if n := one(t, pool, `SELECT count(*)::text FROM pgtrickle.relay_snapshot_requests, pgtrickle.relay_snapshot_keys`); n != "0" {
		t.Errorf("a deleted pipeline leaves %s requests and keys", n)
	}
}

// TestSnapshotRefusals lists what has no rows to send.
func TestSnapshotRefusals(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `CREATE TABLE nokey (a int); SELECT pgtrickle.enable_outbox('public.nokey'), pgtrickle.create_outbox('events'), pgtrickle.create_inbox('box');
		SELECT pgtrickle.set_relay_outbox('nokey', config => '{"stream_table":"public.nokey","sink_type":"stdin"}'),
			pgtrickle.set_relay_outbox('events', config => '{"stream_table":"events","sink_type":"stdin"}'),
			pgtrickle.set_relay_inbox('in', config => '{"source_type":"stdin","inbox_table":"box"}')`)
	for name, want := range map[string]string{"nokey": "has no primary key", "events": "no captured table", "in": "no captured table"} {
		refused(t, pool, "55000", want, `SELECT pgtrickle.relay_snapshot('`+name+`')`)
	}
	_, err := pool.Exec(context.Background(), `SELECT pgtrickle.relay_snapshot('nokey')`)
	if refused, ok := errors.AsType[*pgconn.PgError](err); !ok || refused.Hint != "add one, then SELECT pgtrickle.outbox_upgrade('outbox_nokey')" {
		t.Errorf("the cure is missing: %v", err)
	}
}
