package exttest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func extension(t *testing.T) (pool *pgxpool.Pool, url string) {
	t.Helper()
	url = exttest.URL(t)
	pool = pgtest.Open(t, url)
	exttest.Install(t, pool)
	exec(t, pool, `CREATE TABLE public.orders (__pgt_row_id bigint, id int, total numeric)`)
	exttest.EnableOutbox(t, pool, "public.orders")
	exec(t, pool, `SELECT pgtrickle.create_inbox('orders_inbox')`)
	exec(t, pool, `INSERT INTO `+exttest.Source("public.orders")+` VALUES (1, 1, 9.50), (2, 2, 1)`)
	return pool, url
}

func exec(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestMigrateAltersNothingOfTheExtension(t *testing.T) {
	t.Parallel()
	pool, _ := extension(t)
	before := exttest.Dump(t, pool)
	for range 2 {
		if err := migrate.Up(context.Background(), pool, nil); err != nil {
			t.Fatalf("Up: %v", err)
		}
	}
	if after := exttest.Dump(t, pool); after != before {
		t.Errorf("migrate altered the extension's objects\nbefore:\n%s\nafter:\n%s", before, after)
	}
	var ours int
	err := pool.QueryRow(context.Background(), `
		SELECT count(*) FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace AND proname IN ('set_relay_outbox', 'set_relay_inbox')`).Scan(&ours)
	if err != nil || ours != 4 {
		t.Errorf("set_relay_* has %d forms, %v; want 4", ours, err)
	}
	exec(t, pool, `SELECT pgtrickle.set_relay_outbox('flat', config => '{"stream_table":"orders","sink_type":"stdout"}')`)
	exec(t, pool, `SELECT pgtrickle.set_relay_outbox('positional', 'orders', NULL, '{"type":"stdout"}')`)
	exec(t, pool, `SELECT pgtrickle.outbox_publish('orders', '{"id":3}')`)
}

func TestPayloadCases(t *testing.T) {
	t.Parallel()
	pool, _ := extension(t)
	documented := `{"v":1,"inserted":[{"id":1}],"deleted":[]}`
	header := `{"v":1,"claim_check":true,"inserted_count":1,"deleted_count":1,"refresh_id":"1f0b0000-0000-0000-0000-000000000000"}`
	ids := []int64{
		exttest.Refresh(t, pool, "public.orders", 1, 0, false),
		exttest.Refresh(t, pool, "public.orders", 1, 0, true),
		exttest.Write(t, pool, "outbox_orders", &documented),
		exttest.Write(t, pool, "outbox_orders", &header, exttest.Delta{Op: "INSERT", Row: `{"id":1}`}, exttest.Delta{Op: "DELETE", Row: `{"id":2}`}),
		exttest.Write(t, pool, "outbox_orders", nil),
	}
	for i, want := range []string{"array false 0", "null true 2", "object false 0", "object true 2", "null false 0"} {
		var got string
		err := pool.QueryRow(context.Background(), `
			SELECT format('%s %s %s', coalesce(jsonb_typeof(payload), 'null'), CASE WHEN is_claim_check THEN 'true' ELSE 'false' END,
				(SELECT count(*) FROM pgtrickle.outbox_delta_rows_orders d WHERE d.outbox_id = o.id))
			FROM pgtrickle.outbox_orders o WHERE id = $1`, ids[i]).Scan(&got)
		if err != nil || got != want {
			t.Errorf("row %d is %q, %v; want %q", ids[i], got, err, want)
		}
	}
}

// TestRelayRole runs all that a relay does under a role that only inherits
// pgtrickle_relay, and what it must not do.
func TestRelayRole(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T) (*pgxpool.Pool, string){
		"extension": extension,
		"plain": func(t *testing.T) (*pgxpool.Pool, string) {
			url := pgtest.URL(t)
			pool := pgtest.Open(t, url)
			if err := migrate.Up(context.Background(), pool, nil); err != nil {
				t.Fatalf("Up: %v", err)
			}
			exec(t, pool, `CREATE TABLE public.orders (id int PRIMARY KEY, total numeric)`)
			exec(t, pool, `SELECT pgtrickle.enable_outbox('public.orders')`)
			exec(t, pool, `SELECT pgtrickle.create_inbox('orders_inbox')`)
			exec(t, pool, `INSERT INTO public.orders VALUES (1, 1)`)
			exec(t, pool, `CREATE TABLE pgtrickle.outbox_delta_rows_orders (outbox_id bigint, row_op text, row_data jsonb, row_num bigint)`)
			return pool, url
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, url := prepare(t)
			if err := migrate.Up(context.Background(), pool, nil); err != nil {
				t.Fatalf("Up: %v", err)
			}
			exec(t, pool, `SELECT pgtrickle.relay_grant_access()`)
			exec(t, pool, `SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"orders","sink_type":"stdout"}')`)
			relay := pgtest.Open(t, exttest.RelayRole(t, pool, url))
			if missing, err := migrate.Missing(context.Background(), relay); err != nil || len(missing) > 0 {
				t.Errorf("Missing = %q, %v", missing, err)
			}
			for _, sql := range []string{
				`SELECT * FROM pgtrickle.list_relay_configs()`,
				`SELECT * FROM pgtrickle.get_relay_config('p')`,
				`SELECT * FROM pgtrickle.pgt_outbox_config, pgtrickle.pgt_inbox_config`,
				`SELECT * FROM pgtrickle.outbox_orders`,
				`SELECT last_value FROM pgtrickle.outbox_orders_id_seq`,
				`SELECT * FROM pgtrickle.outbox_delta_rows_orders`,
				`SELECT pgtrickle.outbox_rows_consumed('public.orders', 1)`,
				`INSERT INTO pgtrickle.orders_inbox (event_id) VALUES ('a') ON CONFLICT (event_id) DO NOTHING RETURNING event_id`,
				`INSERT INTO pgtrickle.relay_consumer_offsets AS o (relay_group_id, pipeline_id, last_change_id) VALUES ('g', 'p', 1)
					ON CONFLICT (relay_group_id, pipeline_id) DO UPDATE SET last_change_id = greatest(o.last_change_id, excluded.last_change_id)`,
				`INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline) VALUES ('g', 'forward', 'p')
					ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET epoch = relay_cursors.epoch + 1`,
				`DELETE FROM pgtrickle.relay_cursors`,
				`INSERT INTO pgtrickle.relay_instances (instance_id, relay_group_id, backends, lock_key) VALUES ('i', 'g', '{}', 1)`,
				`UPDATE pgtrickle.relay_instances SET draining = true`,
				`DELETE FROM pgtrickle.relay_instances`,
				`INSERT INTO pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, message_id, body, error, class, status)
					VALUES ('g', 'forward', 'p', 'm', '', 'e', 'refused', 'dead')`,
				`SELECT * FROM pgtrickle.relay_dlq_list('p')`,
				`SELECT pgtrickle.relay_dlq_retry('p')`,
				`SELECT pgtrickle.relay_dlq_discard('p', p_ids => ARRAY[1])`,
				`SELECT * FROM pgtrickle.relay_backend_keys`,
				`LISTEN pgtrickle_relay_config`,
			} {
				if _, err := relay.Exec(context.Background(), sql); err != nil {
					t.Errorf("the relay may not %s: %v", sql, err)
				}
			}
			for _, sql := range []string{
				`SELECT * FROM public.orders`,
				`INSERT INTO pgtrickle.outbox_orders (payload) VALUES ('{}')`,
				`UPDATE pgtrickle.outbox_orders SET payload = NULL`,
				`SELECT nextval('pgtrickle.outbox_orders_id_seq')`,
				`UPDATE pgtrickle.orders_inbox SET processed_at = now()`,
				`DELETE FROM pgtrickle.orders_inbox`,
				`UPDATE pgtrickle.relay_outbox_config SET enabled = false`,
				`DELETE FROM pgtrickle.pgt_outbox_config`,
				`UPDATE pgtrickle.relay_backend_keys SET type = ''`,
				`DELETE FROM pgtrickle.relay_migrations`,
				`SELECT pgtrickle.set_relay_outbox('p', config => '{}')`,
				`SELECT pgtrickle.outbox_grant_publish('orders', current_user::text)`,
				`CREATE TABLE pgtrickle.mine (id int)`,
				`DROP TABLE pgtrickle.outbox_orders`,
				`SELECT pgtrickle.disable_outbox('public.orders')`,
			} {
				if _, err := relay.Exec(context.Background(), sql); err == nil {
					t.Errorf("the relay may %s", sql)
				}
			}
		})
	}
}

