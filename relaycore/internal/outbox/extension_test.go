package outbox_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// streams returns a database with the extension, and a pool of a role that only inherits
// pgtrickle_relay. The stream tables have two rows each, an outbox, and a pipeline of
// their name.
func streams(t *testing.T, tables ...string) (pool, plain *pgxpool.Pool) {
	t.Helper()
	url := exttest.URL(t)
	pool = pgtest.Open(t, url)
	exttest.Install(t, pool)
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `CREATE SCHEMA app`)
	for _, table := range tables {
		exec(t, pool, `CREATE TABLE `+table+` (id int); INSERT INTO `+table+` VALUES (1), (2)`)
		exttest.EnableOutbox(t, pool, table)
		exec(t, pool, `SELECT pgtrickle.set_relay_outbox($1, config => jsonb_build_object('stream_table', $1::text, 'sink_type', 'stdout'))`, table)
	}
	exec(t, pool, `SELECT pgtrickle.relay_grant_access()`)
	return pool, pgtest.Open(t, exttest.RelayRole(t, pool, url))
}

func stream(t *testing.T, pool *pgxpool.Pool, name string, c relay.Checkpoint) *outbox.Source {
	t.Helper()
	src := open(t, pool, c, func(cfg *outbox.Config) { cfg.Outbox, cfg.Pipeline = name, name })
	t.Cleanup(func() { _ = src.Close() })
	return src
}

// deliver takes n messages, makes their checkpoint durable, and reports it.
func deliver(t *testing.T, pool *pgxpool.Pool, src *outbox.Source, name string, n int) {
	t.Helper()
	c := checkpoint(t, src, receive(t, src, n))
	exec(t, pool, `INSERT INTO pgtrickle.relay_cursors AS c (relay_group_id, direction, pipeline, checkpoint, last_id, source) VALUES ('g', 'forward', $1, $2, $3, $4)
		ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET checkpoint = excluded.checkpoint, last_id = excluded.last_id`,
		name, c.State, c.LastID, src.Table())
	if err := src.Committed(t.Context(), c); err != nil {
		t.Errorf("Committed: %v", err)
	}
}

func left(t *testing.T, pool *pgxpool.Pool, table string) int64 {
	t.Helper()
	return column[int64](t, pool, `SELECT count(*) FROM pgtrickle."outbox_delta_rows_`+table+`"`)[0]
}

// TestClaimChecksUnderPlainRole gives up the deltas of a stream table outside of the
// search path, with the rights of pgtrickle_relay alone.
func TestClaimChecksUnderPlainRole(t *testing.T) {
	t.Parallel()
	pool, plain := streams(t, "app.orders")
	exttest.Refresh(t, pool, "app.orders", 2, 0, true)
	deliver(t, plain, stream(t, plain, "app.orders", relay.Checkpoint{}), "app.orders", 2)
	if n := left(t, pool, "orders"); n != 0 {
		t.Errorf("%d deltas are left", n)
	}
	if missing, err := migrate.Denied(t.Context(), plain); err != nil || len(missing) > 0 {
		t.Errorf("Denied = %q, %v", missing, err)
	}
}

// TestSharedDeltaTable: stream tables of one name share their delta table. Deltas stay
// until the readers of both have them.
func TestSharedDeltaTable(t *testing.T) {
	t.Parallel()
	pool, plain := streams(t, "app.orders", "public.orders")
	exttest.Refresh(t, pool, "app.orders", 2, 0, false)
	exttest.Refresh(t, pool, "app.orders", 2, 0, true) // 2
	exttest.Refresh(t, pool, "public.orders", 2, 0, true)
	exttest.Refresh(t, pool, "public.orders", 2, 0, false)
	exttest.Refresh(t, pool, "public.orders", 2, 0, true) // 3
	deliver(t, plain, stream(t, plain, "public.orders", relay.Checkpoint{}), "public.orders", 6)
	if n := left(t, pool, "orders"); n != 6 {
		t.Fatalf("%d deltas are left while app.orders has delivered none, want 6", n)
	}
	src := stream(t, plain, "app.orders", relay.Checkpoint{})
	deliver(t, plain, src, "app.orders", 4)
	if n := left(t, pool, "orders"); n != 2 {
		t.Errorf("%d deltas are left, want those of public.orders above 2", n)
	}
}

