package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
)

// latencyLine is the time from before the INSERT of a row to its arrival.
type latencyLine struct {
	Name   string  `json:"name"`
	P50ms  float64 `json:"p50_ms"`
	P99ms  float64 `json:"p99_ms"`
	P999ms float64 `json:"p999_ms"`
}

// warmUp is the number of rows that are written first and not counted. An idle
// pipeline takes up to its poll interval to see the first of them, and every new
// connection has statements to prepare.
const warmUp = 1000

// latency inserts 1,000 rows a second, one commit each. It measures the raw INSERT
// and NOTIFY round trip, and a copy into NATS. Then it measures the relay into NATS, with
// and without a notification by the writer.
func (b *bench) latency(ctx context.Context, seconds int) ([]latencyLine, error) {
	raw, err := b.rawLatency(ctx, seconds)
	if err != nil {
		return nil, err
	}
	copied, err := b.copyLatency(ctx, seconds)
	if err != nil {
		return nil, err
	}
	lines := []latencyLine{quantiles("INSERT + NOTIFY to a listener", raw), quantiles("copy to NATS, writer notifies", copied)}
	for _, notify := range []bool{true, false} {
		took, err := b.relayLatency(ctx, seconds, notify)
		if err != nil {
			return nil, err
		}
		name := "relay to NATS, writer notifies"
		if !notify {
			name = "relay to NATS, polling alone"
		}
		lines = append(lines, quantiles(name, took))
	}
	for _, l := range lines {
		fmt.Fprintf(os.Stderr, "bench: %-32s p50 %.2f ms  p99 %.2f ms  p99.9 %.2f ms\n", l.Name, l.P50ms, l.P99ms, l.P999ms)
	}
	return lines, nil
}

func quantiles(name string, took []time.Duration) latencyLine {
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()) / 1000
	}
	return latencyLine{Name: name, P50ms: at(0.5), P99ms: at(0.99), P999ms: at(0.999)}
}

// pace calls do every millisecond, on time even after a slow call.
func pace(ctx context.Context, seconds int, do func(n int) error) error {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	began := time.Now()
	for n := range warmUp + seconds*1000 {
		for time.Since(began) < time.Duration(n)*time.Millisecond {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
		}
		if err := do(n); err != nil {
			return err
		}
	}
	return nil
}

// stopwatch holds when each row was begun and how long it took.
type stopwatch struct {
	mu    sync.Mutex
	began []time.Time
	took  []time.Duration
	skip  int // rows that are not counted
}

// reset leaves out the rows so far.
func (w *stopwatch) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.took, w.skip = nil, len(w.began)
}

func (w *stopwatch) start() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = append(w.began, time.Now())
	return len(w.began) - 1
}

func (w *stopwatch) arrived(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.skip <= n && n < len(w.began) {
		w.took = append(w.took, time.Since(w.began[n]))
	}
}

func (w *stopwatch) wait(ctx context.Context, n int) ([]time.Duration, error) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		w.mu.Lock()
		took := slices.Clone(w.took)
		w.mu.Unlock()
		switch {
		case len(took) >= n:
			return took, nil
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%d of %d rows arrived", len(took), n)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (b *bench) rawLatency(ctx context.Context, seconds int) ([]time.Duration, error) {
	listener, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return nil, err
	}
	defer listener.Close(context.WithoutCancel(ctx))
	if _, err := listener.Exec(ctx, `LISTEN bench_raw`); err != nil {
		return nil, err
	}
	w := stopwatch{skip: warmUp}
	go func() {
		for {
			n, err := listener.WaitForNotification(ctx)
			if err != nil {
				return
			}
			if i, err := strconv.Atoi(n.Payload); err == nil {
				w.arrived(i)
			}
		}
	}()
	for _, sql := range []string{`CREATE TABLE public.raw (id bigint PRIMARY KEY)`, `SELECT pgtrickle.enable_outbox('public.raw')`} {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	return b.write(ctx, seconds, insertInto("outbox_raw")+`pg_notify('bench_raw', $1::text)`, &w)
}

// write runs an INSERT a thousand times a second and returns how long each row took to
// arrive at w.
func (b *bench) write(ctx context.Context, seconds int, insert string, w *stopwatch) ([]time.Duration, error) {
	writer, err := b.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer writer.Release()
	err = pace(ctx, seconds, func(int) error {
		_, err := writer.Exec(ctx, insert, w.start())
		return err
	})
	if err != nil {
		return nil, err
	}
	return w.wait(ctx, seconds*1000)
}

// insertInto writes event $1 into an outbox; what is to be selected follows.
func insertInto(outbox string) string {
	return `WITH i AS (INSERT INTO pgtrickle.` + outbox + ` (inserted_count, payload)
		SELECT 1, ` + eventPayload + ` FROM (VALUES ($1::bigint)) v(n)) SELECT `
}

