package relaytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// SourceHarness has the way to feed a source, and its promises.
type SourceHarness struct {
	// New makes an origin of the test's own: a queue, a topic, a table.
	New func(t testing.TB) SourceCase
	// Unordered is set if the origin itself does not keep the order of a key.
	Unordered bool
	// UTF8Only is set if the origin carries text only.
	UTF8Only bool
	// NoHeaders is set if messages carry no key, op or headers.
	NoHeaders bool
	// NoEmpty is set if the origin has no messages without a body.
	NoEmpty bool
	// MaxBody is the largest body in bytes; 0 means at least 1 MiB.
	MaxBody int
	// NoRedelivery is set if the origin cannot be read twice (standard input).
	NoRedelivery bool
	// Restart restarts the server and returns when it answers again.
	Restart func(t testing.TB)
}

// SourceCase is one origin.
type SourceCase struct {
	// Open returns a new source at the origin; at is zero except for a
	// [relay.Checkpointer], which resumes from there. The suite closes it.
	Open func(t testing.TB, at relay.Checkpoint) relay.Source
	// OpenBounded is Open with so many bytes for [relay.Env.MaxAnswer]. nil means that the
	// far end's own bound is small enough for any process.
	OpenBounded func(t testing.TB, maxAnswer int64) relay.Source
	// Feed writes messages with the broker's own client, as our sink for the same
	// broker would: with ID, Key, Op, Headers and Body.
	Feed func(t testing.TB, batch []relay.Message)
	// FeedForeign writes a body without any of our headers, as a stranger would.
	FeedForeign func(t testing.TB, body []byte)
	// Subject is what messages are addressed to; "" means "orders.insert".
	Subject string
}

// TestSource runs the suite for sources.
func TestSource(t *testing.T, h SourceHarness) {
	t.Helper()
	tests := []struct {
		name string
		run  func(*testing.T, SourceHarness)
	}{
		{"One", testSourceOne},
		{"Order", testSourceOrder},
		{"Limit", testSourceLimit},
		{"WaitsUntilCancelled", testSourceWaits},
		{"UnackedComesAgain", testSourceUnacked},
		{"AckedDoesNotComeAgain", testSourceAcked},
		{"AcksOutOfOrder", testSourceAcksOutOfOrder},
		{"ForeignMessage", testSourceForeign},
		{"AnyBytes", testSourceAnyBytes},
		{"EmptyBody", testSourceEmptyBody},
		{"LargeBody", testSourceLargeBody},
		{"BoundedMemory", testSourceBoundedMemory},
		{"CloseDuringReceive", testSourceCloseDuringReceive},
		{"ServerRestart", testSourceRestart},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, h) })
	}
}

// reader is a source under test as the engine uses it.
type reader struct {
	relay.Source
	at relay.Checkpoint
}

func openSource(t testing.TB, c SourceCase, at relay.Checkpoint) *reader {
	t.Helper()
	src := c.Open(t, at)
	t.Cleanup(func() { _ = src.Close() })
	return &reader{Source: src, at: at}
}

// receive returns n messages or fails.
func (r *reader) receive(t testing.TB, n int) []relay.Message {
	t.Helper()
	got, err := r.tryReceive(withTimeout(t), n)
	if err != nil {
		t.Fatalf("Receive = %v after %d of %d messages", err, len(got), n)
	}
	return got
}

