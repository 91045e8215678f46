package outbox_test

import (
	"context"
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

// The tests of this file are the experiments from which the two strategies were derived.
// Each shows what a simpler query does, and what the relay does.

func begin(t testing.TB, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func in(t testing.TB, tx pgx.Tx, sql string, args ...any) {
	t.Helper()
	if _, err := tx.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func commit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func column[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) []T {
	t.Helper()
	rows, err := pool.Query(context.Background(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[T])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return all
}

// E1: id > last loses the row of a transaction that commits later.
func TestE1NaiveQueryLoses(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		slow := begin(t, pool)
		in(t, slow, insertOne, 1, 1)
		exec(t, pool, insertOne, 2, 2)
		const naive = "SELECT id FROM pgtrickle.outbox_orders WHERE id > $1 ORDER BY id"
		if got := column[int64](t, pool, naive, 0); len(got) != 1 || got[0] != 2 {
			t.Fatalf("naive poll 1 = %v, want [2]", got)
		}
		if got := receive(t, src, 1); ids(got) != "2:0" {
			t.Fatalf("received %s, want 2:0", ids(got))
		}
		commit(t, slow)
		if got := column[int64](t, pool, naive, 2); len(got) != 0 {
			t.Fatalf("naive poll 2 = %v: it did not lose the row", got)
		}
		if got := receive(t, src, 1); ids(got) != "1:0" {
			t.Fatalf("received %s, want 1:0", ids(got))
		}
	})
}

// E2a: a watermark at the snapshot's xmin waits for strangers in other databases.
func TestE2aStrangerDoesNotStall(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		stranger := begin(t, pgtest.Pool(t))
		in(t, stranger, "SELECT pg_current_xact_id()")
		src := open(t, pool, relay.Checkpoint{})
		exec(t, pool, insertOne, 1, 3)
		if src.Strategy() == "window" {
			if got := column[int64](t, pool, "SELECT id FROM pgtrickle.outbox_orders WHERE xid < pg_snapshot_xmin(pg_current_snapshot())"); len(got) != 0 {
				t.Fatalf("the watermark query found %v: it did not stall", got)
			}
		}
		got := receive(t, src, 3)
		if ids(got) != "1:0 2:0 3:0" {
			t.Fatalf("received %s", ids(got))
		}
		waitFor(t, src, got, 3)
	})
}

// waitFor polls until the checkpoint's id arrives at want.
func waitFor(t testing.TB, src *outbox.Source, settled []relay.Message, want int64) relay.Checkpoint {
	t.Helper()
	c := checkpoint(t, src, settled)
	for deadline := time.Now().Add(10 * time.Second); c.LastID != want; c = checkpoint(t, src, nil) {
		if time.Now().After(deadline) {
			t.Fatalf("LastID = %d, want %d; %s", c.LastID, want, c.State)
		}
		nothing(t, src)
	}
	return c
}

// E2b and E3: ordering by xid reverses rows of a key. Ordering by when rows become
// visible, and then by id, does not.
func TestE2bE3OrderOfAKey(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, "CREATE TABLE k (k int PRIMARY KEY, v int); INSERT INTO k VALUES (1, 0)")
		src := open(t, pool, relay.Checkpoint{})
		b := begin(t, pool)
		in(t, b, "SELECT pg_current_xact_id()") // an early xid, used late
		c := begin(t, pool)
		in(t, c, insertOne, 100, 100) // id 1, stays open
		a := begin(t, pool)
		in(t, a, "UPDATE k SET v = v + 1")
		in(t, a, insertOne, 1, 1) // id 2
		commit(t, a)
		in(t, b, "UPDATE k SET v = v + 1")
		in(t, b, insertOne, 2, 2) // id 3
		commit(t, b)
		if src.Strategy() == "window" {
			if got := column[int64](t, pool, "SELECT id FROM pgtrickle.outbox_orders ORDER BY xid, id"); got[0] != 3 {
				t.Fatalf("by xid: %v: the order did not turn around", got)
			}
		}
		got := receive(t, src, 2)
		if ids(got) != "2:0 3:0" {
			t.Fatalf("received %s, want 2:0 3:0 and no wait for the open one", ids(got))
		}
		commit(t, c)
		if got := receive(t, src, 1); ids(got) != "1:0" {
			t.Fatalf("received %s, want 1:0", ids(got))
		}
	})
}

// E4: neither strategy takes a lock that a writer could wait for.
func TestE4WritersAreNotBlocked(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		slow := begin(t, pool)
		in(t, slow, insertOne, 1, 1)
		src := open(t, pool, relay.Checkpoint{})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ctx.Err() == nil {
				_, _ = src.Receive(ctx, 100)
			}
		}()
		begun := time.Now()
		for n := range 20 {
			exec(t, pool, "SET lock_timeout = '2s'; "+fmt.Sprintf("INSERT INTO pgtrickle.outbox_orders (payload) SELECT '{\"v\":1,\"inserted\":[]}' FROM generate_series(1, %d)", n+1))
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("20 inserts took %s", took)
		}
		cancel()
		<-done
	})
}

