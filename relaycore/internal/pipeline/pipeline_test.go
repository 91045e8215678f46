package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/internal/supervisor"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

var discard = slog.New(slog.DiscardHandler)

// stage is a database with an outbox of five rows, an inbox, and a backend in memory.
type stage struct {
	runner *Runner
	pool   *pgxpool.Pool
	queue  relaytest.Queue
	failed error // what the backend's constructors return
	opened int   // how many sources the backend has opened

	refuse func(m *relay.Message) bool // messages that the sink refuses; nil = none
}

// picky is a sink that refuses messages.
type picky struct {
	relay.Sink
	stage *stage
}

func (p picky) Publish(ctx context.Context, batch []relay.Message) error {
	for i := range batch {
		if p.stage.refuse != nil && p.stage.refuse(&batch[i]) {
			return relay.Permanent(errors.New("refused"))
		}
	}
	return p.Sink.Publish(ctx, batch)
}

func newStage(t *testing.T) (*stage, catalog.Snapshot) {
	t.Helper()
	return newStageOn(t, pgtest.Pool(t))
}

func newStageOn(t *testing.T, pool *pgxpool.Pool) (*stage, catalog.Snapshot) {
	t.Helper()
	ctx := t.Context()
	st := &stage{pool: pool}
	st.runner = &Runner{Pool: st.pool, Readers: st.pool, Inboxes: st.pool, Group: "g", Owner: "test", Version: "v1"}
	registry := registryOf(t, st)
	if err := migrate.Up(ctx, st.pool, migrate.Specs(registry.Backends())); err != nil {
		t.Fatal(err)
	}
	_, err := st.pool.Exec(ctx, `
		CREATE TABLE public.orders (id int PRIMARY KEY);
		SELECT pgtrickle.enable_outbox('public.orders');
		INSERT INTO public.orders SELECT generate_series(1, 5);
		SELECT pgtrickle.create_inbox('arrivals');
		SELECT pgtrickle.set_relay_outbox('out', '{"stream_table": "public.orders", "sink_type": "memory", "subject_template": "s"}');
		SELECT pgtrickle.set_relay_inbox('in', '{"inbox_table": "arrivals", "source_type": "memory"}')`)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, err := catalog.New(registry, relaycfg.Unrestricted()).Load(ctx, st.pool)
	if err != nil || len(snapshot) != 2 {
		t.Fatalf("Load = %v, %v", snapshot, err)
	}
	return st, snapshot // in, out
}

// TestErrorsOfKeysLast: an error that a key causes, such as that of a missing file, needs
// an operator.
func TestErrorsOfKeysLast(t *testing.T) {
	t.Parallel()
	st, snapshot := newStage(t)
	for _, p := range snapshot {
		for _, tc := range []struct {
			failed error
			fatal  bool
		}{{relaycfg.Errorf("tls_ca", "open the file: no such file or directory"), true}, {errors.New("connection refused"), false}} {
			st.failed = tc.failed
			job, _, stop := st.job(t, p)
			if err := st.runner.Run(t.Context(), job); err == nil || relay.IsFatal(err) != tc.fatal {
				t.Errorf("pipeline %s: Run = %v (fatal %t), want fatal %t", p.Name, err, relay.IsFatal(err), tc.fatal)
			}
			stop()
		}
	}
}

func registryOf(t *testing.T, st *stage) *relay.Registry {
	t.Helper()
	registry, err := relay.NewRegistry(relay.Backend{
		Name: "memory",
		Sink: relaycfg.Sink(struct{}{}, func(context.Context, relay.Env, struct{}) (relay.Sink, error) {
			return picky{st.queue.Sink(), st}, st.failed
		}),
		Source: relaycfg.Source(struct{}{}, func(context.Context, relay.Env, struct{}) (relay.Source, error) {
			st.opened++
			return st.queue.Source(), st.failed
		}),
		SinkGuarantee:   relay.Guarantee{Delivery: "at least once"},
		SourceGuarantee: relay.Guarantee{Delivery: "once"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return registry
}

func (st *stage) job(t *testing.T, p catalog.Pipeline) (job *supervisor.Job, reported *events, stop func()) {
	t.Helper()
	epoch := st.acquire(t, p, "test")
	metrics, err := observe.NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	stopping, stop := context.WithCancel(context.Background())
	reported = new(events)
	return &supervisor.Job{
		Pipeline: p, Epoch: epoch, Trusted: func() bool { return true }, Stop: stopping,
		Meter: metrics.Pipeline(p.Key), Logger: discard, Events: reported,
	}, reported, stop
}

// acquire raises the epoch of a pipeline, as an owner on a session of its own does.
func (st *stage) acquire(t *testing.T, p catalog.Pipeline, owner string) (epoch int64) {
	t.Helper()
	session, err := st.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Release()
	group := store.New(session, "g")
	epochs, err := group.Acquire(t.Context(), []store.Key{p.Key}, owner)
	if err == nil {
		err = group.Unlock(t.Context(), p.Key)
	}
	if err != nil || len(epochs) != 1 {
		t.Fatalf("Acquire = %v, %v", epochs, err)
	}
	return epochs[p.Key]
}

func (st *stage) cursor(t *testing.T, p catalog.Pipeline) store.Cursor {
	t.Helper()
	cursors, err := store.New(st.pool, "g").List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return cursors[p.Key]
}

func TestRun(t *testing.T) {
	t.Parallel()
	st, snapshot := newStage(t)
	job, reported, stop := st.job(t, snapshot[1])
	done := make(chan error, 1)
	go func() { done <- st.runner.Run(t.Context(), job) }()
	for deadline := time.Now().Add(20 * time.Second); st.cursor(t, snapshot[1]).Delivered < 5; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("cursor %+v after 20s, want 5 delivered", st.cursor(t, snapshot[1]))
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	if c := st.cursor(t, snapshot[1]); c.Status != store.StatusStopped || len(st.queue.Messages()) != 5 {
		t.Errorf("cursor %+v and %d messages, want it stopped and 5", c, len(st.queue.Messages()))
	}
	if o := reported.opened; len(o) != 1 || o[0].Outbox != "outbox_orders" || o[0].Guarantee != "at least once" || o[0].Lag == nil || o[0].Redrive == nil {
		t.Errorf("reported %+v, want the outbox orders", o)
	}
}

func TestRunThatFails(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, st *stage, job *supervisor.Job)
		want    error
		status  string
	}{
		"another owner": {func(t *testing.T, st *stage, job *supervisor.Job) {
			st.acquire(t, job.Pipeline, "other")
		}, lease.ErrLost, "new"},
		// The constructor returns a sink beside its error, which must not be closed.
		"no far end": {func(_ *testing.T, st *stage, _ *supervisor.Job) { st.failed = relay.Fatal(errUnknownStream) }, errUnknownStream, store.StatusFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			st, snapshot := newStage(t)
			job, reported, stop := st.job(t, snapshot[1])
			defer stop()
			tc.prepare(t, st, job)
			if err := st.runner.Run(t.Context(), job); !errors.Is(err, tc.want) {
				t.Errorf("Run = %v, want %v", err, tc.want)
			}
			if c := st.cursor(t, snapshot[1]); c.Status != tc.status || len(reported.opened) != 0 {
				t.Errorf("cursor %+v, %d times opened; want %s, 0", c, len(reported.opened), tc.status)
			}
		})
	}
}

