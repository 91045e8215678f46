package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// liveLine is what rows cost that come at a steady rate, single-row transactions.
type liveLine struct {
	Relay    string  `json:"relay"`           // the binary
	Notify   bool    `json:"notify"`          // the writers notify
	Asked    int     `json:"asked"`           // rows a second
	Rate     float64 `json:"rate"`            // rows a second that were written
	CPU      float64 `json:"cpu_us"`          // of the relay, microseconds an event
	Postgres float64 `json:"postgres_us"`     // of the relay's connections, microseconds an event
	Cores    float64 `json:"postgres_points"` // the same in hundredths of a core
	P50ms    float64 `json:"p50_ms"`
	P99ms    float64 `json:"p99_ms"`
	P999ms   float64 `json:"p999_ms"`
}

// liveWriters are the writers of more than 1,000 rows a second.
const liveWriters = 8

// live measures relays in turn at each of the rates, into NATS.
func (b *bench) live(ctx context.Context, relays []string, o options) (lines []liveLine, _ error) {
	for _, notify := range []bool{false, true} {
		for text := range strings.SplitSeq(o.rates, ",") {
			rate, err := strconv.Atoi(text)
			if err != nil || rate < 1 {
				return nil, fmt.Errorf("rate %q: want rows a second", text)
			}
			for range o.pairs {
				for _, relay := range relays {
					line, err := b.liveRun(ctx, relay, rate, o.live, notify)
					if err != nil {
						return nil, fmt.Errorf("%s at %d rows a second: %w", relay, rate, err)
					}
					fmt.Fprintln(os.Stderr, "bench:", line)
					lines = append(lines, line)
				}
			}
		}
	}
	return lines, nil
}

func (l liveLine) String() string {
	return fmt.Sprintf("%s notify=%v %d/s (%.0f): relay %.1f us, postgres %.1f us (%.1f points), p50 %.2f p99 %.2f p99.9 %.2f ms",
		filepath.Base(l.Relay), l.Notify, l.Asked, l.Rate, l.CPU, l.Postgres, l.Cores, l.P50ms, l.P99ms, l.P999ms)
}

// liveTable has the medians of the runs of each kind.
func liveTable(lines []liveLine) string {
	type kind struct {
		relay  string
		notify bool
		asked  int
	}
	var kinds []kind
	runs := make(map[kind][]liveLine)
	for _, l := range lines {
		k := kind{l.Relay, l.Notify, l.Asked}
		if runs[k] == nil {
			kinds = append(kinds, k)
		}
		runs[k] = append(runs[k], l)
	}
	var b strings.Builder
	b.WriteString("\nRows at a steady rate, single-row transactions, into NATS. CPU of the relay, and of PostgreSQL's\n" +
		"backends for it:\n\n| relay | writers notify | rows/s asked | rows/s | relay µs an event | PostgreSQL µs an event | points of a core " +
		"| p50 ms | p99 ms | p99.9 ms |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, k := range kinds {
		middle := func(field func(liveLine) float64) float64 { return medianOf(runs[k], field) }
		fmt.Fprintf(&b, "| %s | %v | %d | %.0f | %.1f | %.1f | %.1f | %.2f | %.2f | %.2f |\n", filepath.Base(k.relay), k.notify, k.asked,
			middle(func(l liveLine) float64 { return l.Rate }), middle(func(l liveLine) float64 { return l.CPU }),
			middle(func(l liveLine) float64 { return l.Postgres }), middle(func(l liveLine) float64 { return l.Cores }),
			middle(func(l liveLine) float64 { return l.P50ms }), middle(func(l liveLine) float64 { return l.P99ms }),
			middle(func(l liveLine) float64 { return l.P999ms }))
	}
	return b.String()
}

