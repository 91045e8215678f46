package outbox_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Ids at the end that nobody will ever use are settled once those who had taken
// them are over, and not before.
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

// nextval locks the sequence until the end of its transaction, so an id that was
// taken by hand and is inserted later in the same transaction is waited for.
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

// An id that was taken in an earlier transaction cannot be seen coming. Windows
// deliver it, and say that it lay below what was settled.
func TestIDTakenLongBefore(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		var log bytes.Buffer
		src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		exec(t, pool, `SELECT nextval('pgtrickle.outbox_orders_id_seq')`)
		waitFor(t, src, nil, 1)
		exec(t, pool, `INSERT INTO pgtrickle.outbox_orders (id, inserted_count, payload) VALUES (1, 1, '{"v":1,"inserted":[{"n":1}]}')`)
		if src.Strategy() == "fence" {
			nothing(t, src) // docs/outbox-reading.md says so; verify counts it
			return
		}
		if got := receive(t, src, 1); ids(got) != "1:0" || !strings.Contains(log.String(), "below an id up to which all had been delivered") {
			t.Fatalf("received %s, log %s", ids(got), &log)
		}
	})
}
