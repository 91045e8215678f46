package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestIdentities: two databases with the same table, each with two pipelines of the same
// names, write to one far end. Each event arrives once by each pipeline, and once in an
// inbox, which goes by the event's id. So do the events of an outbox that was created
// again, and what a relay delivers again after kill -9.
func TestIdentities(t *testing.T) {
	for _, k := range kinds() {
		if k.Server == "" {
			continue // a file belongs to one pipeline; an endpoint of HTTP drops nothing
		}
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			testIdentities(t, k)
		})
	}
}

func testIdentities(t *testing.T, k ends.Kind) {
	p := binary(t, k.Binary)
	one, end := newCase(t, k, "id1", p)
	other := rig.NewDatabase(t, fleet.Server("pg18").URL, "e2e_id2_"+strings.ReplaceAll(k.Name, "-", "_"), p.Migrate)
	databases := []*rig.Database{one, other}
	relays := make([]*rig.Relay, len(databases))
	for i, db := range databases {
		relays[i] = p.Start(t, db.URL, rig.Options{})
		db.Forward(t, "out", k.Name, end.Sink(), nil)
		db.Forward(t, "again", k.Name, end.Sink(), nil)
	}

	const rows = 2000
	insert := func(db *rig.Database, from, to int) {
		db.Exec(t, `INSERT INTO events SELECT i, 'k' || i % 50, i, $3 FROM generate_series($1::int, $2::int) i`, from, to, db.Name)
	}
	for _, db := range databases {
		insert(db, 1, rows/2)
	}
	for i, db := range databases { // while they deliver
		relays[i].Kill()
		relays[i] = p.Start(t, db.URL, rig.Options{})
		insert(db, rows/2+1, rows)
	}
	forwarded(t, databases)
	rig.Until(t, patience, "the outbox is created again", func(ctx context.Context) (bool, error) { // a reader may be in the way
		_, err := one.Pool.Exec(ctx, `SELECT pgtrickle.disable_outbox('public.events'); SELECT pgtrickle.enable_outbox('public.events')`)
		return err == nil, err
	})
	insert(one, rows+1, 2*rows+1) // one more than before, so that forwarded notices
	forwarded(t, databases)

	arrived, err := end.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	times := make(map[string]int)
	for _, r := range arrived {
		e, err := rig.Decode(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		times[fmt.Sprint(e.Note, e.ID)]++
	}
	copies := 2 // one by each pipeline
	if k.Name == "pg-inbox" {
		copies = 1
	}
	for db, last := range map[*rig.Database]int{one: 2*rows + 1, other: rows} {
		lost, twice := 0, 0
		for i := 1; i <= last; i++ {
			n := times[fmt.Sprint(db.Name, i)]
			lost, twice = lost+max(copies-n, 0), twice+max(n-copies, 0)
		}
		t.Logf("%s: %d rows, %d deliveries each, lost %d, dup %d", db.Name, last, copies, lost, twice)
		if lost != 0 || (k.Exact && twice != 0) {
			t.Errorf("of %s %d deliveries are lost, %d too many", db.Name, lost, twice)
		}
	}
}

// forwarded waits until both pipelines of each database have delivered everything.
func forwarded(t *testing.T, databases []*rig.Database) {
	t.Helper()
	for _, db := range databases {
		for _, name := range []string{"out", "again"} {
			rig.Until(t, patience, name+" of "+db.Name, func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, name) })
		}
	}
}