// insertQuiet is insertInto for the outbox of [bench.startQuiet], with a notification or
// without one.
func insertQuiet(notify bool) string {
	if notify {
		return insertInto("outbox_quiet") + `pg_notify('pgtrickle_outbox_new', 'outbox_quiet')`
	}
	return insertInto("outbox_quiet") + `1`
}

// copyLatency measures what no relay can leave out: a notification, one read that is
// prepared, and one publish.
func (b *bench) copyLatency(ctx context.Context, seconds int) ([]time.Duration, error) {
	nc, js, stream, err := natsStream(b)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer func() { _ = js.DeleteStream(stream) }()
	w := stopwatch{skip: warmUp}
	if err := w.watch(nc, stream); err != nil {
		return nil, err
	}
	copying, stop := context.WithCancel(ctx)
	defer stop()
	listening, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- b.copyNotified(copying, js, stream, listening) }()
	select {
	case <-listening:
	case err := <-ended:
		return nil, fmt.Errorf("copy: %w", err)
	}

	took, err := b.write(ctx, seconds, insertQuiet(true), &w)
	stop()
	if cause := <-ended; err != nil {
		return nil, fmt.Errorf("%w; the copy ended: %w", err, cause)
	}
	return took, nil
}

// copyNotified reads the rows of the quiet outbox after each notification and publishes
// them, until ctx ends. It closes listening once no notification can be missed.
func (b *bench) copyNotified(ctx context.Context, js nats.JetStreamContext, stream string, listening chan<- struct{}) error {
	listener, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer listener.Close(context.WithoutCancel(ctx))
	reader, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer reader.Close(context.WithoutCancel(ctx))
	if _, err := listener.Exec(ctx, `LISTEN pgtrickle_outbox_new`); err != nil {
		return err
	}
	var last int64
	if err := reader.QueryRow(ctx, `SELECT coalesce(max(id), 0) FROM pgtrickle.outbox_quiet`).Scan(&last); err != nil {
		return err
	}
	close(listening)
	const read = `SELECT id, payload, payload #>> '{inserted,0,id}' FROM pgtrickle.outbox_quiet WHERE id > $1 ORDER BY id LIMIT 1000`
	for {
		if _, err := listener.WaitForNotification(ctx); err != nil {
			return err
		}
		rows, _ := reader.Query(ctx, read, last)
		var payload []byte
		var n string
		_, err := pgx.ForEachRow(rows, []any{&last, &payload, &n}, func() error {
			msg := &nats.Msg{Subject: stream + ".insert", Data: slices.Clone(payload), Header: nats.Header{"n": {n}}}
			_, err := js.PublishMsgAsync(msg)
			return err
		})
		if err != nil {
			return err
		}
	}
}

// watch records the arrival of each message of a stream by its header n.
func (w *stopwatch) watch(nc *nats.Conn, stream string) error {
	_, err := nc.Subscribe(stream+".>", func(m *nats.Msg) {
		if i, err := strconv.Atoi(m.Header.Get("n")); err == nil {
			w.arrived(i)
		}
	})
	return err
}

// startQuiet starts a relay with one pipeline, of that name, from an empty outbox into a
// stream. It reaches the servers at these URLs. When startQuiet returns, the pipeline is
// owned and idle.
func (b *bench) startQuiet(ctx context.Context, path, name, database, broker, stream string) (*process, error) {
	p, err := startBinary(ctx, path, database, name)
	if err != nil {
		return nil, err
	}
	if _, err = b.pool.Exec(ctx, `TRUNCATE pgtrickle.outbox_quiet`); err == nil {
		err = b.enable(ctx, "set_relay_outbox", name, map[string]any{
			"stream_table": "quiet", "sink_type": "nats", "nats_url": broker, "nats_stream": stream, "nats_subject": stream + ".{op}",
			"headers": map[string]string{"n": "{row.id}"},
		})
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	time.Sleep(2 * time.Second)
	return p, nil
}

func (b *bench) relayLatency(ctx context.Context, seconds int, notify bool) ([]time.Duration, error) {
	nc, js, stream, err := natsStream(b)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	defer func() { _ = js.DeleteStream(stream) }()
	w := stopwatch{skip: warmUp}
	if err := w.watch(nc, stream); err != nil {
		return nil, err
	}
	path, err := binary()
	if err != nil {
		return nil, err
	}
	name := b.name()
	p, err := b.startQuiet(ctx, path, name, b.url, nc.ConnectedUrl(), stream)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	took, err := b.write(ctx, seconds, insertQuiet(notify), &w)
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, p.log.String())
	}
	_, err = b.pool.Exec(ctx, `SELECT pgtrickle.delete_relay($1)`, name)
	return took, err
}