func (r *reader) tryReceive(ctx context.Context, n int) (got []relay.Message, err error) {
	for len(got) < n {
		batch, err := r.Receive(ctx, n-len(got))
		if err != nil && ctx.Err() == nil && !relay.IsFatal(err) {
			select { // the engine would back off and call again
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		if err != nil {
			return got, err
		}
		got = append(got, batch...)
	}
	return got, nil
}

func (r *reader) ack(t testing.TB, batch []relay.Message) {
	t.Helper()
	cp, ok := r.Source.(relay.Checkpointer)
	if !ok {
		if err := r.Ack(withTimeout(t), batch); err != nil {
			t.Fatalf("Ack of %d messages = %v", len(batch), err)
		}
		return
	}
	at, err := cp.Checkpoint(batch)
	if err != nil {
		t.Fatalf("Checkpoint of %d messages = %v", len(batch), err)
	}
	if err := cp.Committed(withTimeout(t), at); err != nil {
		t.Fatalf("Committed = %v", err)
	}
	r.at = at
}

func (c SourceCase) messages(from, count, keys int) []relay.Message {
	return SinkCase{Subject: c.Subject}.messages(from, count, keys)
}

func testSourceOne(t *testing.T, h SourceHarness) {
	c := h.New(t)
	src := openSource(t, c, relay.Checkpoint{})
	want := c.messages(1, 1, 1)
	want[0].Headers = []relay.Header{{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	c.Feed(t, want)
	got := src.receive(t, 1)[0]
	if got.Err != nil {
		t.Fatalf("received message has error %v", got.Err)
	}
	if got.ID != want[0].ID || !bytes.Equal(got.Body, want[0].Body) {
		t.Errorf("received ID %q, body %q; want %q, %q", got.ID, got.Body, want[0].ID, want[0].Body)
	}
	if !h.NoHeaders {
		if got.Key != want[0].Key || got.Op != want[0].Op || got.Subject != want[0].Subject {
			t.Errorf("received key %q, op %q, subject %q; want %q, %q, %q", got.Key, got.Op, got.Subject, want[0].Key, want[0].Op, want[0].Subject)
		}
		if v, _ := got.Header("traceparent"); v != want[0].Headers[0].Value {
			t.Errorf("traceparent received as %q, want %q", v, want[0].Headers[0].Value)
		}
	}
	if got.Origin == "" {
		t.Error("received message has no origin")
	}
	src.ack(t, []relay.Message{got})
}

func testSourceOrder(t *testing.T, h SourceHarness) {
	c := h.New(t)
	src := openSource(t, c, relay.Checkpoint{})
	want := c.messages(1, 500, 10)
	c.Feed(t, want)
	last := make(map[string]int64)
	seen := make(map[string]bool)
	ctx := withTimeout(t)
	for len(seen) < len(want) {
		batch, err := src.Receive(ctx, 100)
		if err != nil {
			t.Fatalf("Receive = %v after %d of %d messages", err, len(seen), len(want))
		}
		for i := range batch {
			if seen[batch[i].ID] {
				continue // a redelivery is allowed, an inversion is not
			}
			seen[batch[i].ID] = true
			n := idNumber(t, batch[i].ID)
			key := fmt.Sprintf("k%d", n%10)
			if n < last[key] && !h.Unordered {
				t.Errorf("key %s: message %d received after %d", key, n, last[key])
			}
			last[key] = n
		}
		src.ack(t, batch)
	}
}

func idNumber(t testing.TB, id string) int64 {
	t.Helper()
	var n int64
	if _, err := fmt.Sscanf(id, "outbox_orders:%d:0", &n); err != nil {
		t.Fatalf("received ID %q, which was never fed", id)
	}
	return n
}

func testSourceLimit(t *testing.T, h SourceHarness) {
	c := h.New(t)
	src := openSource(t, c, relay.Checkpoint{})
	c.Feed(t, c.messages(1, 20, 2))
	for got := 0; got < 20; {
		batch, err := src.Receive(withTimeout(t), 3)
		if err != nil || len(batch) == 0 || len(batch) > 3 {
			t.Fatalf("Receive(3) = %d messages, %v; want 1 to 3", len(batch), err)
		}
		src.ack(t, batch)
		got += len(batch)
	}
}

func testSourceWaits(t *testing.T, h SourceHarness) {
	src := openSource(t, h.New(t), relay.Checkpoint{})
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	batch, err := src.Receive(ctx, 10)
	if err == nil || len(batch) > 0 {
		t.Fatalf("Receive from an empty origin = %d messages, %v; want an error once the context ends", len(batch), err)
	}
	if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		t.Errorf("Receive = %v, want the context's error", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Receive returned %s after its context ended", took)
	}
}

func testSourceUnacked(t *testing.T, h SourceHarness) {
	if h.NoRedelivery {
		t.Skip("the origin cannot be read twice")
	}
	c := h.New(t)
	first := openSource(t, c, relay.Checkpoint{})
	c.Feed(t, c.messages(1, 20, 4))
	ids := idSet(first.receive(t, 20))
	if err := first.Close(); err != nil {
		t.Fatalf("Close() = %v", err)
	}
	again := openSource(t, c, first.at)
	for id := range idSet(again.receive(t, 20)) {
		if !ids[id] {
			t.Errorf("redelivered ID %q is new: the ID changed", id)
		}
	}
}

func idSet(batch []relay.Message) map[string]bool {
	ids := make(map[string]bool)
	for i := range batch {
		ids[batch[i].ID] = true
	}
	return ids
}

func testSourceAcked(t *testing.T, h SourceHarness) {
	c := h.New(t)
	first := openSource(t, c, relay.Checkpoint{})
	c.Feed(t, c.messages(1, 20, 4))
	first.ack(t, first.receive(t, 20))
	if h.NoRedelivery {
		return
	}
	if err := first.Close(); err != nil {
		t.Fatalf("Close() = %v", err)
	}
	again := openSource(t, c, first.at)
	c.Feed(t, c.messages(21, 1, 1))
	if got := again.receive(t, 1); got[0].ID != Message(21, "").ID {
		t.Errorf("received %q again after its Ack, want only the new message", got[0].ID)
	}
}

// Keys may overtake each other: acknowledging the second half must not
// acknowledge the first.
func testSourceAcksOutOfOrder(t *testing.T, h SourceHarness) {
	if h.NoRedelivery {
		t.Skip("the origin cannot be read twice")
	}
	c := h.New(t)
	first := openSource(t, c, relay.Checkpoint{})
	c.Feed(t, c.messages(1, 20, 20))
	got := first.receive(t, 20)
	first.ack(t, got[10:])
	if err := first.Close(); err != nil {
		t.Fatalf("Close() = %v", err)
	}
	missing := idSet(got[:10])
	again := openSource(t, c, first.at)
	ctx := withTimeout(t)
	for len(missing) > 0 {
		batch, err := again.tryReceive(ctx, 1)
		if err != nil {
			t.Fatalf("%d messages that were never acknowledged did not come again: %v", len(missing), err)
		}
		delete(missing, batch[0].ID)
		again.ack(t, batch)
	}
}

func testSourceForeign(t *testing.T, h SourceHarness) {
	c := h.New(t)
	if c.FeedForeign == nil {
		t.Skip("strangers cannot write there")
	}
	first := openSource(t, c, relay.Checkpoint{})
	body := []byte(`{"from":"a stranger"}`)
	c.FeedForeign(t, body)
	got := first.receive(t, 1)[0]
	if got.Err != nil || got.ID == "" || !bytes.Equal(got.Body, body) {
		t.Fatalf("received ID %q, body %q, error %v; want an ID and body %q", got.ID, got.Body, got.Err, body)
	}
	if h.NoRedelivery {
		return
	}
	if err := first.Close(); err != nil {
		t.Fatalf("Close() = %v", err)
	}
	if again := openSource(t, c, first.at).receive(t, 1)[0]; again.ID != got.ID {
		t.Errorf("the same message came again as %q, was %q: its ID must be stable", again.ID, got.ID)
	}
}

func testSourceAnyBytes(t *testing.T, h SourceHarness) {
	if h.UTF8Only {
		t.Skip("the origin carries text only")
	}
	c := h.New(t)
	src := openSource(t, c, relay.Checkpoint{})
	fed := c.messages(1, 1, 1)
	fed[0].Body = make([]byte, 256)
	for i := range fed[0].Body {
		fed[0].Body[i] = byte(i)
	}
	c.Feed(t, fed)
	got := src.receive(t, 1)
	if !bytes.Equal(got[0].Body, fed[0].Body) {
		t.Errorf("256 different bytes received as %q", got[0].Body)
	}
	src.ack(t, got)
}

// testSourceEmptyBody: an empty body is handed over, and stops no other. The decoder makes a
// dead letter of it.
func testSourceEmptyBody(t *testing.T, h SourceHarness) {
	if h.NoEmpty {
		t.Skip("the origin has no message without a body")
	}
	c := h.New(t)
	src := openSource(t, c, relay.Checkpoint{})
	fed := c.messages(1, 2, 1)
	fed[0].Body = []byte{}
	c.Feed(t, fed)
	got := src.receive(t, 2)
	slices.SortFunc(got, func(a, b relay.Message) int { return len(a.Body) - len(b.Body) })
	if len(got[0].Body) != 0 || got[0].ID == "" || !bytes.Equal(got[1].Body, fed[1].Body) {
		t.Errorf("received bodies %q of %q and %q of %q, want an empty one and %q", got[0].Body, got[0].ID, got[1].Body, got[1].ID, fed[1].Body)
	}
	src.ack(t, got)
}

func testSourceLargeBody(t *testing.T, h SourceHarness) {
	c := h.New(t)
	size := 1 << 20
	if h.MaxBody > 0 {
		size = min(size, h.MaxBody)
	}
	src := openSource(t, c, relay.Checkpoint{})
	fed := c.messages(1, 1, 1)
	fed[0].Body = append(append([]byte(`{"pad":"`), bytes.Repeat([]byte("x"), size-10)...), `"}`...)
	c.Feed(t, fed)
	got := src.receive(t, 1)
	if !bytes.Equal(got[0].Body, fed[0].Body) {
		t.Errorf("a body of %d bytes was received with %d", len(fed[0].Body), len(got[0].Body))
	}
	src.ack(t, got)
}

// testSourceBoundedMemory: with less memory than a batch has, a source reads less at once. A
// message that is too large alone ends the source before its client has memory for it, and
// is there for a process with more.
func testSourceBoundedMemory(t *testing.T, h SourceHarness) {
	const memory = 256 << 10
	c := h.New(t)
	if c.OpenBounded == nil {
		t.Skip("the far end's own bound is small enough")
	}
	src := &reader{Source: c.OpenBounded(t, memory)}
	t.Cleanup(func() { _ = src.Close() })
	batch := c.messages(1, 10, 10)
	for i := range batch {
		batch[i].Body = []byte(`"` + strings.Repeat("x", memory/3) + `"`)
		c.Feed(t, batch[i:i+1]) // Kafka returns what was written at once as a whole
	}
	src.ack(t, src.receive(t, len(batch)))

	large := c.messages(11, 2, 2)
	large[1].Body = []byte(`"` + strings.Repeat("x", 3*memory) + `"`)
	c.Feed(t, large)
	got, err := src.tryReceive(withTimeout(t), len(large))
	if !relay.IsFatal(err) || !relaynet.IsTooLarge(err) {
		t.Fatalf("Receive = %v after %d messages, want a fatal error for the large one", err, len(got))
	}
	_ = src.Close()
	missing := idSet(large)
	for id := range idSet(openSource(t, c, relay.Checkpoint{}).receive(t, len(large))) {
		delete(missing, id)
	}
	if len(missing) > 0 {
		t.Errorf("with more memory %v did not come", missing)
	}
}

func testSourceCloseDuringReceive(t *testing.T, h SourceHarness) {
	src := h.New(t).Open(t, relay.Checkpoint{})
	ctx, cancel := context.WithCancel(context.Background())
	returned := make(chan error, 1)
	go func() {
		_, err := src.Receive(ctx, 10)
		returned <- err
	}()
	select {
	case err := <-returned:
		t.Fatalf("Receive from an empty origin returned at once: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- src.Close() }()
	for _, ch := range []chan error{returned, closed} {
		select {
		case err := <-ch:
			if ch == closed && err != nil {
				t.Errorf("Close during Receive = %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("Receive or Close still hangs 10 s after the context was cancelled")
		}
	}
}

func testSourceRestart(t *testing.T, h SourceHarness) {
	if h.Restart == nil {
		t.Skip("no server to restart")
	}
	c := h.New(t)
	src := openSource(t, c, relay.Checkpoint{})
	c.Feed(t, c.messages(1, 10, 2))
	src.ack(t, src.receive(t, 10))
	h.Restart(t)
	c.Feed(t, c.messages(11, 10, 2))
	missing := idSet(c.messages(11, 10, 2))
	ctx := withTimeout(t)
	for len(missing) > 0 {
		batch, err := src.tryReceive(ctx, 1)
		if err != nil {
			t.Fatalf("%d messages did not come after the server's restart: %v", len(missing), err)
		}
		delete(missing, batch[0].ID)
	}
}
