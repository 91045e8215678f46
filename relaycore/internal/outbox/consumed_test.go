package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestClaimChecksAreGivenUp has two pipelines on an outbox of the extension's: its
// deltas are given up when both have them, by durable checkpoints, and then soon.
func TestClaimChecksAreGivenUp(t *testing.T) {
	t.Parallel()
	pool := extension(t)
	var fast, slow gate
	fast.open(100)
	refresh(t, pool) // 1
	first, second := run(t, pool, "fast", &fast), run(t, pool, "slow", &slow)
	settles(t, pool, "fast", 1)
	refresh(t, pool) // 2
	settles(t, pool, "fast", 2)
	first() // after which nothing is left to report
	if got := fmt.Sprint(column[int64](t, pool, `SELECT up_to FROM consumed`)); got != "[]" {
		t.Errorf("given up to %s while one pipeline has nothing", got)
	}

	slow.open(1)
	gone(t, pool, 1)
	first = run(t, pool, "fast", &fast)
	refresh(t, pool) // 3
	settles(t, pool, "fast", 3)
	if got := deltas(t, pool); got != "[2 3]" {
		t.Errorf("deltas of %s are there, want those that the slow pipeline needs: 2 and 3", got)
	}
	slow.open(100)
	gone(t, pool, 3) // though nothing follows
	first()
	second()

	// Both are killed when they have committed, and before they give anything up.
	refresh(t, pool) // 4
	for _, name := range []string{"fast", "slow"} {
		led, state, src := take(t, pool, name)
		c := checkpoint(t, src, receive(t, src, 2))
		if c.LastID != 4 {
			t.Fatalf("%s: settled up to %d behind %d, want 4", name, c.LastID, state.Checkpoint.LastID)
		}
		if err := led.Commit(t.Context(), engine.Commit{Checkpoint: &c}); err != nil {
			t.Fatal(err)
		}
	}
	if got := deltas(t, pool); got != "[4]" {
		t.Errorf("deltas of %s are there, want 4", got)
	}
	run(t, pool, "slow", &slow)
	gone(t, pool, 4)

	if n := column[int64](t, pool, `SELECT count(*) FROM consumed WHERE up_to > settled`)[0]; n > 0 {
		t.Errorf("%d calls went beyond a durable checkpoint", n)
	}
}

// TestNothingIsGivenUpForAnEarlierTable: if a table's ids have restarted, a pipeline that
// was far in it has none of its present rows until its next checkpoint.
func TestNothingIsGivenUpForAnEarlierTable(t *testing.T) {
	t.Parallel()
	for name, again := range map[string]string{
		"created anew": `SELECT pgtrickle.disable_outbox('public.orders'); SELECT pgtrickle.enable_outbox('public.orders')`,
		"truncated":    `TRUNCATE pgtrickle.outbox_orders, pgtrickle.outbox_delta_rows_orders RESTART IDENTITY`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := extension(t)
			for range 3 {
				refresh(t, pool)
			}
			var before, fast, slow gate
			before.open(100)
			for _, name := range []string{"fast", "slow"} {
				stop := run(t, pool, name, &before)
				settles(t, pool, name, 3)
				stop()
			}
			exec(t, pool, again+`; TRUNCATE consumed`)
			refresh(t, pool)
			refresh(t, pool)
			fast.open(100)
			stop := run(t, pool, "fast", &fast)
			settles(t, pool, "fast", 2)
			stop()
			stop = run(t, pool, "slow", &slow)
			slow.open(1)
			settles(t, pool, "slow", 1)
			stop()
			if got := deltas(t, pool); got != "[2]" {
				t.Errorf("deltas of %s are there, want those that the slow pipeline needs: 2", got)
			}
			slow.open(100)
			run(t, pool, "slow", &slow)
			gone(t, pool, 2)
			if n := len(slow.queue.Messages()); n != 4 {
				t.Errorf("%d messages came, want 4", n)
			}
		})
	}
}

