package migrate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
)

// TestPipelinesHaveOwners: a role that may set pipelines changes and reads its own alone. It
// names only outboxes that it could read and inboxes that it could write.
func TestPipelinesHaveOwners(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	ops, mallory := roles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT USAGE ON SCHEMA pgtrickle TO %[1]s, %[2]s;
		GRANT EXECUTE ON FUNCTION pgtrickle.set_relay_outbox(text, jsonb), pgtrickle.set_relay_inbox(text, jsonb), pgtrickle.enable_relay, pgtrickle.disable_relay,
			pgtrickle.delete_relay, pgtrickle.get_relay_config, pgtrickle.list_relay_configs, pgtrickle.relay_pipeline_owner,
			pgtrickle.enable_outbox, pgtrickle.create_inbox TO %[1]s, %[2]s;
		CREATE SCHEMA ops AUTHORIZATION %[1]s; CREATE SCHEMA evil AUTHORIZATION %[2]s; GRANT USAGE ON SCHEMA ops TO %[2]s;
		SET ROLE %[1]s; CREATE TABLE ops.orders (id int); SELECT pgtrickle.enable_outbox('ops.orders'), pgtrickle.create_inbox('box', 'ops');
		CREATE TABLE ops.own (id bigserial PRIMARY KEY, payload jsonb); RESET ROLE`, ops, mallory))
	asOps, asMallory := `SET LOCAL ROLE `+ops+`; `, `SET LOCAL ROLE `+mallory+`; `
	set := func(name, table string) string {
		return fmt.Sprintf(`SELECT pgtrickle.set_relay_outbox('%s', config => '{"stream_table":"%s","sink_type":"nats","nats_url":"nats://u:hunter2@a","nats_password":"hunter2"}')`, name, table)
	}
	in := func(table string) string {
		return fmt.Sprintf(`SELECT pgtrickle.set_relay_inbox('in', config => '{"source_type":"stdin","inbox_table":%s}')`, table)
	}
	run(t, pool, asOps+set("p", "ops.orders")+`; `+set("q", "outbox_orders")+`; `+set("r", "ops.own")+`; `+in(`"box","inbox_schema":"ops"`)+
		`; SELECT pgtrickle.enable_relay('p'), pgtrickle.disable_relay('p')`)

	for _, sql := range []string{
		set("p", "evil.t"), `SELECT pgtrickle.enable_relay('p')`, `SELECT pgtrickle.disable_relay('p')`, `SELECT pgtrickle.delete_relay('p')`,
		`SELECT pgtrickle.relay_pipeline_owner('p', '` + mallory + `')`,
		`INSERT INTO pgtrickle._relay_pipeline_requests (action, name) VALUES ('delete', 'p')`,
	} {
		refused(t, pool, "42501", `pipeline "p" belongs to role `+ops, asMallory+sql)
	}
	// A pipeline of the other direction and the same name: p's owner could not disable it any longer.
	twin := `SELECT pgtrickle.set_relay_inbox('%s', config => '{"source_type":"stdin","inbox_table":"twins","inbox_schema":"%s"}')`
	run(t, pool, asMallory+`SELECT pgtrickle.create_inbox('twins', 'evil')`)
	refused(t, pool, "42501", `pipeline "p" belongs to role `+ops, asMallory+fmt.Sprintf(twin, "p", "evil"))
	run(t, pool, fmt.Sprintf(twin, "p", "evil")+`; INSERT INTO pgtrickle.relay_pipeline_owners VALUES ('reverse', 'p', '`+mallory+`')
		ON CONFLICT (direction, name) DO UPDATE SET owner = excluded.owner`) // as it was permitted before
	run(t, pool, asMallory+fmt.Sprintf(twin, "p", "evil"))
	run(t, pool, asOps+set("p", "ops.orders"))
	run(t, pool, `DELETE FROM pgtrickle.relay_inbox_config WHERE name = 'p'; DELETE FROM pgtrickle.relay_pipeline_owners WHERE direction = 'reverse' AND name = 'p'`)
	refused(t, pool, "P0002", `pipeline "p" not found`, asMallory+`SELECT pgtrickle.get_relay_config('p')`)
	refused(t, pool, "23514", `caller_must_be_current_user`, asMallory+`INSERT INTO pgtrickle._relay_pipeline_requests (caller, action, name) VALUES ('`+ops+`', 'delete', 'p')`)
	if got := one(t, pool, `SELECT count(*)::text FROM pgtrickle.list_relay_configs()`); got != "4" {
		t.Errorf("a superuser sees %s pipelines; want 4", got)
	}
	run(t, pool, asMallory+`DO $$ BEGIN IF EXISTS (SELECT FROM pgtrickle.list_relay_configs() UNION ALL SELECT FROM pgtrickle.relay_pipelines) THEN RAISE 'visible'; END IF; END $$`)

	run(t, pool, asMallory+`CREATE TABLE evil.orders (id bigserial PRIMARY KEY, payload jsonb)`)
	for table, want := range map[string]string{
		"ops.orders": "no SELECT on 'ops.orders'", "outbox_orders": "no SELECT on 'outbox_orders'", "pgtrickle.outbox_orders": "no SELECT", "ops.own": "no SELECT",
		"pgtrickle.relay_outbox_config": "no SELECT", "orders": "there is no outbox 'orders'", "own": "there is no outbox", "nope.nope": "there is no table",
		`${env:T}`: "without quotes and references", `\"ops\".\"own\"`: "without quotes",
	} {
		refused(t, pool, "42501", want, asMallory+set("m", table))
	}
	for table, want := range map[string]string{
		`"box","inbox_schema":"ops"`: "no INSERT", `"ops.box"`: "no INSERT", `"relay_dead_letters"`: "no INSERT", `"nope"`: "there is no table", `"${env:T}"`: "references",
	} {
		refused(t, pool, "42501", want, asMallory+strings.Replace(in(table), "'in'", "'m'", 1))
	}
	run(t, pool, asMallory+set("m", "evil.orders")+`; SELECT pgtrickle.enable_relay('m')`)
	// What it no longer may read it does not enable.
	run(t, pool, `ALTER TABLE evil.orders OWNER TO `+ops)
	refused(t, pool, "42501", "no SELECT", asMallory+`SELECT pgtrickle.enable_relay('m')`)

	run(t, pool, `ALTER TABLE evil.orders OWNER TO `+mallory)

	// A pipeline is given away by its owner. The owner of the catalog may do all.
	refused(t, pool, "42501", "must be a member of role "+mallory, asOps+`SELECT pgtrickle.relay_pipeline_owner('q', '`+mallory+`')`)
	run(t, pool, `SET LOCAL ROLE pgtrickle_owner; SELECT pgtrickle.relay_pipeline_owner('q', '`+mallory+`'), pgtrickle.disable_relay('p'); `+set("any", "not.yet"))
	run(t, pool, asMallory+`SELECT pgtrickle.delete_relay('q')`)
}

