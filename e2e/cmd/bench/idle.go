package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// idleLine is what pipelines cost that have nothing to do.
type idleLine struct {
	Pipelines int     `json:"pipelines"`
	Relay     float64 `json:"relay_cores"`    // of one core
	Postgres  float64 `json:"postgres_cores"` // of one core
}

// idle measures so many pipelines on an empty outbox. PostgreSQL's share is
// that of its own accounting: time spent executing statements in this database.
func (b *bench) idle(ctx context.Context, pipelines int, short bool) (*idleLine, error) {
	group := b.name()
	p, err := startRelay(ctx, b.url, group)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	for _, sql := range []string{`CREATE TABLE public.idle (id bigint PRIMARY KEY)`, `SELECT pgtrickle.enable_outbox('public.idle')`} {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return nil, err
		}
	}
	for i := range pipelines {
		err := b.enable(ctx, "set_relay_outbox", fmt.Sprintf("idle%d", i), map[string]any{
			"stream_table": "idle", "sink_type": "stdout", "stdout_path": filepath.Join(b.folder, fmt.Sprintf("idle%d.jsonl", i)),
		})
		if err != nil {
			return nil, err
		}
	}
	deadline := time.Now().Add(time.Minute)
	for {
		owned, err := p.metric(ctx, "pgtrickle_relay_pipelines_owned", "")
		if err != nil {
			return nil, err
		}
		if int(owned) >= pipelines {
			break
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%v of %d pipelines are owned\n%s", owned, pipelines, p.log.String())
		}
		time.Sleep(100 * time.Millisecond)
	}
	span := 30 * time.Second
	if short {
		span = 10 * time.Second
	}
	time.Sleep(12 * time.Second) // a session that went idle reports what it did up to ten seconds later
	var busy, busyAfter float64
	const active = `SELECT active_time FROM pg_stat_database WHERE datname = current_database()`
	if err := b.pool.QueryRow(ctx, active).Scan(&busy); err != nil {
		return nil, err
	}
	before, err := p.cpu()
	if err != nil {
		return nil, err
	}
	time.Sleep(span)
	after, err := p.cpu()
	if err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second) // statistics are reported late
	if err := b.pool.QueryRow(ctx, active).Scan(&busyAfter); err != nil {
		return nil, err
	}
	line := &idleLine{
		Pipelines: pipelines,
		Relay:     (after - before) / span.Seconds(),
		Postgres:  (busyAfter - busy) / 1000 / span.Seconds(),
	}
	fmt.Fprintf(os.Stderr, "bench: %d idle pipelines: relay %.2f%% of a core, PostgreSQL %.2f%%\n",
		pipelines, 100*line.Relay, 100*line.Postgres)
	_, err = b.pool.Exec(ctx, `SELECT pgtrickle.delete_relay(name) FROM pgtrickle.list_relay_configs()`)
	return line, err
}