// extension returns a database with the extension's outbox of a table of two rows
// and two pipelines on it. Table consumed has the calls of outbox_rows_consumed,
// each with the id up to which every pipeline was settled at the time.
func extension(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	exttest.Install(t, pool)
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `CREATE TABLE public.orders (id int); INSERT INTO public.orders VALUES (1), (2)`)
	exttest.EnableOutbox(t, pool, "public.orders")
	exec(t, pool, `SELECT pgtrickle.set_relay_outbox(n, config => '{"stream_table": "orders", "sink_type": "stdout"}') FROM unnest(ARRAY['fast', 'slow']) n;
		CREATE TABLE consumed (up_to bigint, settled bigint);
		ALTER FUNCTION pgtrickle.outbox_rows_consumed RENAME TO fixture_rows_consumed;
		CREATE FUNCTION pgtrickle.outbox_rows_consumed(p_stream_table text, p_outbox_id bigint) RETURNS void LANGUAGE sql AS $$
			INSERT INTO consumed SELECT p_outbox_id, min(coalesce((checkpoint->>'safe')::bigint, 0)) FROM pgtrickle.relay_cursors;
			SELECT pgtrickle.fixture_rows_consumed(p_stream_table, p_outbox_id) $$`)
	return pool
}

func refresh(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	exttest.Refresh(t, pool, "public.orders", 2, 0, true)
}

// take makes its caller the owner of a pipeline.
func take(t *testing.T, pool *pgxpool.Pool, name string) (*store.Ledger, engine.State, *outbox.Source) {
	t.Helper()
	epoch := column[int64](t, pool, `INSERT INTO pgtrickle.relay_cursors AS c (relay_group_id, direction, pipeline, epoch) VALUES ('g', 'forward', '`+name+`', 1)
		ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET epoch = c.epoch + 1 RETURNING epoch`)[0]
	led, state, err := store.New(pool, "g").Open(t.Context(), store.Key{Direction: relay.Forward, Name: name}, epoch, "test")
	if err != nil {
		t.Fatal(err)
	}
	src := open(t, pool, state.Checkpoint, func(c *outbox.Config) { c.Outbox, c.Pipeline = "orders", name })
	t.Cleanup(func() { _ = src.Close() })
	led.SetSource(src.Table)
	return led, state, src
}

// run runs a pipeline until stop is called or the test ends.
func run(t *testing.T, pool *pgxpool.Pool, name string, sink relay.Sink) (stop func()) {
	t.Helper()
	led, state, src := take(t, pool, name)
	eng := engine.New(engine.Config{
		Pipeline: name, Source: src, Sink: sink, Ledger: led, State: state,
		Transform: func(_ []relay.Message, buf []byte) []byte { return buf }, Meter: new(observe.Pipeline),
	})
	ending, end := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- eng.Run(context.Background(), ending) }()
	stop = func() {
		end()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return stop
}

// gate is a sink that takes messages of rows up to an id.
type gate struct {
	queue relaytest.Queue
	upTo  atomic.Int64
}

func (g *gate) open(upTo int64) { g.upTo.Store(upTo) }

func (g *gate) Publish(ctx context.Context, batch []relay.Message) error {
	outcome := relay.NewOutcome(batch)
	sink := g.queue.Sink()
	for i := range batch {
		if batch[i].OutboxID > g.upTo.Load() {
			outcome.Fail(i, errors.New("not yet"))
		} else if err := sink.Publish(ctx, batch[i:i+1]); err != nil {
			outcome.Fail(i, err)
		} else {
			outcome.Confirm(i)
		}
	}
	return outcome.Err()
}

func (g *gate) Close() error { return nil }

// settles waits until a pipeline's durable checkpoint is at an id.
func settles(t *testing.T, pool *pgxpool.Pool, name string, id int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is settled up to %d", name, id), func() bool {
		return column[int64](t, pool, `SELECT coalesce((checkpoint->>'safe')::bigint, 0) FROM pgtrickle.relay_cursors WHERE pipeline = '`+name+`'`)[0] == id
	})
}

// gone waits until deltas are given up up to an id.
func gone(t *testing.T, pool *pgxpool.Pool, id int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("given up to %d", id), func() bool {
		return column[int64](t, pool, `SELECT coalesce(max(up_to), 0) FROM consumed`)[0] == id
	})
}

// deltas lists the claim checks whose deltas are there.
func deltas(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	return fmt.Sprint(column[int64](t, pool, `SELECT DISTINCT outbox_id FROM pgtrickle.outbox_delta_rows_orders ORDER BY 1`))
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}
