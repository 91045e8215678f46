package relaytest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Cursor stands in for the part of a pipeline's cursor that keeps far ends.
type Cursor struct {
	mu    sync.Mutex
	state string
	fails int
}

// Fail makes the next n writes fail.
func (c *Cursor) Fail(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails = n
}

// FarEnd returns what the cursor has of the far end called name.
func (c *Cursor) FarEnd(t testing.TB, name string) relay.FarEnd {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var known map[string]relay.FarEnd
	if err := json.Unmarshal([]byte(c.state), &known); err != nil {
		t.Fatal(err)
	}
	return known[name]
}

// LossOnce receives n messages behind a loss that the source has not reported. The cursor
// cannot store it at first. The log must have alarm once, and the cursor count lost messages.
func (c *Cursor) LossOnce(t testing.TB, src relay.Source, n int, log *Log, alarm, farEnd string, lost int64) (got []relay.Message) {
	t.Helper()
	before := c.FarEnd(t, farEnd).Missed
	c.Fail(2)
	for ctx := withTimeout(t); len(got) < n || c.FarEnd(t, farEnd).Missed == before; {
		short, cancel := context.WithTimeout(ctx, time.Second)
		batch, err := src.Receive(short, 100)
		cancel()
		if ctx.Err() != nil {
			t.Fatalf("received %d of %d messages, the cursor has %+v: %v", len(got), n, c.FarEnd(t, farEnd), err)
		}
		got = append(got, batch...)
	}
	if len(got) > n || strings.Count(log.String(), alarm) != 1 {
		t.Errorf("received %d messages, want %d, and %q once in the log:\n%s", len(got), n, alarm, log)
	}
	if missed := c.FarEnd(t, farEnd).Missed - before; missed != lost {
		t.Errorf("the cursor counts %d more missed messages, want %d", missed, lost)
	}
	return got
}

var errCursor = errors.New("the cursor is away")

// Env returns env with what the cursor keeps.
func (c *Cursor) Env(env relay.Env) relay.Env {
	c.mu.Lock()
	defer c.mu.Unlock()
	env.FarEnds = c.state
	env.KeepFarEnds = func(_ context.Context, state string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.fails > 0 {
			c.fails--
			return errCursor
		}
		c.state = state
		return nil
	}
	return env
}

// RecreatedCase is an origin that the suite deletes and creates again under its name.
type RecreatedCase struct {
	Env relay.Env
	// Open opens a source at the origin, with onRecreated as that key's value.
	Open func(ctx context.Context, env relay.Env, onRecreated string) (relay.Source, error)
	// Feed writes messages without any of our headers; their bodies are {"n":N}.
	Feed func(t testing.TB, from, count int)
	// Recreate deletes the origin and creates it again, empty.
	Recreate func(t testing.TB)
}

// TestRecreated checks that a source notices an origin that was created again: under a
// running source and while none runs, with each value of on_recreated. The messages of the
// old origin are acknowledged, or the relay was killed before that.
func TestRecreated(t *testing.T, newCase func(t testing.TB) RecreatedCase) {
	t.Helper()
	for _, running := range []bool{true, false} {
		for _, policy := range []string{relay.OnRecreatedStop, relay.OnRecreatedRestart} {
			name := map[bool]string{true: "Running", false: "Stopped"}[running] + "/" + policy
			t.Run(name, func(t *testing.T) { testRecreated(t, newCase(t), running, true, policy) })
			t.Run(name+"/Unsettled", func(t *testing.T) { testRecreated(t, newCase(t), running, false, policy) })
		}
	}
}

func testRecreated(t *testing.T, c RecreatedCase, running, settled bool, policy string) {
	const before, after = 10, 12
	var cursor Cursor
	open := func(policy string, at relay.Checkpoint) (*reader, error) {
		env := cursor.Env(c.Env)
		env.Checkpoint = at
		src, err := c.Open(withTimeout(t), env, policy)
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = src.Close() })
		return &reader{Source: src, at: at}, nil
	}
	src, err := open(policy, relay.Checkpoint{})
	if err != nil {
		t.Fatal(err)
	}
	c.Feed(t, 1, before)
	old := src.receive(t, before)
	if settled {
		src.ack(t, old)
	}
	if !running {
		_ = src.Close()
	}
	c.Recreate(t)
	c.Feed(t, 101, after)

	// What the supervisor does: after a fatal error it opens a new source, again and again.
	ids, bodies := idSet(old), make(map[string]bool)
	failures := 0
	for deadline := time.Now().Add(60 * time.Second); len(bodies) < after; {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d new messages arrived: %v", len(bodies), after, bodies)
		}
		var err error
		if failures > 0 || !running {
			_ = src.Close()
			at := src.at
			if src, err = open(policy, at); err != nil {
				src = &reader{Source: closed{}, at: at}
			}
		}
		var got []relay.Message
		if err == nil {
			if got, err = src.tryReceive(withTimeout(t), 1); err == nil {
				src.ack(t, got)
			}
		}
		if relay.IsFatal(err) {
			t.Logf("fatal: %v", err)
			failures++
		}
		for _, m := range got {
			if ids[m.ID] && !strings.Contains(string(m.Body), fmt.Sprintf(`{"n":%d}`, len(bodies)+101)) {
				continue // a repetition of an old message, which the inbox drops
			}
			if ids[m.ID] {
				t.Fatalf("new message %s has the id %s of an old one: the inbox would drop it", m.Body, m.ID)
			}
			bodies[string(m.Body)] = true
		}
		switch {
		case len(got) > 0 && policy == relay.OnRecreatedStop:
			t.Fatalf("received %s %q although the origin was created again; last error %v", got[0].ID, got[0].Body, err)
		case failures == 3 && policy == relay.OnRecreatedStop:
			if !strings.Contains(err.Error(), "on_recreated") {
				t.Errorf("error %q does not name on_recreated", err)
			}
			policy = relay.OnRecreatedRestart // the operator's cure
		}
	}
}

// closed is a source that could not be opened.
type closed struct{ relay.Source }

func (closed) Close() error { return nil }
