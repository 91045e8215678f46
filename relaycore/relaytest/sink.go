package relaytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"weak"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Patience bounds every wait of the suite. It is RELAY_TEST_PATIENCE, or a minute.
// Brokers that redeliver by timeout must be configured by the
// harness to do so well within it.
func Patience() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("RELAY_TEST_PATIENCE")); err == nil {
		return d
	}
	return time.Minute
}

// SinkHarness has the way to a destination and the promises of a sink. A field that
// is nil or zero leaves out its proof.
type SinkHarness struct {
	// New makes a destination of the test's own.
	New func(t testing.TB) SinkCase
	// Dedup is set if the far end drops a second message with the same ID.
	Dedup bool
	// Unordered is set if the far end itself does not keep the order of a key.
	Unordered bool
	// JSONOnly is set if the far end takes JSON only, and may return it with other
	// white space and order of members.
	JSONOnly bool
	// UTF8Only is set if the far end takes text only.
	UTF8Only bool
	// NoHeaders is set if the far end has no headers and drops op and key.
	NoHeaders bool
	// MaxBody is the largest body in bytes that the destination takes; 0 means at
	// least 1 MiB.
	MaxBody int
	// Copies is the backend's Copies. It is 0 where the harness itself allocates, or
	// where the client allocates much that does not depend on the body.
	Copies int
	// Refuse turns m into a message that the destination refuses for good.
	Refuse func(t testing.TB, m *relay.Message)
	// Restart restarts the server and returns when it answers again.
	Restart func(t testing.TB)
}

// SinkCase is one destination.
type SinkCase struct {
	// Open returns a new sink onto the destination. The suite closes it.
	Open func(t testing.TB) relay.Sink
	// Read returns all messages at the destination, in the order in which they
	// arrived, read with the broker's own client. The order of an Unordered far end
	// is free. Read waits until there are at least n messages, and fails the test
	// when there are not within [Patience]. It fills ID and Body, and Key, Op and
	// Headers if the far end carries them.
	Read func(t testing.TB, n int) []relay.Message
	// Foreign writes a message that is not the relay's to the destination.
	Foreign func(t testing.TB)
	// LoseAnswer makes the next Publish of a sink that Open returned lose its answer:
	// all messages arrive, and the sink gets an error. A proxy in front of the server
	// can do it.
	LoseAnswer func(t testing.TB)
	// Subject is what messages are addressed to; "" means "orders.insert".
	Subject string
}

// TestSink runs the suite for sinks.
func TestSink(t *testing.T, h SinkHarness) {
	t.Helper()
	tests := []struct {
		name string
		run  func(*testing.T, SinkHarness)
	}{
		{"One", testSinkOne},
		{"BatchIsNotChanged", testSinkBatchNotChanged},
		{"OrderOfKeys", testSinkOrder},
		{"ThousandKeys", testSinkThousandKeys},
		{"SameIDTwice", testSinkSameIDTwice},
		{"LargeBody", testSinkLargeBody},
		{"Copies", testSinkCopies},
		{"Stream", testSinkStream},
		{"AnyBytes", testSinkAnyBytes},
		{"NonASCII", testSinkNonASCII},
		{"HeaderWithNewline", testSinkHeaderWithNewline},
		{"RefusedInTheMiddle", testSinkRefused},
		{"RefusedHoldsItsKey", testSinkRefusedHoldsKey},
		{"Cancelled", testSinkCancelled},
		{"CancelMidPublish", testSinkCancelMidPublish},
		{"ClosedSinkRefuses", testSinkClosed},
		{"Reopen", testSinkReopen},
		{"Resume", testSinkResume},
		{"LostAnswer", testSinkLostAnswer},
		{"Limits", testSinkLimits},
		{"ServerRestart", testSinkRestart},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) { tc.run(t, h) })
	}
}

// Identity is the Identity of the [relay.Env] with which a harness opens its sinks, as the
// suite's messages have delivery ids of that pipeline.
const Identity = "relaytest000"

// Message returns the suite's n-th message: what the engine would give a sink
// for an inserted row {"n":N} of the stream table orders.
func Message(n int, key string) relay.Message {
	row := fmt.Appendf(nil, `{"n":%d,"key":%q}`, n, key)
	id := fmt.Sprintf("outbox_orders:%d:0", n)
	return relay.Message{
		ID: id, DeliveryID: relay.DeliveryID(Identity, id), Subject: "orders.insert", Key: key, Op: relay.OpInsert,
		Row: row, Body: row, ContentType: "application/json", Time: time.Now().Truncate(time.Millisecond),
		StreamTable: "orders", OutboxID: int64(n),
	}
}

