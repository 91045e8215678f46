package retention_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
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
	sweep(0, 0, false) // without a reader
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

// A pipeline keeps what it has not delivered, wherever its configuration names its
// outbox. It does so even if only the process that runs it can resolve that name.
func TestKeepsWhatOthersCannotResolve(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, config := range map[string]string{
		"env":     `{"stream_table": "${env:OUTBOX}", "sink_type": "stdout"}`,
		"in sink": `{"sink": {"type": "stdout", "stream_table": "public.orders"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if err := migrate.Up(ctx, pool, nil); err != nil {
				t.Fatal(err)
			}
			exec := func(sql string, args ...any) {
				t.Helper()
				if _, err := pool.Exec(ctx, sql, args...); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			sweep := func(deleted int64, slowest string) {
				t.Helper()
				got, err := retention.Sweep(ctx, pool, retention.Options{})
				if err != nil || len(got) != 1 || got[0].Deleted != deleted || !got[0].HeldBack || fmt.Sprint(got[0].Slowest) != slowest {
					t.Fatalf("Sweep = %+v, %v, want %d deleted and the slowest %s", got, err, deleted, slowest)
				}
			}
			exec(`CREATE TABLE public.orders (id int); SELECT pgtrickle.enable_outbox('public.orders', 1);
				INSERT INTO pgtrickle.outbox_orders (created_at, payload) SELECT now() - interval '2 hours', '{"v":1,"inserted":[]}' FROM generate_series(1, 100);
				INSERT INTO pgtrickle.relay_outbox_config (name, config) VALUES ('fast', '{"stream_table": "public.orders", "sink_type": "stdout"}');
				INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, epoch, last_id) VALUES ('g', 'forward', 'fast', 'pgtrickle.outbox_orders', 1, 100)`)
			exec(`INSERT INTO pgtrickle.relay_outbox_config (name, config) VALUES ('slow', $1)`, config)
			sweep(0, "[slow in group any at 0]")
			exec(`INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, epoch, last_id) VALUES ('g', 'forward', 'slow', 'pgtrickle.outbox_orders', 1, 40)`)
			sweep(40, "[slow in group g at 40]")
		})
	}
}

// The plain role drops a whole partition if all its rows have expired, every reader
// has them, and no row can be added.
func TestPartitions(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"id", "created_at"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			pool := pgtest.Pool(t)
			exec := func(sql string, args ...any) {
				t.Helper()
				if _, err := pool.Exec(ctx, sql, args...); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			if err := migrate.Up(ctx, pool, nil); err != nil {
				t.Fatal(err)
			}
			key, bounds := "PRIMARY KEY (id)", []string{"0) TO (11", "11) TO (21", "21) TO (31", "31) TO (1000"}
			if by == "created_at" {
				key = "PRIMARY KEY (id, created_at)"
				at := func(hours int) string {
					return time.Now().Add(-time.Duration(hours) * time.Hour).Format("'2006-01-02 15:04:05Z07:00'")
				}
				bounds = []string{at(40) + ") TO (" + at(30), at(30) + ") TO (" + at(20), at(20) + ") TO (" + at(10), at(10) + ") TO (" + at(-10)}
			}
			exec(`SET LOCAL ROLE pgtrickle_owner; SELECT pgtrickle.create_outbox('orders', 5); ALTER TABLE pgtrickle.outbox_orders RENAME TO flat;
				CREATE TABLE pgtrickle.outbox_orders (LIKE pgtrickle.flat INCLUDING DEFAULTS INCLUDING IDENTITY, ` + key + `) PARTITION BY RANGE (` + by + `);
				CREATE INDEX ON pgtrickle.outbox_orders (xid, id);
				COMMENT ON TABLE pgtrickle.outbox_orders IS 'pgtrickle-relay: outbox of orders';
				DROP TABLE pgtrickle.flat; SELECT pgtrickle.relay_grant_access()`)
			for i, b := range bounds {
				exec(fmt.Sprintf(`SET LOCAL ROLE pgtrickle_owner; CREATE TABLE pgtrickle.part%d PARTITION OF pgtrickle.outbox_orders FOR VALUES FROM (%s)`, i+1, b))
			}
			for _, age := range []int{35, 25, 15, 6} {
				exec(`INSERT INTO pgtrickle.outbox_orders (created_at, payload) SELECT now() - make_interval(hours => $1), '{"v":1,"inserted":[]}' FROM generate_series(1, 10)`, age)
			}
			exec(`INSERT INTO pgtrickle.outbox_orders (payload) VALUES ('{"v":1,"inserted":[]}')`)
			exec(`INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) VALUES ('a', false, '{"stream_table": "outbox_orders", "sink_type": "stdout"}')`)
			cursor := func(group string, id int) {
				t.Helper()
				exec(`INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, last_id) VALUES ($1, 'forward', 'a', 'pgtrickle.outbox_orders', $2)
					ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET last_id = $2`, group, id)
			}
			plain := pgtest.Open(t, exttest.RelayRole(t, pool, pool.Config().ConnString()))
			sweep := func(dropped string, held bool) {
				t.Helper()
				got, err := retention.Sweep(ctx, plain, retention.Options{})
				if err != nil || len(got) != 1 {
					t.Fatalf("Sweep = %+v, %v", got, err)
				}
				if r := got[0]; strings.Join(r.Dropped, " ") != dropped || r.HeldBack != held || r.Deleted != int64(10*len(r.Dropped)) {
					t.Fatalf("Sweep = %+v, want %q dropped, held back %v", r, dropped, held)
				}
			}
			cursor("default", 41)
			cursor("other", 9)
			sweep("", true) // the slowest reader lacks the first partition's last row
			cursor("other", 25)
			writer, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = writer.Rollback(ctx) }()
			if _, err := writer.Exec(ctx, `LOCK TABLE pgtrickle.part1 IN ROW EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			sweep("pgtrickle.part2", true) // a transaction has written to the first
			if err := writer.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			sweep("pgtrickle.part1", true)
			cursor("other", 30)
			exec(`UPDATE pgtrickle.pgt_outbox_config SET retention_hours = 18`)
			sweep("", false) // the third is delivered and too young
			exec(`UPDATE pgtrickle.pgt_outbox_config SET retention_hours = 5`)
			sweep("pgtrickle.part3", true)
			cursor("other", 41)
			sweep("", false) // new rows go to the last one
			var left int
			if err := pool.QueryRow(ctx, `SELECT count(*) FROM pgtrickle.outbox_orders`).Scan(&left); err != nil || left != 11 {
				t.Fatalf("%d rows are left, %v; want 11", left, err)
			}
		})
	}
}