// TestExtensionBites: the imitation fails where the real extension fails.
func TestExtensionBites(t *testing.T) {
	t.Parallel()
	pool, _ := extension(t)
	one := func(sql string) (got string) {
		t.Helper()
		if err := pool.QueryRow(context.Background(), sql).Scan(&got); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return got
	}
	fails := func(sql, want string) {
		t.Helper()
		if _, err := pool.Exec(context.Background(), sql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", sql, err, want)
		}
	}

	// Members of the extension, and nothing for others to read.
	if got := one(`SELECT count(*)::text FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_trickle')
		AND objid IN ('pgtrickle.relay_outbox_config'::regclass, to_regnamespace('pgtrickle'))`); got != "2" {
		t.Errorf("%s of the schema and a table are members", got)
	}
	fails(`SET LOCAL ROLE pgtrickle_relay; SELECT FROM pgtrickle.pgt_stream_tables`, "permission denied")
	exec(t, pool, `GRANT CREATE ON SCHEMA public TO pg_monitor`)
	fails(`SET LOCAL ROLE pg_monitor; CREATE TABLE public.t (id int); ALTER TABLE public.t ADD v int`, "permission denied for schema pgtrickle")

	// Two stream tables of one name share the delta table; a bare name is one of current_schema().
	exec(t, pool, `CREATE SCHEMA app; CREATE TABLE app.orders (id int); INSERT INTO app.orders VALUES (1); CREATE TABLE app.lone (id int)`)
	exttest.EnableOutbox(t, pool, "app.orders", "app.lone")
	for range 2 {
		exttest.Refresh(t, pool, "app.orders", 1, 0, false)
	}
	exttest.Refresh(t, pool, "app.orders", 0, 1, true) // 3
	if got := one(`SELECT inserted_count || ' ' || deleted_count FROM pgtrickle.` + one(`SELECT outbox_table_name FROM pgtrickle.pgt_outbox_config
		JOIN pgtrickle.pgt_stream_tables ON pgt_id = stream_table_oid::bigint WHERE pgt_schema = 'app' AND pgt_name = 'orders'`) + ` WHERE is_claim_check`); got != "1 0" {
		t.Errorf("a delete is counted as %s", got)
	}
	if got := one(`SELECT count(*)::text FROM pgtrickle.outbox_delta_rows_orders`); got != "1" {
		t.Errorf("the shared delta table has %s rows", got)
	}
	exec(t, pool, `SELECT pgtrickle.outbox_rows_consumed('public.orders', 3), pgtrickle.outbox_rows_consumed(NULL, 3)`)
	if got := one(`SELECT count(*)::text FROM pgtrickle.outbox_delta_rows_orders`); got != "0" {
		t.Errorf("the shared delta table has %s rows", got)
	}
	fails(`SELECT pgtrickle.outbox_rows_consumed('lone', 3)`, "stream table not found: public.lone")
	exttest.Truncate(t, pool, "public.orders", 2, true)
	if got := one(`SELECT format('%s %s', deleted_count, (SELECT count(*) FROM pgtrickle.outbox_delta_rows_orders)) FROM pgtrickle.outbox_orders`); got != "2 0" {
		t.Errorf("an emptied table's claim check is %s", got)
	}

	// What is left of a dropped stream table stands in the way of the next of its name.
	for i := range 2 {
		exec(t, pool, `SELECT pgtrickle.drop_stream_table('app.lone')`)
		fails(`SELECT pgtrickle.disable_outbox('app.lone', true)`, "stream table not found")
		exec(t, pool, `CREATE TABLE app.lone (id int); SELECT pgtrickle.fixture_stream_table('app.lone')`)
		if i == 0 {
			exec(t, pool, `SELECT pgtrickle.enable_outbox('app.lone')`)
		}
	}
	fails(`SELECT pgtrickle.enable_outbox('app.lone')`, "uq_outbox_table_name")
}
