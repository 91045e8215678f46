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
