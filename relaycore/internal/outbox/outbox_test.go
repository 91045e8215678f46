package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// outboxDDL is the extension's outbox; withXid adds what makes it readable by
// snapshot windows.
const (
	outboxDDL = `CREATE SCHEMA IF NOT EXISTS pgtrickle;
		CREATE TABLE pgtrickle.%[1]s (id bigserial PRIMARY KEY, pgt_id uuid NOT NULL DEFAULT gen_random_uuid(), refresh_id uuid, created_at timestamptz NOT NULL DEFAULT now(),
			inserted_count bigint NOT NULL DEFAULT 0, deleted_count bigint NOT NULL DEFAULT 0, is_claim_check bool NOT NULL DEFAULT false, payload jsonb);`
	withXid = `ALTER TABLE pgtrickle.%[1]s ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id(); CREATE INDEX ON pgtrickle.%[1]s (xid);`
)

// bothStrategies runs test on a fresh database with a fresh outbox called
// outbox_orders, once for each strategy.
func bothStrategies(t *testing.T, test func(t *testing.T, pool *pgxpool.Pool)) {
	t.Helper()
	for name, ddl := range map[string]string{"window": outboxDDL + withXid, "fence": outboxDDL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			exec(t, pool, fmt.Sprintf(ddl, "outbox_orders"))
			src := open(t, pool, relay.Checkpoint{})
			if got := src.Strategy(); got != name {
				t.Fatalf("strategy %s, want %s", got, name)
			}
			test(t, pool)
		})
	}
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func open(t testing.TB, pool *pgxpool.Pool, c relay.Checkpoint, change ...func(*outbox.Config)) *outbox.Source {
	t.Helper()
	cfg := outbox.Config{Outbox: "outbox_orders", Group: "g", Pipeline: "p", Checkpoint: c}
	for _, f := range change {
		f(&cfg)
	}
	src, err := outbox.Open(context.Background(), pool, cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return src
}

// receive takes n messages and fails when there are fewer.
func receive(t testing.TB, src *outbox.Source, n int) []relay.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var all []relay.Message
	for len(all) < n {
		msgs, err := src.Receive(ctx, n-len(all))
		if err != nil {
			t.Fatalf("Receive after %d of %d: %v", len(all), n, err)
		}
		all = append(all, msgs...)
	}
	return all
}

// nothing fails when there is a message within a short while.
func nothing(t testing.TB, src *outbox.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	defer cancel()
	msgs, err := src.Receive(ctx, 10)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Receive = %d messages (%s …), %v; want none", len(msgs), first(msgs), err)
	}
}

func first(msgs []relay.Message) string {
	if len(msgs) == 0 {
		return ""
	}
	return msgs[0].ID
}

// rowOf returns the row and the index of an id.
func rowOf(id string) string { return id[strings.IndexByte(id, ':')+1:] }

func ids(msgs []relay.Message) string {
	var b strings.Builder
	for i := range msgs {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(rowOf(msgs[i].ID))
	}
	return b.String()
}

func checkpoint(t testing.TB, src *outbox.Source, batch []relay.Message) relay.Checkpoint {
	t.Helper()
	c, err := src.Checkpoint(batch)
	if err != nil {
		t.Fatalf("Checkpoint: %v", err)
	}
	return c
}

const insertOne = `INSERT INTO pgtrickle.outbox_orders (inserted_count, payload) SELECT 1, jsonb_build_object('v', 1, 'inserted', jsonb_build_array(jsonb_build_object('n', n)), 'deleted', '[]'::jsonb) FROM generate_series($1::int, $2::int) n`

