package outbox_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// smallPool is a pool of so many connections on the database of pool.
func smallPool(t *testing.T, pool *pgxpool.Pool, conns int) *pgxpool.Pool {
	t.Helper()
	return pgtest.Open(t, fmt.Sprintf("%s?pool_max_conns=%d", pool.Config().ConnString(), conns))
}

// TestSourcesShareASmallPool: a source that holds a connection does not ask for
// another one, or as many as there are connections would wait for each other.
func TestSourcesShareASmallPool(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		ddl, change string
		strategy    string // afterwards
	}{
		"windows, truncated":   {outboxDDL + withXid, "TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY", "window"},
		"a fence, truncated":   {outboxDDL, "TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY", "fence"},
		"a fence, then an xid": {outboxDDL, fmt.Sprintf(withXid, "outbox_orders"), "window"},
	} {
		for conns := 1; conns <= 2; conns++ {
			t.Run(fmt.Sprintf("%s, %d connections", name, conns), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				exec(t, pool, fmt.Sprintf(tc.ddl, "outbox_orders"))
				exec(t, pool, insertOne, 1, 3)
				few := smallPool(t, pool, conns)
				sources := make([]*outbox.Source, 4)
				for i := range sources {
					sources[i] = open(t, few, relay.Checkpoint{}, func(c *outbox.Config) { c.Pipeline = fmt.Sprint("p", i) })
					waitFor(t, sources[i], receive(t, sources[i], 3), 3)
				}
				exec(t, pool, tc.change)
				var readers sync.WaitGroup
				for i, src := range sources {
					readers.Go(func() {
						ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
						defer cancel()
						for ctx.Err() == nil {
							msgs, err := src.Receive(ctx, 10)
							if err == nil && string(msgs[0].Row) == `{"n": 7}` && src.Strategy() == tc.strategy {
								return
							}
						}
						t.Errorf("source %d waits for ever; its strategy is %s, want %s", i, src.Strategy(), tc.strategy)
					})
				}
				done := make(chan struct{})
				go func() {
					readers.Wait()
					close(done)
				}()
				pause := 2500 * time.Millisecond // until each has looked at its table again
				for waiting := true; waiting; pause = 200 * time.Millisecond {
					select {
					case <-done:
						waiting = false
					case <-time.After(pause):
						exec(t, pool, insertOne, 7, 7)
					}
				}
			})
		}
	}
}

// TestClaimChecksNeedNoSecondConnection reads claim checks whose delta table comes
// late, and has nothing of one of them, with a single connection.
func TestClaimChecksNeedNoSecondConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders"))
	src := open(t, smallPool(t, pool, 1), relay.Checkpoint{})
	exec(t, pool, `CREATE TABLE pgtrickle.outbox_delta_rows_orders (outbox_id bigint NOT NULL, row_op text NOT NULL, row_data jsonb NOT NULL, row_num bigint NOT NULL, PRIMARY KEY (outbox_id, row_num));
		INSERT INTO pgtrickle.outbox_orders (is_claim_check, inserted_count) VALUES (true, 1), (true, 2);
		INSERT INTO pgtrickle.outbox_delta_rows_orders VALUES (1, 'INSERT', '{"n": 1}', 1)`)
	got := receive(t, src, 2)
	if ids(got) != "1:0 2:0" || got[0].Err != nil || got[1].Err == nil {
		t.Fatalf("received %s, errors %v and %v; want an error of the second alone", ids(got), got[0].Err, got[1].Err)
	}
}