// TestSupersededClaimChecks: a claim check without deltas is a dead letter only if no
// later snapshot supersedes it, and if the stream table was not emptied.
func TestSupersededClaimChecks(t *testing.T) {
	t.Parallel()
	pool, plain := streams(t, "public.orders")
	consumed := func() {
		exttest.Refresh(t, pool, "public.orders", 2, 0, true)
		exec(t, pool, `SELECT pgtrickle.outbox_rows_consumed('public.orders', 1000)`)
	}
	consumed() // 1
	exttest.Refresh(t, pool, "public.orders", 2, 0, false)
	consumed() // 3
	exttest.Truncate(t, pool, "public.orders", 2, true)
	exttest.Truncate(t, pool, "public.orders", 2, true)
	exec(t, pool, `INSERT INTO `+exttest.Source("public.orders")+` VALUES (3)`)
	consumed() // the last row, which nothing supersedes
	last := column[int64](t, pool, `SELECT max(id) FROM pgtrickle.outbox_orders`)[0]
	got := receive(t, stream(t, plain, "public.orders", relay.Checkpoint{}), 3)
	if ids(got) != fmt.Sprintf("2:0 2:1 %d:0", last) || got[0].Err != nil || got[2].Err == nil {
		t.Errorf("got %s, %v; want row 2 and a dead letter of row %d", ids(got), got[len(got)-1].Err, last)
	}
}

// TestDeltaTableOfLongNames: 45 bytes of a name count, in any script.
func TestDeltaTableOfLongNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{strings.Repeat("n", 63), strings.Repeat("ü", 23), strings.Repeat("ü", 31), strings.Repeat("日", 21), strings.Repeat("𝄞", 15)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, plain := streams(t, "public."+name)
			exttest.Refresh(t, pool, "public."+name, 2, 0, true)
			src := stream(t, plain, "public."+name, relay.Checkpoint{})
			for _, m := range receive(t, src, 2) {
				if m.Err != nil {
					t.Errorf("%s: %v", m.ID, m.Err)
				}
			}
		})
	}
}

// TestStreamTableCreatedAgain drops a stream table and creates it again: the running
// source goes over to the new outbox, and a new one opens it.
func TestStreamTableCreatedAgain(t *testing.T) {
	t.Parallel()
	pool, plain := streams(t, "public.orders", "app.orders")
	exttest.Refresh(t, pool, "public.orders", 2, 0, false)
	src := stream(t, plain, "public.orders", relay.Checkpoint{})
	deliver(t, plain, src, "public.orders", 2)
	exec(t, pool, `SELECT pgtrickle.drop_stream_table('public.orders'); CREATE TABLE public.orders (id int); INSERT INTO public.orders VALUES (7)`)
	_, err := outbox.Open(t.Context(), plain, outbox.Config{Outbox: "public.orders", Group: "g", Pipeline: "q"})
	if err == nil || !strings.Contains(err.Error(), "enable_outbox('public.orders')") {
		t.Errorf("Open without an outbox: %v", err)
	}
	exttest.EnableOutbox(t, pool, "public.orders")
	exec(t, pool, `SELECT pgtrickle.relay_grant_access()`)
	exttest.Refresh(t, pool, "public.orders", 1, 0, false)

	start := time.Now()
	again := column[string](t, pool, `SELECT outbox_table_name FROM pgtrickle.pgt_outbox_config c JOIN pgtrickle.pgt_stream_tables s ON s.pgt_id = c.stream_table_oid::bigint
		WHERE s.pgt_schema = 'public'`)[0]
	if got := receive(t, src, 1); ids(got) != "1:0" || time.Since(start) > 10*time.Second {
		t.Errorf("the running source has %s after %s, want a message of %s", got[0].ID, time.Since(start), again)
	}
	if src.Table() != "pgtrickle."+again {
		t.Errorf("the source reads %s", src.Table())
	}
	if got := receive(t, stream(t, plain, "public.orders", relay.Checkpoint{}), 1); ids(got) != "1:0" {
		t.Errorf("a new source has %s", got[0].ID)
	}
	_, err = outbox.Open(t.Context(), plain, outbox.Config{Outbox: "orders", Group: "g", Pipeline: "q"})
	if want := fmt.Sprintf("public.orders (outbox %s)", again); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), " .orders") {
		t.Errorf("Open without a schema: %v; want %q", err, want)
	}
}