func (b *bench) liveRun(ctx context.Context, relay string, rate, seconds int, notify bool) (l liveLine, err error) {
	l = liveLine{Relay: relay, Asked: rate, Notify: notify}
	nc, js, stream, err := natsStream(b)
	if err != nil {
		return l, err
	}
	defer nc.Close()
	defer func() { _ = js.DeleteStream(stream) }()
	var w stopwatch
	if err := w.watch(nc, stream); err != nil {
		return l, err
	}
	name := b.name()
	p, err := b.startQuiet(ctx, relay, name, b.url, nc.ConnectedUrl(), stream)
	if err != nil {
		return l, err
	}
	defer p.stop()

	sql := insertQuiet(notify)
	if _, err := b.writeAt(ctx, sql, &w, rate, time.Second); err != nil { // connections and statements
		return l, err
	}
	cpu, backends, err := b.spent(ctx, p)
	if err != nil {
		return l, err
	}
	w.reset()
	began := time.Now()
	n, err := b.writeAt(ctx, sql, &w, rate, time.Duration(seconds)*time.Second)
	if err != nil {
		return l, err
	}
	took, err := w.wait(ctx, n)
	if err != nil {
		return l, fmt.Errorf("%w\n%s", err, p.log.String())
	}
	span := time.Since(began).Seconds()
	cpuAfter, backendsAfter, err := b.spent(ctx, p)
	if err != nil {
		return l, err
	}
	l.Rate = float64(n) / span
	l.CPU = (cpuAfter - cpu) / float64(n) * 1e6
	l.Postgres = (backendsAfter - backends) / float64(n) * 1e6
	l.Cores = (backendsAfter - backends) / span * 100
	q := quantiles("", took)
	l.P50ms, l.P99ms, l.P999ms = q.P50ms, q.P99ms, q.P999ms
	_, err = b.pool.Exec(ctx, `SELECT pgtrickle.delete_relay($1)`, name)
	return l, err
}

// writeAt writes rows at a rate for so long, and returns how many.
func (b *bench) writeAt(ctx context.Context, sql string, w *stopwatch, rate int, span time.Duration) (n int, err error) {
	writers := 1
	if rate > 1000 {
		writers = liveWriters
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	each := time.Duration(writers) * time.Second / time.Duration(rate)
	began := time.Now()
	for k := range writers {
		wg.Go(func() {
			written, writeErr := b.writer(ctx, sql, w, began.Add(each*time.Duration(k)/time.Duration(writers)), each, span)
			mu.Lock()
			defer mu.Unlock()
			n, err = n+written, errors.Join(err, writeErr)
		})
	}
	wg.Wait()
	return n, err
}

// writer writes one row in each interval from began on, later if it is late.
func (b *bench) writer(ctx context.Context, sql string, w *stopwatch, began time.Time, each, span time.Duration) (n int, err error) {
	c, err := b.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer c.Release()
	if _, err := c.Exec(ctx, `SET synchronous_commit = off`); err != nil { // a slow disk must not set the rate
		return 0, err
	}
	for ; time.Since(began) < span; n++ {
		time.Sleep(time.Until(began.Add(time.Duration(n) * each)))
		if _, err := c.Exec(ctx, sql, w.start()); err != nil {
			return n, err
		}
	}
	return n, nil
}

// spent returns the seconds that a relay and the server's backends for it have computed.
func (b *bench) spent(ctx context.Context, p *process) (relay, backends float64, err error) {
	if relay, err = p.cpu(); err != nil {
		return 0, 0, err
	}
	rows, err := b.pool.Query(ctx, `SELECT pid::text FROM pg_stat_activity WHERE application_name LIKE 'pgtrickle-relay%'`)
	if err != nil {
		return 0, 0, err
	}
	var pid string
	var pids []string
	for rows.Next() {
		if err := rows.Scan(&pid); err != nil {
			return 0, 0, err
		}
		pids = append(pids, pid)
	}
	if rows.Err() != nil {
		return 0, 0, rows.Err()
	}
	found, err := hostPIDs(pids, b.database())
	if err != nil {
		return 0, 0, err
	}
	for _, pid := range found {
		seconds, err := cpuOf(pid)
		if err != nil {
			return 0, 0, err
		}
		backends += seconds
	}
	return relay, backends, nil
}

// hostPIDs returns this machine's names for the backends of a database that have the
// pids in their container.
func hostPIDs(pids []string, database string) (found []int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		title, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(title, []byte("postgres: ")) || !bytes.Contains(title, []byte(database)) {
			continue // another process, or it has ended
		}
		status, err := os.ReadFile(filepath.Join(filepath.Dir(file), "status"))
		if err != nil {
			continue
		}
		_, line, _ := strings.Cut(string(status), "NSpid:")
		line, _, _ = strings.Cut(line, "\n")
		names := strings.Fields(line)
		if len(names) == 0 || !slices.Contains(pids, names[len(names)-1]) {
			continue
		}
		pid, err := strconv.Atoi(names[0])
		if err != nil {
			return nil, err
		}
		found = append(found, pid)
	}
	if len(found) != len(pids) {
		return nil, fmt.Errorf("%d of %d backends of the relay are processes of this machine", len(found), len(pids))
	}
	return found, nil
}
