package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

const patience = 2 * time.Minute

// TestBackends takes every backend there, back, and both ways, while the relay
// is killed and the broker restarted.
func TestBackends(t *testing.T) {
	for _, k := range kinds() {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel() // within a backend one after the other: they restart its server
			t.Run("forward", func(t *testing.T) { testForward(t, k) })
			if k.Source != "" {
				t.Run("reverse", func(t *testing.T) { testReverse(t, k) })
			}
			t.Run("image", func(t *testing.T) { testRoundTrip(t, k) })
		})
	}
}

// testForward: the binary carries what is written to the far end, where its own
// plain client reads it.
func testForward(t *testing.T, k ends.Kind) {
	p := binary(t, k.Binary)
	db, end := newCase(t, k, "fwd", p)
	relay := p.Start(t, db.URL, rig.Options{})
	db.Forward(t, "out", k.Name, end.Sink(), nil)

	events := makeEvents(k)
	disturbed(t, events,
		func(chunk []rig.Event) error { return db.Insert(t.Context(), chunk) },
		func() { relay.Kill(); relay = p.Start(t, db.URL, rig.Options{}) },
		func(ctx context.Context) error { return restart(ctx, k, end) })

	rig.Until(t, patience, "everything confirmed", func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out") })
	arrived, err := end.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settle(t, k, forward, rig.Compare(events, arrived))
}

// testReverse: a plain client writes to the far end, and the binary carries it
// into the inbox.
func testReverse(t *testing.T, k ends.Kind) {
	p := binary(t, k.Binary)
	db, end := newCase(t, k, "rev", p)
	relay := p.Start(t, db.URL, rig.Options{})
	db.Reverse(t, "in", k.Source, end.Source(), map[string]any{"aggregate_id_from": "body:k"})

	events := makeEvents(k)
	disturbed(t, events,
		func(chunk []rig.Event) error { return end.Produce(t.Context(), records(t, chunk)) },
		func() { relay.Kill(); relay = p.Start(t, db.URL, rig.Options{}) },
		func(ctx context.Context) error { return restart(ctx, k, end) })

	settle(t, k, reverse, returned(t, db, events))
}

// testRoundTrip: the image carries rows to the broker and back into the inbox,
// which ends with equal rows.
func testRoundTrip(t *testing.T, k ends.Kind) {
	p := rig.Image(k.Binary)
	db, end := newCase(t, k, "img", p)
	opts := rig.Options{}
	if k.Server == "" {
		opts.Volumes = []string{t.TempDir()}
		if e, err := k.New(t.Context(), ends.Env{Name: db.Name, Dir: opts.Volumes[0]}); err != nil {
			t.Fatal(err)
		} else {
			end = e
		}
	}
	relay := p.Start(t, db.URL, opts)
	sink := end.Sink()
	if loop, ok := end.(interface{ Loop() map[string]any }); ok {
		sink = loop.Loop()
	}
	if k.Source != "" {
		db.Reverse(t, "in", k.Source, end.Source(), nil)
	}
	db.Forward(t, "out", k.Name, sink, nil)

	events := makeEvents(k)
	disturbed(t, events,
		func(chunk []rig.Event) error { return db.Insert(t.Context(), chunk) },
		func() { relay.Kill(); relay = p.Start(t, db.URL, opts) },
		nil)

	rig.Until(t, patience, "everything confirmed", func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out") })
	if k.Source != "" {
		settle(t, k, roundTrip, returned(t, db, events))
		return
	}
	arrived, err := end.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settle(t, k, roundTrip, rig.Compare(events, arrived))
}

func binary(t *testing.T, name string) rig.Program {
	t.Helper()
	p, err := rig.Binary(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newCase makes a database and a far end of the test's own.
func newCase(t *testing.T, k ends.Kind, what string, p rig.Program) (*rig.Database, ends.End) {
	t.Helper()
	name := strings.ReplaceAll("e2e_"+what+"_"+k.Name, "-", "_")
	db := rig.NewDatabase(t, fleet.Server("pg18").URL, name, p.Migrate)
	env := ends.Env{Name: name, Dir: t.TempDir(), Migrate: p.Migrate}
	if k.Server != "" {
		env.Server = fleet.Server(k.Server)
	}
	end, err := k.New(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end.Close)
	return db, end
}

// makeEvents returns 1,000 keys, a few events of each, and now and then one of
// the largest size.
func makeEvents(k ends.Kind) []rig.Event {
	const keys, rounds = 1000, 4
	words := []string{"zażółć gęślą jaźń", "日本語のテキスト", "🐘→🐇", `quote " and \ and` + "\t\n", "plain"}
	events := make([]rig.Event, 0, keys*rounds)
	for seq := range int64(rounds) {
		for key := range keys {
			e := rig.Event{ID: int64(len(events)), K: fmt.Sprintf("ключ-%d", key), Seq: seq, Note: words[len(events)%len(words)]}
			if len(events)%(keys*rounds/4) == keys*rounds/8 {
				e.Note = strings.Repeat("x", k.MaxNote)
			}
			events = append(events, e)
		}
	}
	return events
}

// disturbed writes the events and, on the way, kills the relay twice and
// restarts the server once.
func disturbed(t *testing.T, events []rig.Event, write func([]rig.Event) error, kill func(), restart func(context.Context) error) {
	t.Helper()
	const chunk = 50
	chunks := len(events) / chunk
	restarted := make(chan error, 1)
	restarted <- nil
	tick := time.NewTicker(20 * time.Millisecond) // so that the relay is in the middle, not far behind
	defer tick.Stop()
	for i := range chunks {
		if err := write(events[i*chunk : (i+1)*chunk]); err != nil {
			t.Fatal(err)
		}
		switch i {
		case chunks / 4, chunks * 3 / 4:
			kill()
		case chunks / 2:
			if restart != nil {
				<-restarted
				go func() { restarted <- restart(context.WithoutCancel(t.Context())) }()
			}
		}
		<-tick.C
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
}

func restart(ctx context.Context, k ends.Kind, end ends.End) error {
	if e, ok := end.(interface{ Restart(context.Context) error }); ok {
		return e.Restart(ctx)
	}
	if k.Server == "" {
		return nil
	}
	return fleet.Server(k.Server).Restart(ctx)
}

// records wraps events as a plain application would send them.
func records(t *testing.T, events []rig.Event) []ends.Record {
	t.Helper()
	records := make([]ends.Record, len(events))
	for i, e := range events {
		body, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		records[i] = ends.Record{ID: fmt.Sprintf("event-%d", e.ID), Key: e.K, Body: body}
	}
	return records
}

// returned waits until the inbox has as many rows as were written.
func returned(t *testing.T, db *rig.Database, events []rig.Event) rig.Ledger {
	t.Helper()
	rig.Until(t, patience, "everything in the inbox", func(ctx context.Context) (bool, error) {
		n, err := db.Returned(ctx)
		if err == nil && n < len(events) {
			err = fmt.Errorf("%d of %d rows", n, len(events))
		}
		return err == nil, err
	})
	arrived, err := db.Inbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return rig.Compare(events, arrived)
}

// settle judges a ledger and enters it into the matrix. An inbox has no
// duplicates, whatever the broker.
func settle(t *testing.T, k ends.Kind, column string, l rig.Ledger) {
	t.Helper()
	if err := l.Err(k.Exact || column != forward); err != nil {
		t.Fatal(err)
	}
	t.Log(l)
	matrix.Set(k.Name, column, l)
}
