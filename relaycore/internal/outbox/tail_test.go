package outbox_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// Ids at the end that were rolled back are settled once the transactions that had taken
// them have ended, and not before.
func TestRolledBackTail(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		last := func() int64 {
			t.Helper()
			_, settled, ok := src.Numbering()
			if !ok {
				t.Fatal("the sequence does not tell")
			}
			return settled
		}
		slow := begin(t, pool)
		in(t, slow, insertOne, 1, 3)
		for range 5 {
			nothing(t, src)
		}
		if last() != 0 || checkpoint(t, src, nil).LastID != 0 {
			t.Fatalf("settled up to %d while ids 1 to 3 are in the hands of an open transaction", last())
		}
		_ = slow.Rollback(context.Background())
		waitFor(t, src, nil, 3)
		if last() != 3 {
			t.Fatalf("settled up to %d, want 3", last())
		}
		exec(t, pool, insertOne, 1, 1)
		got := receive(t, src, 1)
		exec(t, pool, `BEGIN; `+strings.NewReplacer("$1::int", "1", "$2::int", "4").Replace(insertOne)+`; ROLLBACK`)
		c := waitFor(t, src, got, 8)
		src = open(t, pool, c)
		exec(t, pool, insertOne, 1, 1)
		if got := receive(t, src, 1); ids(got) != "9:0" {
			t.Fatalf("received %s, want 9:0; %s", ids(got), c.State)
		}
	})
}

// nextval locks the sequence until the end of its transaction. So the source waits for an
// id that was taken by hand and is inserted later in the same transaction.
func TestIDTakenByHand(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		byHand := begin(t, pool)
		in(t, byHand, `SELECT nextval('pgtrickle.outbox_orders_id_seq')`)
		exec(t, pool, insertOne, 2, 2)
		got := receive(t, src, 1)
		for range 5 {
			nothing(t, src)
		}
		if c := checkpoint(t, src, got); ids(got) != "2:0" || c.LastID != 0 {
			t.Fatalf("received %s, settled up to %d; want 2:0 and 0", ids(got), c.LastID)
		}
		in(t, byHand, `INSERT INTO pgtrickle.outbox_orders (id, inserted_count, payload) VALUES (1, 1, '{"v":1,"inserted":[{"n":1}]}')`)
		nothing(t, src)
		commit(t, byHand)
		if got = receive(t, src, 1); ids(got) != "1:0" {
			t.Fatalf("received %s, want 1:0", ids(got))
		}
		waitFor(t, src, got, 2)
	})
}

// The source cannot wait for an id that was taken in an earlier transaction. Windows
// deliver its row, and log that it lay below a settled id.
func TestIDTakenLongBefore(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		var log bytes.Buffer
		src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		exec(t, pool, `SELECT nextval('pgtrickle.outbox_orders_id_seq')`)
		waitFor(t, src, nil, 1)
		exec(t, pool, `INSERT INTO pgtrickle.outbox_orders (id, inserted_count, payload) VALUES (1, 1, '{"v":1,"inserted":[{"n":1}]}')`)
		if src.Strategy() == "fence" {
			nothing(t, src) // see docs/outbox-reading.md; verify counts it
			return
		}
		if got := receive(t, src, 1); ids(got) != "1:0" || !strings.Contains(log.String(), "row appeared below settled id") {
			t.Fatalf("received %s, log %s", ids(got), &log)
		}
	})
}

// With sequence_cache accept, an id that a session has put by is not settled as
// long as the session lives, whenever it uses it. The relay's own sessions do not
// count, as those of a role that may not write.
func TestAcceptedCache(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := pgtest.Pool(t)
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, fmt.Sprintf(outboxDDL+withXid, "outbox_orders")+`ALTER SEQUENCE pgtrickle.outbox_orders_id_seq CACHE 50;
		GRANT SELECT ON pgtrickle.outbox_orders, pgtrickle.outbox_orders_id_seq TO pgtrickle_relay`)
	plain := pgtest.Open(t, plainRole(t, pool.Config().ConnString()))
	src := open(t, plain, relay.Checkpoint{}, func(c *outbox.Config) { c.Settings.SequenceCache = "accept" })
	if _, _, ok := src.Numbering(); ok || src.Strategy() != "window" {
		t.Fatalf("by %s, the sequence tells: %v", src.Strategy(), ok)
	}
	session := func() *pgx.Conn {
		t.Helper()
		c, err := pgx.Connect(ctx, pool.Config().ConnString())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close(ctx) })
		return c
	}
	write := func(c *pgx.Conn) {
		t.Helper()
		if _, err := c.Exec(ctx, insertOne, 1, 1); err != nil {
			t.Fatal(err)
		}
	}
	one, two := session(), session()
	pool.Reset() // its sessions could have ids, too
	write(one)
	write(two)
	got := receive(t, src, 2)
	for range 8 {
		nothing(t, src)
	}
	if c := checkpoint(t, src, got); ids(got) != "1:0 51:0" || c.LastID != 0 {
		t.Fatalf("received %s, settled up to %d; want 1:0 51:0 and 0", ids(got), c.LastID)
	}
	write(one)
	got = receive(t, src, 1)
	if ids(got) != "2:0" {
		t.Fatalf("received %s, want 2:0", ids(got))
	}
	_ = one.Close(ctx)
	_ = two.Close(ctx)
	waitFor(t, src, got, 100)
	if n, err := src.Unaccounted(ctx); n != 0 || err != nil {
		t.Errorf("Unaccounted = %d, %v", n, err)
	}
	if _, err := outbox.Open(ctx, plain, outbox.Config{Outbox: "outbox_orders", Settings: outbox.Settings{Strategy: "fence", SequenceCache: "accept"}}); !relay.IsFatal(err) {
		t.Errorf("the fence over a cached sequence = %v, want a fatal error", err)
	}
	if _, err := pool.Exec(ctx, `DO $$ BEGIN EXECUTE 'ALTER SEQUENCE ' || pg_get_serial_sequence('pgtrickle.outbox_orders', 'id') || ' CYCLE'; END $$`); err != nil {
		t.Fatal(err)
	}
	if _, err := outbox.Open(ctx, plain, outbox.Config{Outbox: "outbox_orders", Settings: outbox.Settings{SequenceCache: "accept"}}); !relay.IsFatal(err) || !strings.Contains(err.Error(), "NO CYCLE") {
		t.Errorf("a cached sequence that begins again = %v, want a fatal error with the cure", err)
	}
}
