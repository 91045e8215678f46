package relaytest_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func sinkHarness(wrap func(relay.Sink) relay.Sink) relaytest.SinkHarness {
	return relaytest.SinkHarness{
		Dedup:  true,
		Refuse: func(_ testing.TB, m *relay.Message) { m.Body = []byte("refused") },
		New: func(testing.TB) relaytest.SinkCase {
			q := new(relaytest.Queue)
			return relaytest.SinkCase{
				Open:    func(testing.TB) relay.Sink { return wrap(q.Sink()) },
				Read:    func(testing.TB, int) []relay.Message { return q.Messages() },
				Foreign: func(t testing.TB) { feed(t, q, relay.Message{ID: "foreign:1:0"}) },

				LoseAnswer: func(testing.TB) { q.LoseAnswer() },
			}
		},
	}
}

func sourceHarness(wrap func(relay.Source) relay.Source) relaytest.SourceHarness {
	return relaytest.SourceHarness{
		New: func(testing.TB) relaytest.SourceCase {
			q := new(relaytest.Queue)
			return relaytest.SourceCase{
				Open:        func(testing.TB, relay.Checkpoint) relay.Source { return wrap(q.Source()) },
				Feed:        func(t testing.TB, batch []relay.Message) { feed(t, q, batch...) },
				FeedForeign: func(t testing.TB, body []byte) { feed(t, q, relay.Message{ID: "mem:1", Body: body}) },
			}
		},
	}
}

func feed(t testing.TB, q *relaytest.Queue, batch ...relay.Message) {
	if err := q.Sink().Publish(t.Context(), batch); err != nil {
		t.Fatalf("feed: %v", err)
	}
}

func TestMemSink(t *testing.T) {
	relaytest.TestSink(t, sinkHarness(func(s relay.Sink) relay.Sink { return s }))
}

func TestMemSource(t *testing.T) {
	relaytest.TestSource(t, sourceHarness(func(s relay.Source) relay.Source { return s }))
}

// The suite must fail each of these, in the named subtest.
var broken = map[string]struct {
	sink   func(relay.Sink) relay.Sink
	source func(relay.Source) relay.Source
	fails  string
}{
	"dropSecond":     {sink: func(s relay.Sink) relay.Sink { return dropSecond{s} }, fails: "OrderOfKeys"},
	"reorder":        {sink: func(s relay.Sink) relay.Sink { return reorder{s} }, fails: "OrderOfKeys"},
	"hidesFailure":   {sink: func(s relay.Sink) relay.Sink { return hidesFailure{s} }, fails: "RefusedInTheMiddle"},
	"ignoresCancel":  {sink: func(s relay.Sink) relay.Sink { return ignoresCancel{s} }, fails: "Cancelled"},
	"changesBatch":   {sink: func(s relay.Sink) relay.Sink { return changesBatch{s} }, fails: "BatchIsNotChanged"},
	"hidesDoubt":     {sink: func(s relay.Sink) relay.Sink { return hidesDoubt{s.(resumable)} }, fails: "LostAnswer"},
	"losesTail":      {sink: func(s relay.Sink) relay.Sink { return losesTail{s.(resumable)} }, fails: "LostAnswer"},
	"ackEarly":       {source: func(s relay.Source) relay.Source { return ackEarly{s} }, fails: "UnackedComesAgain"},
	"ackNever":       {source: func(s relay.Source) relay.Source { return ackNever{s} }, fails: "AckedDoesNotComeAgain"},
	"overLimit":      {source: func(s relay.Source) relay.Source { return overLimit{s} }, fails: "Limit"},
	"ignoresContext": {source: func(s relay.Source) relay.Source { return emptyAtOnce{s} }, fails: "WaitsUntilCancelled"},
}

type dropSecond struct{ relay.Sink }

func (s dropSecond) Publish(ctx context.Context, batch []relay.Message) error {
	if len(batch) > 1 {
		batch = append(batch[:1:1], batch[2:]...)
	}
	return s.Sink.Publish(ctx, batch)
}

type reorder struct{ relay.Sink }

func (s reorder) Publish(ctx context.Context, batch []relay.Message) error {
	for i := range slices.Backward(batch) {
		if err := s.Sink.Publish(ctx, batch[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

type hidesFailure struct{ relay.Sink }

func (s hidesFailure) Publish(ctx context.Context, batch []relay.Message) error {
	_ = s.Sink.Publish(ctx, batch)
	return nil
}

type ignoresCancel struct{ relay.Sink }

func (s ignoresCancel) Publish(ctx context.Context, batch []relay.Message) error {
	return s.Sink.Publish(context.WithoutCancel(ctx), batch)
}

// resumable is what the queue's sink is.
type resumable interface {
	relay.Sink
	relay.Resumer
	relay.Duplicates
}

// hidesDoubt returns an error as if nothing had arrived.
type hidesDoubt struct{ resumable }

func (s hidesDoubt) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.resumable.Publish(ctx, batch); err != nil {
		return errors.New(err.Error())
	}
	return nil
}

// losesTail does not find what arrived.
type losesTail struct{ resumable }

func (losesTail) Resume(context.Context, string, func(string)) error { return nil }

type changesBatch struct{ relay.Sink }

func (s changesBatch) Publish(ctx context.Context, batch []relay.Message) error {
	err := s.Sink.Publish(ctx, batch)
	batch[len(batch)-1].Key = "changed"
	return err
}

type ackEarly struct{ relay.Source }

func (s ackEarly) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	batch, err := s.Source.Receive(ctx, limit)
	_ = s.Source.Ack(ctx, batch)
	return batch, err
}

type ackNever struct{ relay.Source }

func (ackNever) Ack(context.Context, []relay.Message) error { return nil }

type overLimit struct{ relay.Source }

func (s overLimit) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	return s.Source.Receive(ctx, limit+1)
}

type emptyAtOnce struct{ relay.Source }

func (emptyAtOnce) Receive(context.Context, int) ([]relay.Message, error) { return nil, nil }

// TestSuiteBites runs the suite on each broken implementation in a process of
// its own, since a test cannot survive its own failure.
func TestSuiteBites(t *testing.T) {
	if which := os.Getenv("RELAYTEST_BROKEN"); which != "" {
		if b := broken[which]; b.sink != nil {
			relaytest.TestSink(t, sinkHarness(b.sink))
		} else {
			relaytest.TestSource(t, sourceHarness(b.source))
		}
		return
	}
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSuiteBites$/^"+b.fails+"$", "-test.timeout=20s")
			cmd.Env = append(os.Environ(), "RELAYTEST_BROKEN="+name, "RELAY_TEST_PATIENCE=2s")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestSuiteBites/"+b.fails) {
				t.Errorf("the suite did not fail %s in %s: %v\n%s", name, b.fails, err, out)
			}
		})
	}
}
