package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// bench is a database with a filled outbox, and a relay to drain it.
type bench struct {
	url    string
	pool   *pgxpool.Pool
	rows   int
	run    int // makes names unique
	folder string
	loaded []message
}

// event is one of the rows, and eventPayload what capture makes of it: about 270 bytes.
const (
	event = `(SELECT row_to_json(e) FROM (SELECT n AS id, 'customer-' || n % 5000 AS customer, md5(n::text) AS sku, n % 17 AS quantity,
	round((n % 9973) * 1.17, 2) AS price, 'EUR' AS currency, 'confirmed' AS status, repeat('x', 90) AS note) e)`
	eventPayload = `('{"v":1,"inserted":[' || ` + event + ` || '],"updated":[],"deleted":[]}')::json`
)

func newBench(ctx context.Context, rows int) (*bench, error) {
	server := os.Getenv("RELAY_TEST_DATABASE_URL")
	if server == "" {
		return nil, fmt.Errorf("RELAY_TEST_DATABASE_URL is not set; make bench sets it")
	}
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("bench_%d", os.Getpid())
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, "CREATE DATABASE "+name)
	_ = conn.Close(ctx)
	if err != nil {
		return nil, err
	}
	u.Path = "/" + name
	b := &bench{url: u.String(), rows: rows}
	if b.folder, err = os.MkdirTemp("", "relay-bench-"); err != nil {
		return nil, err
	}
	if err := migrate(ctx, b.url); err != nil {
		return nil, err
	}
	if b.pool, err = pgxpool.New(ctx, b.url); err != nil {
		return nil, err
	}
	fmt.Fprintf(os.Stderr, "bench: filling an outbox with %d rows\n", rows)
	for _, sql := range []string{
		`CREATE TABLE public.quiet (id bigint PRIMARY KEY)`,
		`SELECT pgtrickle.enable_outbox('public.quiet')`,
	} {
		if _, err := b.pool.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("%s: %w", sql, err)
		}
	}
	return b, b.fill(ctx, "bench", rows)
}

// database is its name.
func (b *bench) database() string { return b.pool.Config().ConnConfig.Database }

func (b *bench) close() {
	b.pool.Close()
	_ = os.RemoveAll(b.folder)
}

// name returns a name that no other run has.
func (b *bench) name() string {
	b.run++
	return "bench" + strconv.Itoa(os.Getpid()) + "x" + strconv.Itoa(b.run)
}

// enable sets a pipeline up and starts it.
func (b *bench) enable(ctx context.Context, function, name string, config map[string]any) error {
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if _, err := b.pool.Exec(ctx, `SELECT pgtrickle.`+function+`($1, config => $2::jsonb)`, name, string(raw)); err != nil {
		return err
	}
	_, err = b.pool.Exec(ctx, `SELECT pgtrickle.enable_relay($1)`, name)
	return err
}

// sample is what one run cost.
type sample struct {
	rate    float64 // messages a second
	cpu     float64 // seconds of the relay process per million messages
	allocs  float64 // of the relay process, per message
	wal     float64 // bytes per message
	rss     float64 // MiB, at its highest
	elapsed time.Duration
}

// relayRun drains n messages of a pipeline with a relay of its own.
func (b *bench) relayRun(ctx context.Context, function string, config map[string]any, n int) (s sample, err error) {
	name := b.name()
	p, err := startRelay(ctx, b.url, name)
	if err != nil {
		return s, err
	}
	defer p.stop()
	scrape, err := p.perScrape(ctx)
	if err != nil {
		return s, err
	}
	before, err := p.cost(ctx)
	if err != nil {
		return s, err
	}
	walBefore, err := b.walBytes(ctx)
	if err != nil {
		return s, err
	}
	if err := b.enable(ctx, function, name, config); err != nil {
		return s, err
	}
	first, began, err := p.waitPublished(ctx, name, 1)
	if err != nil {
		return s, err
	}
	_, ended, err := p.waitPublished(ctx, name, float64(n))
	if err != nil {
		return s, err
	}
	after, err := p.cost(ctx)
	if err != nil {
		return s, err
	}
	walAfter, err := b.walBytes(ctx)
	if err != nil {
		return s, err
	}
	if _, err := b.pool.Exec(ctx, `SELECT pgtrickle.delete_relay($1)`, name); err != nil {
		return s, err
	}
	s.elapsed = ended.Sub(began)
	s.rate = (float64(n) - first) / s.elapsed.Seconds()
	s.cpu = (after.cpu - before.cpu) / float64(n) * 1e6
	s.allocs = max(0, after.allocs-before.allocs-scrape*float64(after.scrapes-before.scrapes)) / float64(n)
	s.wal = (walAfter - walBefore) / float64(n)
	s.rss = after.rss
	return s, nil
}

// walBytes returns how much WAL the server has written so far.
func (b *bench) walBytes(ctx context.Context) (n float64, err error) {
	err = b.pool.QueryRow(ctx, `SELECT pg_current_wal_lsn() - '0/0'::pg_lsn`).Scan(&n)
	return n, err
}