var errUnknownStream = errors.New("no such stream")

func TestProbe(t *testing.T) {
	t.Parallel()
	st, snapshot := newStage(t)
	in, out := snapshot[0], snapshot[1]
	for _, tc := range []struct {
		pipeline catalog.Pipeline
		busy     bool
		delivery string
		notes    string
		opened   int
	}{
		{out, true, "at least once", "reads pgtrickle.outbox_orders by snapshot windows, orders by the primary key [id]", 0},
		{in, true, "once", "runs now, so its source was not opened a second time", 0},
		{in, false, "once", "", 1},
	} {
		g, notes, err := st.runner.Probe(t.Context(), tc.pipeline, tc.busy, discard)
		if err != nil || g.Delivery != tc.delivery || strings.Join(notes, ", ") != tc.notes || st.opened != tc.opened {
			t.Errorf("Probe(%s, busy %v) = %+v, %q, %v and %d sources opened; want %s, %q, %d",
				tc.pipeline.Key, tc.busy, g, notes, err, st.opened, tc.delivery, tc.notes, tc.opened)
		}
	}
	st.exec(t, `ALTER TABLE pgtrickle.outbox_orders SET UNLOGGED`)
	if _, notes, err := st.runner.Probe(t.Context(), out, true, discard); err != nil || !strings.Contains(strings.Join(notes, ", "), "UNLOGGED") {
		t.Errorf("Probe of an UNLOGGED outbox = %q, %v; want a warning", notes, err)
	}
	if c := st.cursor(t, out); c.Epoch != 0 || len(st.queue.Messages()) > 0 {
		t.Errorf("after probing: cursor %+v, %d messages; want none", c, len(st.queue.Messages()))
	}
}

func TestRead(t *testing.T) {
	t.Parallel()
	st, snapshot := newStage(t)
	for from, want := range map[int64]string{0: "[1 2 3 4 5]", 4: "[4 5]"} {
		r, err := st.runner.Read(t.Context(), snapshot[1], from, discard)
		if err != nil {
			t.Fatal(err)
		}
		var ids []int64
		for {
			batch, err := r.Next(t.Context(), 2)
			if err != nil {
				t.Fatal(err)
			}
			if len(batch) == 0 {
				break
			}
			for _, m := range batch {
				ids = append(ids, m.OutboxID)
			}
		}
		if got := fmt.Sprint(ids); got != want {
			t.Errorf("read from %d: rows %s, want %s", from, got, want)
		}
		if err := r.Source.Close(); err != nil {
			t.Error(err)
		}
	}
	if acc, err := st.runner.Verify(t.Context(), snapshot[1]); err != nil || acc.Committed != 5 || acc.Pending != 5 {
		t.Errorf("Verify = %+v, %v; want 5 committed and pending", acc, err)
	}
}

// TestRenamedPrimaryKey: rows keep their key if a column of the primary key is renamed
// under a running pipeline. This holds for rows with the old name and with the new one.
func TestRenamedPrimaryKey(t *testing.T) {
	t.Parallel()
	st, snapshot := newStage(t)
	job, _, stop := st.job(t, snapshot[1])
	done := make(chan error, 1)
	go func() { done <- st.runner.Run(t.Context(), job) }()
	until := func(delivered int64) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); st.cursor(t, snapshot[1]).Delivered < delivered; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("cursor %+v after 20s, want %d delivered", st.cursor(t, snapshot[1]), delivered)
			}
		}
	}
	until(5)
	st.exec(t, `BEGIN; INSERT INTO public.orders VALUES (6); ALTER TABLE public.orders RENAME COLUMN id TO order_id;
		INSERT INTO public.orders VALUES (7); COMMIT`)
	until(7)
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run = %v", err)
	}
	var keys []string
	for _, m := range st.queue.Messages() {
		keys = append(keys, m.Key)
	}
	if got := strings.Join(keys, " "); got != "1 2 3 4 5 6 7" {
		t.Errorf("keys %q, want 1 to 7", got)
	}
}
