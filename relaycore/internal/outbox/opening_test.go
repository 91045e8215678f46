package outbox_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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
	if ctx.Value(connecting{}) == nil {
		q.list = append(q.list, data.SQL)
	}
	return ctx
}

// connecting marks the context of statements that set a connection up.
type connecting struct{}

// count counts the statements that contain a text.
func (q *queries) count(text string) (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, sql := range q.list {
		if strings.Contains(sql, text) {
			n++
		}
	}
	return n
}

func (*queries) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// traced returns a pool on the database of pool whose statements are kept.
func traced(t *testing.T, pool *pgxpool.Pool) (*pgxpool.Pool, *queries) {
	t.Helper()
	config, asked := pool.Config(), new(queries)
	config.ConnConfig.Tracer = asked
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		return outbox.Tune(context.WithValue(ctx, connecting{}, true), conn)
	}
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

// TestLooksOfManyReaders: readers that a row wakes look at the table together, and each of
// them notices that it was created again.
func TestLooksOfManyReaders(t *testing.T) {
	t.Parallel()
	const readers, most = 60, 20
	pool := identified(t)
	pool, asked := traced(t, pool)
	sources := make([]*outbox.Source, readers)
	for i := range sources {
		sources[i] = pipeline(t, pool, "p", func(c *outbox.Config) { c.Pipeline = fmt.Sprint("p", i) })
		if _, err := sources[i].Look(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	each := func(want string) {
		t.Helper()
		time.Sleep(1100 * time.Millisecond) // each looks again
		var wg sync.WaitGroup
		for _, s := range sources {
			wg.Go(func() {
				msgs, err := s.Look(t.Context(), 10)
				if err != nil || ids(msgs) != want {
					t.Errorf("a reader returns %q, %v, want %q", ids(msgs), err, want)
				}
			})
		}
		wg.Wait()
	}
	exec(t, pool, `INSERT INTO orders VALUES (1)`)
	each("1:0")
	if n := asked.count("pg_is_in_recovery(), CASE"); n > most {
		t.Errorf("%d readers look %d times, want at most %d", readers, n, most)
	}
	exec(t, pool, `TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY`)
	exec(t, pool, `INSERT INTO orders VALUES (2)`)
	each("1:0")
}