// E5 is about leases; see package lease.

// E6: with CACHE above 1, ids reverse rows of a key even inside one snapshot. So such a
// sequence is refused, and the cure in the error works.
func TestE6CachedSequenceIsRefused(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, "ALTER SEQUENCE pgtrickle.outbox_orders_id_seq CACHE 50")
		one, two := conn(t, pool), conn(t, pool)
		write := func(c *pgx.Conn) {
			if _, err := c.Exec(context.Background(), insertOne, 1, 1); err != nil {
				t.Fatal(err)
			}
		}
		write(one)
		write(two)
		write(one) // the third to commit
		if got := column[int64](t, pool, "SELECT id FROM pgtrickle.outbox_orders ORDER BY id"); got[1] != 2 || got[2] != 51 {
			t.Fatalf("ids %v: the cache had no effect", got)
		}
		_, err := outbox.Open(context.Background(), pool, outbox.Config{Outbox: "outbox_orders"})
		cure := "ALTER SEQUENCE pgtrickle.outbox_orders_id_seq CACHE 1"
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), cure) {
			t.Fatalf("Open = %v, want a fatal error with the cure %q", err, cure)
		}
		exec(t, pool, cure)
		write(one) // sessions forget what they had cached
		write(two)
		write(one)
		got := column[int64](t, pool, "SELECT id FROM pgtrickle.outbox_orders ORDER BY id DESC LIMIT 3")
		if got[0] != got[1]+1 || got[1] != got[2]+1 {
			t.Fatalf("after the cure, ids %v", got)
		}
		src := open(t, pool, relay.Checkpoint{})
		receive(t, src, 6)
		nothing(t, src)
	})
}

func conn(t testing.TB, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	c, err := pgx.ConnectConfig(context.Background(), pool.Config().ConnConfig.Copy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// E7: the system column xmin has the subtransaction's number, which snapshots do not
// list; the xid column has the transaction's.
func TestE7Savepoints(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		tx := begin(t, pool)
		in(t, tx, insertOne, 1, 1)
		in(t, tx, "SAVEPOINT s")
		in(t, tx, insertOne, 2, 2)
		in(t, tx, "ROLLBACK TO s")
		in(t, tx, "SAVEPOINT s")
		in(t, tx, insertOne, 3, 3)
		nothing(t, src)
		commit(t, tx)
		got := receive(t, src, 2)
		if ids(got) != "1:0 3:0" {
			t.Fatalf("received %s, want 1:0 3:0", ids(got))
		}
		if src.Strategy() == "window" {
			if n := column[int64](t, pool, "SELECT count(DISTINCT xmin::text) - count(DISTINCT xid) FROM pgtrickle.outbox_orders"); n[0] == 0 {
				t.Error("xmin and xid agree: no subtransaction took part")
			}
		}
		waitFor(t, src, got, 3)
	})
}

// A transaction that was prepared can be committed long after its session ended,
// and after the reader was restarted.
func TestPreparedTransaction(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		if column[int64](t, pool, "SELECT current_setting('max_prepared_transactions')::bigint")[0] == 0 {
			t.Skip("the server has max_prepared_transactions = 0")
		}
		name := strings.ReplaceAll(t.Name(), "/", "_")
		src := open(t, pool, relay.Checkpoint{})
		tx := begin(t, pool)
		in(t, tx, insertOne, 1, 1)
		exec(t, pool, insertOne, 2, 2)
		got := receive(t, src, 1) // the hole at 1 is listed under the transaction's name
		nothing(t, src)
		in(t, tx, "PREPARE TRANSACTION '"+name+"'")
		_ = tx.Rollback(context.Background())
		nothing(t, src)
		src = open(t, pool, checkpoint(t, src, got))
		nothing(t, src)
		exec(t, pool, "COMMIT PREPARED '"+name+"'")
		if got := receive(t, src, 1); ids(got) != "1:0" {
			t.Fatalf("received %s, want 1:0", ids(got))
		}
		nothing(t, src)
	})
}

// A session that idles in its transaction keeps its own gap open and no other.
func TestIdleSessionKeepsOnlyItsOwnGap(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders"))
	src := open(t, pool, relay.Checkpoint{})
	idle := begin(t, pool)
	in(t, idle, insertOne, 1, 1)
	var got []relay.Message
	for i := range 30 {
		tx := begin(t, pool)
		in(t, tx, insertOne, 1, 1)
		if err := tx.Rollback(context.Background()); err != nil {
			t.Fatal(err)
		}
		exec(t, pool, insertOne, 1, 1)
		got = append(got, receive(t, src, 1)...)
		if i == 0 {
			nothing(t, src)
		}
	}
	nothing(t, src)
	c := checkpoint(t, src, got)
	if n := strings.Count(string(c.State[strings.Index(string(c.State), `"holes"`):]), ","); n > 12 {
		t.Errorf("the checkpoint has many holes: %s", c.State)
	}
	commit(t, idle)
	if got := receive(t, src, 1); ids(got) != "1:0" {
		t.Fatalf("received %s, want 1:0", ids(got))
	}
}
