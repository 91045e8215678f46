package pginboxrelay

import (
	"context"
	"encoding/json"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

const createInbox = `
CREATE SCHEMA pgtrickle;
CREATE TABLE pgtrickle.orders_inbox (
    event_id text NOT NULL PRIMARY KEY, event_type text, source text, aggregate_id text, payload jsonb,
    received_at timestamptz NOT NULL DEFAULT now(), processed_at timestamptz, error text,
    retry_count int NOT NULL DEFAULT 0, trace_id text)`

func TestSink(t *testing.T) {
	relaytest.TestSink(t, relaytest.SinkHarness{
		Copies: Backend().Copies,
		Dedup:  true, JSONOnly: true, UTF8Only: true, NoHeaders: true,
		Refuse: func(_ testing.TB, m *relay.Message) { m.Row = []byte(`{"nul":"\u0000"}`) },
		New: func(t testing.TB) relaytest.SinkCase {
			url := pgtest.URL(t)
			pool := pgtest.Open(t, url)
			mustExec(t, pool, createInbox)
			return relaytest.SinkCase{
				Open: func(t testing.TB) relay.Sink { return open(t, map[string]any{"url": url, "table": "orders_inbox"}) },
				Read: func(t testing.TB, n int) []relay.Message { return read(t, pool, n) },
			}
		},
	})
}

func open(t testing.TB, config map[string]any) relay.Sink {
	t.Helper()
	s, err := tryOpen(t, config)
	if err != nil {
		t.Fatalf("Sink.New = %v", err)
	}
	return s
}

func tryOpen(t testing.TB, config map[string]any) (relay.Sink, error) {
	t.Helper()
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	env := relay.Env{Pipeline: "orders-out", Identity: relaytest.Identity, Logger: slog.New(slog.DiscardHandler)}
	return Backend().Sink.New(context.Background(), env, raw)
}

func mustExec(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql); err != nil {
		t.Fatalf("exec %s: %v", sql, err)
	}
}

func read(t testing.TB, pool *pgxpool.Pool, n int) []relay.Message {
	t.Helper()
	deadline := time.Now().Add(relaytest.Patience())
	for {
		rows, _ := pool.Query(context.Background(), "SELECT event_id, payload::text FROM pgtrickle.orders_inbox ORDER BY received_at")
		got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m relay.Message, err error) {
			err = row.Scan(&m.ID, &m.Body)
			return m, err
		})
		if err != nil {
			t.Fatalf("read inbox: %v", err)
		}
		if len(got) >= n {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("the inbox holds %d rows, want %d", len(got), n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Every column as plain SQL sees it.
func TestInterop(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Open(t, url)
	mustExec(t, pool, `CREATE SCHEMA app; CREATE TABLE app.hooks (id text PRIMARY KEY, kind text, origin text, agg text, body jsonb, seen timestamptz, trace text)`)
	s := open(t, map[string]any{
		"url": url, "schema": "app", "table": "hooks", "id_column": "id", "event_type_column": "kind", "source_column": "origin",
		"aggregate_id_column": "agg", "payload_column": "body", "received_at_column": "seen", "trace_id_column": "trace",
	})
	defer s.Close()
	m := relaytest.Message(1, "k")
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	if err := s.Publish(context.Background(), []relay.Message{m}); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	var got string
	err := pool.QueryRow(context.Background(), "SELECT concat_ws('|', id, kind, origin, agg, body, seen IS NOT NULL, trace) FROM app.hooks").Scan(&got)
	want := `outbox_orders:1:0|orders.insert|orders-out|k|{"n": 1, "key": "k"}|t|0af7651916cd43dd8448eb211c80319c`
	if err != nil || got != want {
		t.Errorf("row = %s, %v; want %s", got, err, want)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	for name, tc := range map[string]struct {
		config map[string]any
		fatal  bool
		want   string
	}{
		"no table":    {map[string]any{"url": url, "table": "orders_inbox"}, true, `inbox table "pgtrickle"."orders_inbox" does not exist`},
		"no database": {map[string]any{"url": swapDatabase(url, "relay_test_not_there"), "table": "x"}, true, "3D000"},
		"no server":   {map[string]any{"url": "postgres://127.0.0.1:1/x?sslmode=disable", "table": "x"}, false, "connect"},
		"no role":     {map[string]any{"url": "user=relay_test_nobody " + keywords(t, url), "table": "x"}, true, "28"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := tryOpen(t, tc.config)
			if err == nil || relay.IsFatal(err) != tc.fatal || relay.IsPermanent(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Sink.New = %v (fatal %t), want fatal %t and %q", err, relay.IsFatal(err), tc.fatal, tc.want)
			}
		})
	}
}

func swapDatabase(url, name string) string {
	base, query, _ := strings.Cut(url, "?")
	return base[:strings.LastIndexByte(base, '/')+1] + name + "?" + query
}

func keywords(t testing.TB, url string) string {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return "host=" + c.Host + " port=" + strconv.Itoa(int(c.Port)) + " dbname=" + c.Database
}

// A locked table holds a batch up for confirm_timeout at most, and the error is transient.
func TestTimeout(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Open(t, url)
	mustExec(t, pool, createInbox)
	s := open(t, map[string]any{"url": url, "table": "orders_inbox", "confirm_timeout": "200ms"})
	defer s.Close()
	tx, err := pool.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(context.Background(), "LOCK TABLE pgtrickle.orders_inbox"); err != nil {
		t.Fatal(err)
	}
	batch := []relay.Message{relaytest.Message(1, "k")}
	if err := s.Publish(context.Background(), batch); err == nil || relay.IsFatal(err) || relay.IsPermanent(err) || !strings.Contains(err.Error(), "no confirmation within 200ms") {
		t.Errorf("Publish into a locked table = %v, want a transient error after 200ms", err)
	}
	if err := tx.Rollback(context.Background()); err != nil {
		t.Fatal(err)
	}
	for try := 1; ; try++ { // a busy machine may need more than 200ms
		err := s.Publish(context.Background(), batch)
		if err == nil {
			break
		}
		if try == 20 {
			t.Fatalf("Publish afterwards = %v", err)
		}
	}
}

// max_connections bounds the pool, and its connections have the pipeline's name.
func TestPoolIsBounded(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Open(t, url)
	mustExec(t, pool, createInbox)
	s := open(t, map[string]any{"url": url, "table": "orders_inbox", "max_connections": 1})
	defer s.Close()
	for i := range 5 {
		if err := s.Publish(context.Background(), []relay.Message{relaytest.Message(i, "k")}); err != nil {
			t.Fatalf("Publish = %v", err)
		}
		if err := s.(relay.Pinger).Ping(context.Background()); err != nil {
			t.Fatalf("Ping = %v", err)
		}
	}
	var n int
	err := pool.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'pgtrickle-relay orders-out'").Scan(&n)
	if err != nil || n != 1 {
		t.Errorf("%d connections, %v; want 1", n, err)
	}
}
