package pgtest_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestDatabasesAreSeparateAndDropped(t *testing.T) {
	server := pgtest.Pool(t)
	var name string
	t.Run("inner", func(t *testing.T) {
		ctx := context.Background()
		conn, err := pgx.Connect(ctx, pgtest.URL(t)) // left open on purpose: dropping must not wait for it
		if err != nil {
			t.Fatalf("connect: %v", err)
		}
		if err := conn.QueryRow(ctx, "SELECT current_database()").Scan(&name); err != nil {
			t.Fatalf("query: %v", err)
		}
	})
	var left int
	if err := server.QueryRow(context.Background(), "SELECT count(*) FROM pg_database WHERE datname = $1", name).Scan(&left); err != nil {
		t.Fatalf("query: %v", err)
	}
	if left != 0 {
		t.Errorf("database %s is still there", name)
	}
}
