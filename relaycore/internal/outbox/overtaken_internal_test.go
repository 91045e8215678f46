package outbox

import (
	"context"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// A pipeline whose far end was away finds out, without a restart, that rows went
// before it had read them. What it had read before it still has.
func TestOvertakenWhileHeldUp(t *testing.T) {
	t.Parallel()
	const insert = `INSERT INTO events (payload) SELECT '{}' FROM generate_series(1, 5)`
	for name, xid := range map[string]string{
		"fence":  ``,
		"window": `ALTER TABLE events ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id(); CREATE INDEX ON events (xid)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			pool := pgtest.Pool(t)
			exec := func(sql string) {
				t.Helper()
				if _, err := pool.Exec(ctx, sql); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
			}
			exec(`CREATE TABLE events (id bigserial PRIMARY KEY, payload jsonb);` + xid)
			src, err := Open(ctx, pool, Config{Outbox: "events", Group: "g", Pipeline: "p"})
			if err != nil || src.Strategy() != name {
				t.Fatalf("Open: strategy %s, %v", src.Strategy(), err)
			}
			receive := func() []relay.Message {
				t.Helper()
				msgs, err := src.Receive(ctx, 100)
				if err != nil {
					t.Fatal(err)
				}
				return msgs
			}
			exec(insert)
			inFlight := receive()
			exec(insert)
			exec(`DELETE FROM events WHERE id <= 7`)
			src.pace.HeldUp = true
			inFlight = append(inFlight, receive()...)
			exec(insert)
			exec(`DELETE FROM events WHERE id <= 10`) // what was read is not missed
			src.pace.HeldUp = true
			inFlight = append(inFlight, receive()...)
			if n := src.Overtaken(); len(inFlight) != 13 || n != 0 {
				t.Fatalf("%d rows came and %d ids are gone before anything is settled, want 13 and 0", len(inFlight), n)
			}
			for c, _ := src.Checkpoint(inFlight); c.LastID != 15; c, _ = src.Checkpoint(nil) {
				waiting, stop := context.WithTimeout(ctx, 100*time.Millisecond)
				_, err := src.Receive(waiting, 1)
				stop()
				if ctx.Err() != nil || waiting.Err() == nil {
					t.Fatalf("settled up to %d: %v", c.LastID, err)
				}
			}
			if n := src.Overtaken(); n != 2 {
				t.Errorf("%d ids are gone, want 6 and 7", n)
			}
		})
	}
}
