package relay_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// cursor stands for a pipeline's cursor, which outlives a source.
type cursor struct {
	state string
	err   error
}

func (c *cursor) source(t *testing.T, policy string) *relay.FarEnds {
	t.Helper()
	f, err := relay.RecallFarEnds(relay.Env{
		Logger: slog.New(slog.DiscardHandler), FarEnds: c.state,
		KeepFarEnds: func(_ context.Context, state string) error {
			if c.err == nil {
				c.state = state
			}
			return c.err
		},
	}, policy)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFarEndRecreated(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var c cursor
	f := c.source(t, relay.OnRecreatedStop)
	if e, err := f.Meet(ctx, "stream", "S", "a"); err != nil || e.Pending || e.Scope() != "" {
		t.Fatalf("first Meet = %+v, %v; want it adopted", e, err)
	}
	for range 2 { // a retry is a new source, which must not forget
		for _, same := range []relay.Incarnation{"a", ""} {
			if e, err := c.source(t, relay.OnRecreatedStop).Meet(ctx, "stream", "S", same); err != nil || e.Scope() != "" {
				t.Errorf("Meet %q again = %+v, %v", same, e, err)
			}
		}
		_, err := c.source(t, relay.OnRecreatedStop).Meet(ctx, "stream", "S", "b")
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), `stream "S"`) || !strings.Contains(err.Error(), "on_recreated") {
			t.Errorf("Meet of another life = %v, want a fatal error with the cure", err)
		}
	}
	for range 2 { // killed before the position was moved: the next source moves it
		f = c.source(t, relay.OnRecreatedRestart)
		if e, err := f.Meet(ctx, "stream", "S", "b"); err != nil || !e.Pending || e.Scope() != "@b" {
			t.Fatalf("Meet of another life = %+v, %v; want it to begin again", e, err)
		}
	}
	if err := f.Began(ctx, "S"); err != nil {
		t.Fatal(err)
	}
	if e, err := c.source(t, relay.OnRecreatedStop).Meet(ctx, "stream", "S", "b"); err != nil || e.Pending || e.Scope() != "@b" {
		t.Errorf("Meet after Began = %+v, %v", e, err)
	}
}

