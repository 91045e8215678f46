package outbox_test

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
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

// A process that takes twenty pipelines over opens them at once, so each query of an opening
// delays all their messages.
func TestQueriesOfAnOpening(t *testing.T) {
	t.Parallel()
	const most = 12
	pool := identified(t)
	src := pipeline(t, pool, "p")
	exec(t, pool, `INSERT INTO orders VALUES (1)`)
	at := checkpoint(t, src, receive(t, src, 1))

	config := pool.Config()
	asked := new(queries)
	config.ConnConfig.Tracer = asked
	traced, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer traced.Close()
	open(t, traced, at, func(c *outbox.Config) { c.Outbox, c.Identity = "public.orders", "p" })
	if len(asked.list) > most {
		t.Errorf("opening takes %d queries, want at most %d:", len(asked.list), most)
		for _, sql := range asked.list {
			t.Logf("%.110q", sql)
		}
	}
}
