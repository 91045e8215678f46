package relaytest_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func ExampleQueue() {
	var queue relaytest.Queue
	sink, source := queue.Sink(), queue.Source()
	ctx := context.Background()

	_ = sink.Publish(ctx, []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, "b")})
	batch, _ := source.Receive(ctx, 10)
	for i := range batch {
		fmt.Println(batch[i].ID, string(batch[i].Body))
	}
	_ = source.Ack(ctx, batch)
	// Output:
	// outbox_orders:1:0 {"n":1,"key":"a"}
	// outbox_orders:2:0 {"n":2,"key":"b"}
}

// A backend's conformance test. Its Read and Foreign use the broker's own client.
func ExampleTestSink() {
	testConformance := func(t *testing.T) {
		relaytest.TestSink(t, relaytest.SinkHarness{
			Dedup: true,
			New: func(testing.TB) relaytest.SinkCase {
				queue := new(relaytest.Queue) // a destination of the test's own
				return relaytest.SinkCase{
					Open:       func(testing.TB) relay.Sink { return queue.Sink() },
					Read:       func(testing.TB, int) []relay.Message { return queue.Messages() },
					LoseAnswer: func(testing.TB) { queue.LoseAnswer() },
				}
			},
		})
	}
	_ = testConformance // go test runs it
}

// A backend's conformance test. Its Feed uses the broker's own client.
func ExampleTestSource() {
	testConformance := func(t *testing.T) {
		relaytest.TestSource(t, relaytest.SourceHarness{
			New: func(testing.TB) relaytest.SourceCase {
				queue := new(relaytest.Queue) // an origin of the test's own
				return relaytest.SourceCase{
					Open: func(testing.TB, relay.Checkpoint) relay.Source { return queue.Source() },
					Feed: func(t testing.TB, batch []relay.Message) { _ = queue.Sink().Publish(t.Context(), batch) },
				}
			},
		})
	}
	_ = testConformance // go test runs it
}