func TestFarEndLost(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	var c cursor
	f := c.source(t, relay.OnRecreatedStop)
	if _, err := f.Meet(ctx, "topic", "T", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Lost(ctx, "topic", "T", relay.EndsBefore(3, 10)); !relay.IsFatal(err) || !strings.Contains(err.Error(), "ends at 3") {
		t.Errorf("Lost = %v, want a fatal error", err)
	}
	seen := map[string]bool{"": true}
	for range 3 {
		f = c.source(t, relay.OnRecreatedRestart)
		for range 2 { // the second call is that of a source after a crash
			e, err := f.Lost(ctx, "topic", "T", relay.EndsBefore(3, 10))
			if err != nil || !e.Pending {
				t.Fatalf("Lost = %+v, %v", e, err)
			}
			f = c.source(t, relay.OnRecreatedRestart)
		}
		e, err := f.Meet(ctx, "topic", "T", "")
		if err != nil || seen[e.Scope()] {
			t.Fatalf("Meet = %+v, %v; want a scope that was not used", e, err)
		}
		seen[e.Scope()] = true
		if err := f.Began(ctx, "T"); err != nil {
			t.Fatal(err)
		}
	}
}

// A floor of 0 is known, and is not the floor of another life. A cursor may have none.
func TestFarEndFloor(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := cursor{state: `{"S":{"id":"a","first":true}}`}
	check := func(want uint64, known bool) *relay.FarEnds {
		t.Helper()
		f := c.source(t, relay.OnRecreatedRestart)
		if floor, ok := f.Floor("S"); floor != want || ok != known {
			t.Errorf("Floor = %d, %t, want %d, %t", floor, ok, want, known)
		}
		return f
	}
	settle := func(f *relay.FarEnds, floor uint64) {
		t.Helper()
		if err := f.Settled(ctx, "S", floor); err != nil {
			t.Fatal(err)
		}
	}
	settle(check(0, false), 0)
	f := check(0, true)
	settle(f, 7)
	settle(f, 5)
	f = check(7, true)
	if _, err := f.Meet(ctx, "stream", "S", "b"); err != nil {
		t.Fatal(err)
	}
	settle(f, 9) // of a position that is still to be moved
	f = check(0, false)
	if err := f.Began(ctx, "S"); err != nil {
		t.Fatal(err)
	}
	settle(f, 3)
	if _, err := check(3, true).Lost(ctx, "stream", "S", relay.EndsBefore(1, 3)); err != nil {
		t.Fatal(err)
	}
	check(0, false)
}

// An alarm is logged and counted before its effect is stored, and once however often that
// fails. The same alarm is logged again for a later loss.
func TestFarEndAlarmOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const known = `{"S":{"id":"a","first":true,"floor":2}}`
	away := errors.New("no database")
	for name, tc := range map[string]struct {
		call func(f *relay.FarEnds) error
		want string
	}{
		"Missed": {
			want: `{"S":{"id":"a","first":true,"missed":5,"floor":2}}`,
			call: func(f *relay.FarEnds) error { return f.Missed(ctx, "S", 5, "messages are lost", "messages", 5) },
		},
		"MissedTo": {
			want: `{"S":{"id":"a","first":true,"missed":5,"floor":9}}`,
			call: func(f *relay.FarEnds) error { return f.MissedTo(ctx, "S", 5, 9, "messages are lost", "messages", 5) },
		},
		"Remade": {
			want: `{"S":{"first":true,"remade":1,"floor":2}}`,
			call: func(f *relay.FarEnds) error { return f.Remade(ctx, "S", "queue was deleted", "queue", "S") },
		},
		"Meet": {want: `{"S":{"id":"b","pending":true}}`, call: func(f *relay.FarEnds) error {
			_, err := f.Meet(ctx, "stream", "S", "b")
			return err
		}},
		"Lost": {want: `{"S":{"id":"a","restarts":1,"first":true,"pending":true}}`, call: func(f *relay.FarEnds) error {
			_, err := f.Lost(ctx, "stream", "S", relay.EndsBefore(1, 3))
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log strings.Builder
			var counted, stores int
			stored := known
			f, err := relay.RecallFarEnds(relay.Env{
				Logger: slog.New(slog.NewTextHandler(&log, nil)), FarEnds: known, CountLoss: func() { counted++ },
				KeepFarEnds: func(_ context.Context, state string) error {
					if log.Len() == 0 || counted == 0 {
						t.Error("stored before the alarm was out")
					}
					if stores++; stores <= 2 {
						return away
					}
					stored = state
					return nil
				},
			}, relay.OnRecreatedRestart)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				if err := tc.call(f); errors.Is(err, away) != (i < 2) {
					t.Errorf("call %d = %v", i+1, err)
				}
			}
			if n := strings.Count(log.String(), "level=ERROR"); n != 1 || counted != 1 || stored != tc.want {
				t.Errorf("%d alarms, %d counted, stored %s; want one, and %s", n, counted, stored, tc.want)
			}
			if name == "Missed" {
				if err := tc.call(f); err != nil || counted != 2 {
					t.Errorf("the same loss again = %v, %d counted; want another alarm", err, counted)
				}
			}
		})
	}
}

// What could not be stored is not known either.
func TestFarEndNotStored(t *testing.T) {
	t.Parallel()
	c := cursor{err: errors.New("no database")}
	f := c.source(t, relay.OnRecreatedStop)
	if _, err := f.Meet(t.Context(), "stream", "S", "a"); !errors.Is(err, c.err) {
		t.Errorf("Meet = %v", err)
	}
	c.err = nil
	if _, err := f.Meet(t.Context(), "stream", "S", "b"); err != nil {
		t.Errorf("Meet after the database is back = %v, want it adopted", err)
	}
}