// TestListShowsNoSecrets: each key of type secret is masked, in the flat and in the nested
// form, and so are headers and addresses. A reference is no secret.
func TestListShowsNoSecrets(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	got := query(t, pool, `SELECT k.backend || '.' || k.key FROM pgtrickle.relay_backend_keys k,
		LATERAL (SELECT jsonb_build_object(replace(k.backend, '-', '_') || '_' || k.key, 'hunter2', 'sink', jsonb_build_object(k.key, 'hunter2', 'brokers', '["a"]'::jsonb))) c(config)
		WHERE (k.type = 'secret' OR k.key IN ('url', 'headers')) AND pgtrickle._relay_mask(config)::text LIKE '%hunter2%'`)
	if len(got) > 0 {
		t.Errorf("not masked: %q", got)
	}
	const config = `{"url": "nats://u:p@a", "headers": {"x": ["p"]}, "password": "${env:P}", "token": "${env:P}p", "subject": "s", "n": 1, "brokers": ["a"]}`
	const want = `{"n": 1, "url": "***", "token": "***", "brokers": ["a"], "headers": {"x": ["***"]}, "subject": "s", "password": "${env:P}"}`
	if got := one(t, pool, `SELECT pgtrickle._relay_mask($1::jsonb)::text`, config); got != want {
		t.Errorf("masked: %s\nwant %s", got, want)
	}
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"t","sink_type":"nats","nats_url":"nats://u:hunter2@a"}')`)
	if got := one(t, pool, `SELECT config::text FROM pgtrickle.list_relay_configs()`); strings.Contains(got, "hunter2") {
		t.Errorf("list_relay_configs shows %s", got)
	}

	// A relay of an earlier release reads its pipelines by one of these statements.
	ops, _ := roles(t, pool)
	run(t, pool, `GRANT USAGE ON SCHEMA pgtrickle TO `+ops+`; GRANT EXECUTE ON FUNCTION pgtrickle.list_relay_configs, pgtrickle.relay_pipeline_owner TO `+ops+`;
		SELECT pgtrickle.relay_pipeline_owner('p', '`+ops+`')`)
	for _, columns := range []string{`config::text`, `CASE WHEN pg_catalog.octet_length(config::text) <= 262144 THEN config::text ELSE '{}' END`} {
		for role, relays := range map[string]bool{"pgtrickle_owner": true, ops: false} {
			var got string
			err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(t.Context(), `SET LOCAL ROLE `+role); err != nil {
					return err
				}
				var name, direction string
				var enabled bool
				return tx.QueryRow(t.Context(), `SELECT name, direction, enabled, `+columns+` FROM pgtrickle.list_relay_configs()`).
					Scan(&name, &direction, &enabled, &got)
			})
			if err != nil || strings.Contains(got, "hunter2") != relays {
				t.Errorf("%s reads %s, %v", role, got, err)
			}
		}
	}
}

// TestOlderPipelines: what was set before pipelines had owners is the catalog's owner's.
func TestOlderPipelines(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	ops, _ := roles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT USAGE ON SCHEMA pgtrickle TO %[1]s; GRANT EXECUTE ON FUNCTION pgtrickle.disable_relay, pgtrickle.relay_pipeline_owner TO %[1]s;
		DROP TABLE pgtrickle.relay_pipeline_owners CASCADE; INSERT INTO pgtrickle.relay_outbox_config VALUES ('p', true, '{"stream_table":"t","sink_type":"stdout"}')`, ops))
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	if got := one(t, pool, `SELECT enabled::text FROM pgtrickle.list_relay_configs()`); got != "true" {
		t.Errorf("the pipeline is enabled=%s; want it as it was", got)
	}
	refused(t, pool, "42501", `pipeline "p" belongs to the owner of schema pgtrickle`, `SET LOCAL ROLE `+ops+`; SELECT pgtrickle.disable_relay('p')`)
	run(t, pool, `SELECT pgtrickle.relay_pipeline_owner('p', '`+ops+`'); SET LOCAL ROLE `+ops+`; SELECT pgtrickle.disable_relay('p')`)
}
