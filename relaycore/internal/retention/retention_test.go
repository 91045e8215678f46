package retention_test

import (
	"context"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/retention"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestNeverPastTheSlowest(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := pgtest.Pool(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := pool.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(`CREATE TABLE public.orders (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.orders', 1)`)
	exec(`INSERT INTO pgtrickle.outbox_orders (created_at, payload) SELECT now() - interval '2 hours', '{"v":1,"inserted":[]}' FROM generate_series(1, 100)`)
	exec(`INSERT INTO pgtrickle.outbox_orders (payload) SELECT '{"v":1,"inserted":[]}' FROM generate_series(1, 5)`)
	sweep := func(deleted, floor int64, held bool) {
		t.Helper()
		got, err := retention.Sweep(ctx, pool, retention.Options{Batch: 7})
		if err != nil || len(got) != 1 {
			t.Fatalf("Sweep = %+v, %v", got, err)
		}
		if r := got[0]; r.Deleted != deleted || r.Floor != floor || r.HeldBack != held || r.Table != "pgtrickle.outbox_orders" {
			t.Fatalf("Sweep = %+v, want %d deleted, floor %d, held back %v", r, deleted, floor, held)
		}
	}
	sweep(0, 0, false) // nobody reads it
	exec(`INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) VALUES ('a', false, '{"stream_table": "public.orders", "sink_type": "stdout"}')`)
	sweep(0, 0, true) // a pipeline that is disabled and has never run
	cursor := func(group string, id int) {
		t.Helper()
		if _, err := pool.Exec(ctx, `INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, last_id) VALUES ($1, 'forward', 'a', 'pgtrickle.outbox_orders', $2)
			ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET last_id = $2`, group, id); err != nil {
			t.Fatal(err)
		}
	}
	cursor("default", 90)
	cursor("other", 40)
	sweep(40, 40, true)
	cursor("other", 103)
	sweep(50, 90, true)
	cursor("default", 105)
	sweep(10, 103, false) // what is left is young
}
