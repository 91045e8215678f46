package migrate_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// migrated returns a pool on a fresh database with the relay's catalog.
func migrated(t testing.TB) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatalf("Up: %v", err)
	}
	return pool
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestDocumentedExample(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	exec(t, pool, `SELECT pgtrickle.set_relay_outbox('orders-to-nats', config => '{
      "stream_table": "orders_stream", "sink_type": "nats", "nats_url": "nats://localhost:4222",
      "nats_stream": "pgtrickle", "subject_template": "pgtrickle.{stream_table}.{op}" }'::jsonb)`)
	exec(t, pool, `SELECT pgtrickle.enable_relay('orders-to-nats')`)
	exec(t, pool, `SELECT pgtrickle.set_relay_inbox('nats-to-orders-inbox', config => '{
      "source_type": "nats", "nats_url": "nats://localhost:4222", "nats_stream": "commands",
      "nats_consumer": "relay-consumer", "inbox_table": "orders_inbox" }'::jsonb)`)
	exec(t, pool, `SELECT pgtrickle.enable_relay('nats-to-orders-inbox')`)
	exec(t, pool, `SELECT * FROM pgtrickle.list_relay_configs()`)
	exec(t, pool, `SELECT pgtrickle.disable_relay('orders-to-nats')`)
	exec(t, pool, `SELECT pgtrickle.delete_relay('orders-to-nats')`)
}