func TestReceiveAndRestart(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, 5)
		src := open(t, pool, relay.Checkpoint{})
		got := receive(t, src, 5)
		if ids(got) != "1:0 2:0 3:0 4:0 5:0" {
			t.Fatalf("received %s", ids(got))
		}
		m := got[1]
		if string(m.Row) != `{"n": 2}` || m.Op != relay.OpInsert || m.StreamTable != "orders" || m.OutboxID != 2 || m.FullRefresh || time.Since(m.Time) > time.Minute {
			t.Fatalf("message = %+v", m)
		}
		nothing(t, src)

		// Settled: 1, 2 and, out of order, 4.
		checkpoint(t, src, got[:2])
		c := checkpoint(t, src, got[3:4])
		src = open(t, pool, c)
		again := receive(t, src, 2)
		if ids(again) != "3:0 5:0" {
			t.Fatalf("after a restart: %s, want 3:0 5:0; checkpoint %s", ids(again), c.State)
		}
		exec(t, pool, insertOne, 6, 6)
		again = append(again, receive(t, src, 1)...)
		nothing(t, src)
		c = checkpoint(t, src, again)
		src = open(t, pool, c)
		nothing(t, src)
		exec(t, pool, insertOne, 7, 9)
		if got := receive(t, src, 3); ids(got) != "7:0 8:0 9:0" {
			t.Fatalf("received %s; checkpoint %s", ids(got), c.State)
		}
	})
}

func TestLateCommitIsDelivered(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		ctx := context.Background()
		slow, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer slow.Rollback(ctx)
		if _, err := slow.Exec(ctx, insertOne, 1, 1); err != nil {
			t.Fatal(err)
		}
		exec(t, pool, insertOne, 2, 2)
		src := open(t, pool, relay.Checkpoint{})
		got := receive(t, src, 1)
		if ids(got) != "2:0" {
			t.Fatalf("received %s, want 2:0 without waiting for 1", ids(got))
		}
		c := checkpoint(t, src, got)
		nothing(t, src)
		src2 := open(t, pool, c) // a restart while the hole is open
		nothing(t, src2)
		if err := slow.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		for _, s := range []*outbox.Source{src, src2} {
			if got := receive(t, s, 1); ids(got) != "1:0" {
				t.Fatalf("received %s, want 1:0", ids(got))
			}
			nothing(t, s)
		}
	})
}

// TestBurstBehindFewRows: after windows of few rows comes one of many, whose ids are
// not in the order of its transactions.
func TestBurstBehindFewRows(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		ctx := t.Context()
		exec(t, pool, insertOne, 1, 3)
		src := open(t, pool, relay.Checkpoint{})
		receive(t, src, 3)
		nothing(t, src)
		begin := func() pgx.Tx {
			tx, err := pool.Begin(ctx)
			if err == nil {
				_, err = tx.Exec(ctx, `SELECT pg_current_xact_id()`)
			}
			if err != nil {
				t.Fatal(err)
			}
			return tx
		}
		older, younger := begin(), begin()
		for i, tx := range []pgx.Tx{younger, older} {
			if _, err := tx.Exec(ctx, insertOne, 4+40*i, 43+40*i); err != nil {
				t.Fatal(err)
			}
		}
		for _, tx := range []pgx.Tx{older, younger} {
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		}
		for i, m := range receive(t, src, 80) {
			if m.OutboxID != int64(4+i) {
				t.Fatalf("message %d is row %d, want %d", i, m.OutboxID, 4+i)
			}
		}
		nothing(t, src)
	})
}

func TestBacklogIsDrainedInOrder(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		const n = 20000
		exec(t, pool, insertOne, 1, n)
		src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.ReadBytes = 100 << 10 })
		for next := int64(1); next <= n; {
			for _, m := range receive(t, src, int(min(1000, n-next+1))) {
				if m.OutboxID != next {
					t.Fatalf("row %d, want %d", m.OutboxID, next)
				}
				next++
				c := checkpoint(t, src, []relay.Message{m})
				if next%7000 == 0 {
					src = open(t, pool, c)
					break
				}
			}
		}
		nothing(t, src)
	})
}

// TestProgressInALongBacklog: how far a pipeline is shows long before its end,
// though a writer is at work when it begins.
func TestProgressInALongBacklog(t *testing.T) {
	t.Parallel()
	const rows = 20_000
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, rows)
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), insertOne, 1, 1); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Millisecond, func() { _ = tx.Commit(context.Background()) })
		src := open(t, pool, relay.Checkpoint{})
		c := checkpoint(t, src, receive(t, src, rows/2))
		if c.LastID < rows/4 {
			t.Errorf("half of %d rows are settled, and LastID is %d", rows, c.LastID)
		}
	})
}