func (c SinkCase) messages(from, count, keys int) []relay.Message {
	batch := make([]relay.Message, count)
	for i := range batch {
		batch[i] = Message(from+i, fmt.Sprintf("k%d", (from+i)%keys))
		if c.Subject != "" {
			batch[i].Subject = c.Subject
		}
	}
	return batch
}

func withTimeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience())
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, c SinkCase) relay.Sink {
	t.Helper()
	sink := c.Open(t)
	t.Cleanup(func() { _ = sink.Close() })
	return sink
}

func publish(t testing.TB, sink relay.Sink, batch []relay.Message) {
	t.Helper()
	if err := sink.Publish(withTimeout(t), batch); err != nil {
		t.Fatalf("Publish of %d messages = %v, want nil", len(batch), err)
	}
}

func testSinkOne(t *testing.T, h SinkHarness) {
	c := h.New(t)
	batch := c.messages(1, 1, 1)
	batch[0].Headers = []relay.Header{{Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
	batch[0].Op, batch[0].BeforeKey = relay.OpUpdate, "k0 before"
	publish(t, open(t, c), batch)
	got := c.Read(t, 1)
	if len(got) != 1 {
		t.Fatalf("the destination holds %d messages, want 1", len(got))
	}
	want := batch[0]
	if got[0].ID != want.ID || !sameBody(h, got[0].Body, want.Body) {
		t.Errorf("arrived: ID %q, body %q; want %q, %q", got[0].ID, got[0].Body, want.ID, want.Body)
	}
	if h.NoHeaders {
		return
	}
	if got[0].Op != want.Op || got[0].Key != want.Key || got[0].BeforeKey != want.BeforeKey {
		t.Errorf("arrived: op %q, key %q, before it %q; want %q, %q, %q",
			got[0].Op, got[0].Key, got[0].BeforeKey, want.Op, want.Key, want.BeforeKey)
	}
	if v, _ := got[0].Header("traceparent"); v != want.Headers[0].Value {
		t.Errorf("traceparent arrived as %q, want %q", v, want.Headers[0].Value)
	}
}

func testSinkBatchNotChanged(t *testing.T, h SinkHarness) {
	c := h.New(t)
	batch := c.messages(1, 50, 5)
	before := slices.Clone(batch)
	publish(t, open(t, c), batch)
	for i := range batch {
		a, b := batch[i], before[i]
		if a.ID != b.ID || a.Key != b.Key || a.Subject != b.Subject || !bytes.Equal(a.Body, b.Body) || !bytes.Equal(a.Row, b.Row) {
			t.Fatalf("Publish changed message %d: %+v, was %+v", i, a, b)
		}
	}
}

func testSinkOrder(t *testing.T, h SinkHarness) {
	c := h.New(t)
	sink := open(t, c)
	var all []relay.Message
	for _, size := range []int{1, 9, 90, 400, 1000} {
		batch := c.messages(len(all)+1, size, 10)
		publish(t, sink, batch)
		all = append(all, batch...)
	}
	checkArrived(t, h, c.Read(t, len(all)), all)
}

func testSinkThousandKeys(t *testing.T, h SinkHarness) {
	c := h.New(t)
	batch := c.messages(1, 3000, 1000)
	publish(t, open(t, c), batch)
	checkArrived(t, h, c.Read(t, len(batch)), batch)
}

func testSinkSameIDTwice(t *testing.T, h SinkHarness) {
	if !h.Dedup {
		t.Skip("the far end does not recognise duplicates")
	}
	c := h.New(t)
	sink := open(t, c)
	batch := c.messages(1, 20, 4)
	publish(t, sink, batch)
	publish(t, sink, batch)
	if d, ok := sink.(relay.Duplicates); ok {
		if n := d.TakeDuplicates(); n != len(batch) {
			t.Errorf("TakeDuplicates() = %d after %d messages were published twice", n, len(batch))
		}
	}
	last := c.messages(21, 1, 1)
	publish(t, sink, last)
	checkArrived(t, h, c.Read(t, 21), append(batch, last...))
}

func testSinkLargeBody(t *testing.T, h SinkHarness) {
	c := h.New(t)
	batch := c.messages(1, 3, 1)
	batch[1].Body = h.largeBody()
	batch[1].Row = batch[1].Body
	publish(t, open(t, c), batch)
	checkArrived(t, h, c.Read(t, 3), batch)
}

// largeBody returns a JSON object of 1 MiB, or as large as the destination takes.
func (h SinkHarness) largeBody() []byte {
	size := 1 << 20
	if h.MaxBody > 0 {
		size = min(size, h.MaxBody)
	}
	return []byte(`{"pad":"` + strings.Repeat("x", size-10) + `"}`)
}

// testSinkCopies compares what a sink allocates for its first large body with what the
// budget reserves for it. All that is allocated counts, whether it is held at the same
// time or not. So the result does not depend on the garbage collector. Afterwards an idle
// sink must let go of the body.
func testSinkCopies(t *testing.T, h SinkHarness) {
	if h.Copies == 0 {
		t.Skip("the harness does not tell the backend's copies")
	}
	c := h.New(t)
	sink := open(t, c)
	batch := c.messages(1, 2, 1)
	publish(t, sink, batch[:1]) // connects
	body := h.largeBody()
	batch[1].Body, batch[1].Row = body, body
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	publish(t, sink, batch[1:])
	runtime.ReadMemStats(&after)
	copies := 2 + float64(after.TotalAlloc-before.TotalAlloc)/float64(len(body))
	t.Logf("a body of %d bytes is in memory at most %.1f times, Copies is %d", len(body), copies, h.Copies)
	if copies > float64(h.Copies)+0.5 {
		t.Errorf("a body of %d bytes may be in memory %.1f times, want at most %d", len(body), copies, h.Copies)
	}

	held := weak.Make(&body[0])
	body, batch[1] = nil, relay.Message{}
	for tries := 0; held.Value() != nil && tries < 20; tries++ {
		runtime.GC()
		time.Sleep(20 * time.Millisecond) // the client's goroutines may still return from the request
	}
	if held.Value() != nil {
		t.Error("the body is still in memory after it was sent")
	}
	runtime.KeepAlive(sink)
}

// testSinkStream publishes a body that is read while it is sent. A stream that fails
// confirms nothing, and leaves nothing at the far end.
func testSinkStream(t *testing.T, h SinkHarness) {
	c := h.New(t)
	sink := open(t, c)
	if s, ok := sink.(relay.Streamer); !ok || !s.Streams() {
		t.Skip("the sink sends no streams")
	}
	batch := c.messages(1, 3, 1)
	publish(t, sink, batch[:1])
	row := []byte("{\"pad\":\n\"" + strings.Repeat("x", 3<<20) + "\"}")
	m := batch[1]
	batch[1].Body = bytes.ReplaceAll(row, []byte("\n"), nil) // a far end that has lines drops them
	broken := errors.New("the row cannot be read")
	var failure error
	opened, closed := 0, 0
	m.Body, m.Row = nil, []byte(`{}`)
	m.Payload.Stream = &relay.Stream{RowLength: int64(len(row)), OpenRow: func(context.Context) (io.ReadCloser, error) {
		opened++
		var whole io.Reader = bytes.NewReader(row)
		if failure != nil {
			whole = io.MultiReader(bytes.NewReader(row[:2<<20]), iotest.ErrReader(failure))
		}
		return struct {
			io.Reader
			io.Closer
		}{whole, closer(func() { closed++ })}, nil
	}}
	for _, failure = range []error{broken, relay.Permanent(broken)} {
		err := sink.Publish(t.Context(), []relay.Message{m})
		if failed, ok := errors.AsType[*relay.BatchError](err); ok {
			err = failed.Failed[0]
		}
		if !errors.Is(err, broken) || relay.IsPermanent(err) != relay.IsPermanent(failure) {
			t.Errorf("Publish = %v, want %v", err, failure)
		}
	}
	failure = nil
	publish(t, sink, []relay.Message{m})
	publish(t, sink, batch[2:])
	got := c.Read(t, 3)
	for i := range got {
		if got[i].ID == m.ID {
			got[i].Body = bytes.ReplaceAll(got[i].Body, []byte("\n"), nil)
		}
	}
	checkArrived(t, h, got, batch)
	if opened != 3 || closed != opened {
		t.Errorf("the stream was opened %d times and closed %d times, want 3", opened, closed)
	}
}

type closer func()

func (c closer) Close() error {
	c()
	return nil
}

func testSinkAnyBytes(t *testing.T, h SinkHarness) {
	if h.JSONOnly || h.UTF8Only {
		t.Skip("the far end takes text only")
	}
	c := h.New(t)
	batch := c.messages(1, 1, 1)
	batch[0].Body = make([]byte, 256)
	for i := range batch[0].Body {
		batch[0].Body[i] = byte(i)
	}
	batch[0].ContentType = "application/octet-stream"
	publish(t, open(t, c), batch)
	checkArrived(t, h, c.Read(t, 1), batch)
}

func testSinkNonASCII(t *testing.T, h SinkHarness) {
	c := h.New(t)
	batch := c.messages(1, 1, 1)
	batch[0].Body = []byte(`{"name":"Ærøskøbing 東京 🚢"}`)
	batch[0].Row = batch[0].Body
	batch[0].Key = "Zürich 東京"
	publish(t, open(t, c), batch)
	got := c.Read(t, 1)
	checkArrived(t, h, got, batch)
	if !h.NoHeaders && got[0].Key != batch[0].Key {
		t.Errorf("key arrived as %q, want %q", got[0].Key, batch[0].Key)
	}
}

// A header's value cannot end the header. It arrives as it is or in a safe spelling,
// or it is refused.
func testSinkHeaderWithNewline(t *testing.T, h SinkHarness) {
	if h.NoHeaders {
		t.Skip("the far end has no headers")
	}
	c := h.New(t)
	batch := c.messages(1, 1, 1)
	batch[0].Headers = []relay.Header{{Name: "x-note", Value: "a\r\nx-evil: yes"}}
	if err := open(t, c).Publish(withTimeout(t), batch); err != nil {
		if !permanentFor(err, 0) {
			t.Fatalf("Publish of a header with a newline = %v, want nil or a permanent error", err)
		}
		return
	}
	for _, m := range c.Read(t, 1) {
		if v, ok := m.Header("x-evil"); ok {
			t.Errorf("a newline in a header's value made a header of its own: x-evil = %q", v)
		}
	}
}

func testSinkRefused(t *testing.T, h SinkHarness) {
	if h.Refuse == nil {
		t.Skip("the far end refuses nothing")
	}
	c := h.New(t)
	sink := open(t, c)
	batch := c.messages(1, 21, 21) // a key each
	h.Refuse(t, &batch[10])
	err := sink.Publish(withTimeout(t), batch)
	if !permanentFor(err, 10) {
		t.Fatalf("Publish with a refused message = %v, want a permanent error for it", err)
	}
	var partial *relay.BatchError
	rest := slices.Delete(slices.Clone(batch), 10, 11)
	if !errors.As(err, &partial) {
		publish(t, sink, rest) // refused as a whole, so the engine would bisect
	} else if len(partial.Failed) != 1 {
		t.Errorf("%d messages failed, want the refused one alone: %v", len(partial.Failed), partial.Unwrap())
	}
	checkArrived(t, h, c.Read(t, len(rest)), rest)
}

func testSinkRefusedHoldsKey(t *testing.T, h SinkHarness) {
	if h.Refuse == nil {
		t.Skip("the far end refuses nothing")
	}
	c := h.New(t)
	batch := c.messages(1, 9, 3) // keys 1 2 0 1 2 0 1 2 0
	h.Refuse(t, &batch[4])       // of the key of 1, 4, 7
	err := open(t, c).Publish(withTimeout(t), batch)
	var partial *relay.BatchError
	if !errors.As(err, &partial) {
		if !relay.IsPermanent(err) {
			t.Fatalf("Publish with a refused message = %v, want a permanent error", err)
		}
		return
	}
	if partial.Failed[7] == nil {
		t.Errorf("message 7 was confirmed behind message 4 of its key, which was refused")
	}
	if partial.Failed[1] != nil {
		t.Errorf("message 1 = %v; it stands before the refused one", partial.Failed[1])
	}
	for _, m := range c.Read(t, 9-len(partial.Failed)) {
		if m.ID == batch[7].ID {
			t.Errorf("message 7 arrived, though an earlier message of its key had been refused")
		}
	}
}

func testSinkCancelled(t *testing.T, h SinkHarness) {
	c := h.New(t)
	sink := open(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	began := time.Now()
	if err := sink.Publish(ctx, c.messages(1, 100, 10)); err == nil {
		t.Error("Publish under a cancelled context = nil, want an error")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("Publish under a cancelled context took %s", took)
	}
	publish(t, sink, c.messages(101, 10, 10)) // the sink is still of use
}

// A sink that can be read back must mark an unknown outcome, so that nothing is
// published twice.
func testSinkCancelMidPublish(t *testing.T, h SinkHarness) {
	c := h.New(t)
	s := newSender(t, open(t, c))
	batch := c.messages(1, 2000, 10)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Millisecond)
	defer cancel()
	rest, _ := s.try(ctx, batch)
	s.deliver(t, rest)

	arrivals := make(map[string]int, len(batch))
	for _, m := range c.Read(t, len(batch)) {
		arrivals[m.ID]++
	}
	missing, repeated := 0, 0
	for i := range batch {
		switch n := arrivals[batch[i].ID]; {
		case n == 0:
			missing++
		case n > 1:
			repeated++
		}
	}
	if missing > 0 {
		t.Errorf("%d of %d messages were reported as confirmed and never arrived", missing, len(batch))
	}
	if repeated > 0 && s.position != "" {
		t.Errorf("%d of %d messages arrived twice, though the sink can be read back: mark the error by relay.Unknown", repeated, len(batch))
	}
}

// A message whose answer was lost is found by reading the far end back.
func testSinkLostAnswer(t *testing.T, h SinkHarness) {
	c := h.New(t)
	if c.LoseAnswer == nil {
		t.Skip("the harness cannot lose an answer")
	}
	s := newSender(t, open(t, c))
	if s.position == "" && !h.Dedup {
		t.Skip("the sink cannot read back what it wrote, nor does the far end recognise duplicates")
	}
	all := c.messages(1, 60, 5)
	s.deliver(t, all[:20])
	c.LoseAnswer(t)
	s.deliver(t, all[20:40])
	s.deliver(t, all[40:])
	checkArrived(t, h, c.Read(t, len(all)), all)
	if d, ok := s.Sink.(relay.Duplicates); ok && s.position != "" {
		if n := d.TakeDuplicates(); n > 0 {
			t.Errorf("%d messages were published again: mark the error by relay.Unknown", n)
		}
	}
}

// sender publishes as the engine does. It publishes again what is not confirmed.
// Before that, after an error of unknown outcome, it reads the far end back.
type sender struct {
	relay.Sink
	position string // of the sink when it was opened; "" if it cannot be read back
	unknown  bool
}

func newSender(t testing.TB, sink relay.Sink) *sender {
	t.Helper()
	s := &sender{Sink: sink}
	if r, ok := sink.(relay.Resumer); ok {
		var err error
		if s.position, err = r.Position(withTimeout(t)); err != nil {
			t.Fatalf("Position() = %v", err)
		}
	}
	return s
}

// deliver returns when all of batch is confirmed.
func (s *sender) deliver(t testing.TB, batch []relay.Message) {
	t.Helper()
	ctx := withTimeout(t)
	for rest := batch; len(rest) > 0; {
		var err error
		if rest, err = s.try(ctx, rest); len(rest) == 0 {
			return
		}
		if ctx.Err() != nil || relay.IsFatal(err) {
			t.Fatalf("Publish = %v, with %d of %d messages left", err, len(rest), len(batch))
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// try publishes batch once and returns the messages that are not confirmed.
func (s *sender) try(ctx context.Context, batch []relay.Message) ([]relay.Message, error) {
	if s.unknown && s.position != "" {
		var err error
		if batch, err = s.withoutArrived(ctx, batch); err != nil || len(batch) == 0 {
			return batch, err
		}
	}
	err := s.Publish(ctx, batch)
	s.unknown = relay.IsUnknown(err)
	return unconfirmed(err, batch), err
}

// withoutArrived reads the far end back until two reads agree, and returns the
// messages of batch that are not there.
func (s *sender) withoutArrived(ctx context.Context, batch []relay.Message) ([]relay.Message, error) {
	seen := make(map[string]bool)
	for before := -1; before != len(seen); {
		before = len(seen)
		if err := s.Sink.(relay.Resumer).Resume(ctx, s.position, func(id string) { seen[id] = true }); err != nil {
			return batch, err
		}
		select {
		case <-ctx.Done():
			return batch, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	var rest []relay.Message
	for i := range batch {
		if !seen[batch[i].ID] {
			rest = append(rest, batch[i])
		}
	}
	return rest, nil
}

func unconfirmed(err error, batch []relay.Message) []relay.Message {
	var partial *relay.BatchError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &partial):
		return batch
	}
	var rest []relay.Message
	for i := range batch {
		if partial.Failed[i] != nil {
			rest = append(rest, batch[i])
		}
	}
	return rest
}

func testSinkClosed(t *testing.T, h SinkHarness) {
	c := h.New(t)
	sink := c.Open(t)
	publish(t, sink, c.messages(1, 1, 1))
	if err := sink.Close(); err != nil {
		t.Errorf("Close() = %v", err)
	}
	if err := sink.Publish(withTimeout(t), c.messages(2, 1, 1)); err == nil {
		t.Error("Publish after Close = nil, want an error")
	}
}

func testSinkReopen(t *testing.T, h SinkHarness) {
	c := h.New(t)
	all := c.messages(1, 60, 6)
	for i := 0; i < len(all); i += 20 {
		sink := c.Open(t)
		publish(t, sink, all[i:i+20])
		if err := sink.Close(); err != nil {
			t.Fatalf("Close() = %v", err)
		}
	}
	checkArrived(t, h, c.Read(t, len(all)), all)
}

// The next owner finds the messages that a crashed owner published after its last
// checkpoint. It finds none that lie before, and none of other writers.
func testSinkResume(t *testing.T, h SinkHarness) {
	c := h.New(t)
	sink := open(t, c)
	before, ok := sink.(relay.Resumer)
	if !ok {
		t.Skip("the sink cannot read back what it wrote")
	}
	ctx := withTimeout(t)
	first, err := before.Position(ctx)
	if err != nil || first == "" {
		t.Fatalf("Position() of a fresh sink = %q, %v; want a position", first, err)
	}
	publish(t, sink, c.messages(1, 30, 5))
	if c.Foreign != nil {
		c.Foreign(t)
	}
	second, err := before.Position(ctx)
	if err != nil {
		t.Fatalf("Position() = %v", err)
	}
	after := c.messages(31, 40, 5)
	publish(t, sink, after)
	if c.Foreign != nil {
		c.Foreign(t)
	}
	for from, want := range map[string]int{first: 70, second: 40} {
		seen := make(map[string]bool)
		successor := open(t, c).(relay.Resumer)
		if err := successor.Resume(ctx, from, func(id string) { seen[id] = true }); err != nil {
			t.Fatalf("Resume(%s) = %v", from, err)
		}
		found := 0
		for i := range 70 {
			if seen[Message(i+1, "").ID] {
				found++
			}
		}
		if found != want || len(seen) > want+2 {
			t.Errorf("Resume(%s) found %d of ours among %d, want %d", from, found, len(seen), want)
		}
		// The next owner continues from there.
		if pos, err := successor.Position(ctx); err != nil || pos == "" {
			t.Errorf("Position() after Resume = %q, %v", pos, err)
		}
	}
}

func testSinkLimits(t *testing.T, h SinkHarness) {
	l, ok := open(t, h.New(t)).(relay.Limiter)
	if !ok {
		t.Skip("the sink takes batches of any size")
	}
	if m, b := l.Limits(); m < 0 || b < 0 {
		t.Errorf("Limits() = %d messages, %d bytes; want none negative", m, b)
	}
}

func testSinkRestart(t *testing.T, h SinkHarness) {
	if h.Restart == nil {
		t.Skip("no server to restart")
	}
	c := h.New(t)
	s := newSender(t, open(t, c))
	all := c.messages(1, 40, 4)
	s.deliver(t, all[:20])
	h.Restart(t)
	s.deliver(t, all[20:])
	checkArrived(t, h, c.Read(t, len(all)), all)
}

func permanentFor(err error, i int) bool {
	var partial *relay.BatchError
	if errors.As(err, &partial) {
		return relay.IsPermanent(partial.Failed[i])
	}
	return relay.IsPermanent(err)
}
