package migrate_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// TestTableCreatedAgainByAnotherRole: the owner of a table that has the name of another
// role's dropped table is not the owner of that table's outbox.
func TestTableCreatedAgainByAnotherRole(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	owner, mallory := roles(t, pool)
	run(t, pool, fmt.Sprintf(`GRANT USAGE ON SCHEMA pgtrickle TO %[1]s, %[2]s; CREATE SCHEMA shared; GRANT USAGE, CREATE ON SCHEMA shared TO %[1]s, %[2]s;
		GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox TO %[1]s, %[2]s;
		SET ROLE %[1]s; CREATE TABLE shared.orders (id int PRIMARY KEY, note text); SELECT pgtrickle.enable_outbox('shared.orders');
		INSERT INTO shared.orders VALUES (1, 'undelivered'); DROP TABLE shared.orders;
		SET ROLE %[2]s; CREATE TABLE shared.orders (id int PRIMARY KEY, note text); RESET ROLE`, owner, mallory))

	as := `SET LOCAL ROLE ` + mallory + `; `
	for sql, code := range map[string]string{
		`SELECT pgtrickle.disable_outbox('shared.orders')`:                                                    "42501",
		`SELECT pgtrickle.outbox_upgrade('shared.orders')`:                                                    "42704",
		`SELECT pgtrickle.outbox_truncate_policy('shared.orders', 'ignore')`:                                  "42704",
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('drop outbox', 'outbox_orders')`:      "42501",
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('describe outbox', 'outbox_orders')`:  "42501",
		`INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('upgrade outbox', 'outbox_orders')`:   "42501",
		`SELECT * FROM pgtrickle.outbox_orders`:                                                               "42501",
		`INSERT INTO pgtrickle.outbox_orders (refresh_id, inserted_count, deleted_count) VALUES (NULL, 1, 0)`: "42501",
	} {
		refused(t, pool, code, "", as+sql)
	}
	if rows := one(t, pool, `SELECT count(*)::text FROM pgtrickle.outbox_orders`); rows != "1" {
		t.Errorf("the outbox holds %s rows; want the undelivered one", rows)
	}

	// An outbox of the new table is another one.
	run(t, pool, as+`SELECT pgtrickle.enable_outbox('shared.orders'); INSERT INTO shared.orders VALUES (2, 'new')`)
	if rows := one(t, pool, `SELECT count(*)::text FROM pgtrickle.outbox_orders`); rows != "1" {
		t.Errorf("the outbox of the dropped table holds %s rows; want 1", rows)
	}
}

// TestErrorsShowNoConfiguration: an error in a configuration shows no value beside the
// one that it is about.
func TestErrorsShowNoConfiguration(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	const secret = `"nats://u:hunter2@h"`
	for _, sql := range []string{
		`SELECT pgtrickle.set_relay_outbox('p', 'orders', 'g', '{"url":` + secret + `}')`,
		`SELECT pgtrickle.set_relay_outbox('p', 'orders', 'g', '{"type":"nats","url":` + secret + `,"bogus":1}')`,
		`SELECT pgtrickle.set_relay_outbox('p', 'orders', 'g', '{"type":"nats","url":"nats://h","password":{"of":"hunter2"}}')`,
		`SELECT pgtrickle.set_relay_outbox('p', 'orders', 'g', ` + `'["hunter2"]')`,
		`SELECT pgtrickle.set_relay_inbox('p', 'box', '{"url":` + secret + `}')`,
		`SELECT pgtrickle.set_relay_inbox('p', 'box', '{"type":"nats","url":` + secret + `,"bogus":1}')`,
		`SELECT pgtrickle.set_relay_outbox('p', config => '["hunter2"]')`,
		`SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"t","sink_type":"nats","nats_url":` + secret + `,"batch_size":"x"}')`,
		`SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"t","sink_type":"nats","nats_url":` + secret + `,"sink":{"url":` + secret + `}}')`,
	} {
		_, err := pool.Exec(context.Background(), sql)
		if err == nil || !strings.Contains(err.Error(), "relay.invalid_config") {
			t.Errorf("%s: %v; want an invalid configuration", sql, err)
		} else if strings.Contains(fmt.Sprintf("%+v", err), "hunter2") {
			t.Errorf("%s shows the secret: %v", sql, err)
		}
	}
}
