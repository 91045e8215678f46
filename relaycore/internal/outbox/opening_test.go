package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// queries is a [pgx.QueryTracer] that keeps the statements.
type queries struct {
	mu   sync.Mutex
	list []string
}

func (q *queries) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = append(q.list, data.SQL)
	return ctx
}

func (*queries) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// traced returns a pool on the database of pool whose statements are kept.
func traced(t *testing.T, pool *pgxpool.Pool) (*pgxpool.Pool, *queries) {
	t.Helper()
	config, asked := pool.Config(), new(queries)
	config.ConnConfig.Tracer = asked
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(traced.Close)
	return traced, asked
}

// A process that takes twenty pipelines over opens them at once, so each query of an opening
// delays all their messages.
func TestQueriesOfAnOpening(t *testing.T) {
	t.Parallel()
	const most = 12
	pool := identified(t)
	src := pipeline(t, pool, "p")
	exec(t, pool, `INSERT INTO orders VALUES (1)`)
	at := checkpoint(t, src, receive(t, src, 1))

	pool, asked := traced(t, pool)
	open(t, pool, at, func(c *outbox.Config) { c.Outbox, c.Identity = "public.orders", "p" })
	if len(asked.list) > most {
		t.Errorf("opening takes %d queries, want at most %d:", len(asked.list), most)
		for _, sql := range asked.list {
			t.Logf("%.110q", sql)
		}
	}
}

// TestQueriesOfManyOpenings: pipelines of one outbox that are opened at once ask what
// concerns the outbox together, and each gets its own position and identity.
func TestQueriesOfManyOpenings(t *testing.T) {
	t.Parallel()
	const pipelines, each = 200, 2
	pool := identified(t)
	src := pipeline(t, pool, "p")
	exec(t, pool, `INSERT INTO orders VALUES (1), (2)`)
	msgs := receive(t, src, 2)
	settled := []relay.Checkpoint{checkpoint(t, src, msgs[:1]), checkpoint(t, src, msgs[1:])}

	pool, asked := traced(t, pool)
	var wg sync.WaitGroup
	sources := make([]*outbox.Source, pipelines)
	for i := range sources {
		wg.Go(func() {
			sources[i] = open(t, pool, settled[i%2], func(c *outbox.Config) {
				c.Outbox, c.Pipeline, c.Identity, c.Epoch = "public.orders", fmt.Sprint("p", i), fmt.Sprint("identity", i), 1
			})
		})
	}
	wg.Wait()
	if len(asked.list) > pipelines*each {
		t.Errorf("%d openings take %d queries, want at most %d each", pipelines, len(asked.list), each)
	}
	exec(t, pool, `INSERT INTO orders VALUES (3)`)
	for i, s := range sources[:4] {
		want := []string{"2:0 3:0", "3:0"}[i%2]
		got := receive(t, s, 2-i%2)
		if ids(got) != want || !strings.Contains(got[0].Delivery(), fmt.Sprint("identity", i)) {
			t.Errorf("source %d receives %s, the first as %s, want %s by its own identity", i, ids(got), got[0].ID, want)
		}
	}
}
