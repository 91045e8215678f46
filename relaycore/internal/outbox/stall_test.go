package outbox_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestNoStall measures how long a fresh row waits while a stranger, or another
// writer of the same outbox, keeps a transaction open. The three are measured in
// turns, and only their ratio counts.
func TestNoStall(t *testing.T) {
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		elsewhere := pgtest.Pool(t)
		src := open(t, pool, relay.Checkpoint{})
		waits := make(map[string][]time.Duration)
		row := func(name string) {
			begun := time.Now()
			exec(t, pool, insertOne, 1, 1)
			checkpoint(t, src, receive(t, src, 1))
			waits[name] = append(waits[name], time.Since(begun))
		}
		for range 12 {
			for range 5 {
				row("quiet")
			}
			stranger := begin(t, elsewhere)
			in(t, stranger, "SELECT pg_current_xact_id()")
			for range 5 {
				row("stranger")
			}
			_ = stranger.Rollback(context.Background())
			writer := begin(t, pool)
			in(t, writer, insertOne, 1, 1)
			for range 5 {
				row("writer")
			}
			_ = writer.Rollback(context.Background())
		}
		median := func(name string) time.Duration {
			slices.Sort(waits[name])
			return waits[name][len(waits[name])/2]
		}
		quiet := median("quiet")
		for _, name := range []string{"stranger", "writer"} {
			ratio := float64(median(name)) / float64(quiet)
			t.Logf("%s: a row waits %s with an open %s, %s without: %.2f", src.Strategy(), median(name), name, quiet, ratio)
			if ratio > 3 {
				t.Errorf("with an open %s a row waits %.1f times as long", name, ratio)
			}
		}
	})
}
