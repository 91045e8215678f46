package engine_test

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// A message that the filter drops is settled: the checkpoint passes it. It is dropped even
// behind a dead letter of its key, whose other messages stay parked in order.
func TestFilteredMessagesAreSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10_000, 100)
		var all atomic.Bool // drop every message
		b.cfg.Transform = func(batch []relay.Message, buf []byte) []byte {
			for i := range batch {
				if batch[i].OutboxID%2 == 0 || all.Load() {
					batch[i].Err = relay.ErrFiltered
				}
			}
			return buf
		}
		b.sink.answer = poison(false, 137) // its key has 99 more, all odd
		b.start()
		time.Sleep(time.Second)
		want(t, "arrivals", len(b.arrived()), 5000-99)
		want(t, "dead letters", len(b.ledger.held()), 99)

		b.source.insert(relaytest.Message(10_001, "k0"), relaytest.Message(10_002, b.ledger.held()[0].Message.Key))
		time.Sleep(time.Second)
		want(t, "dead letters after a filtered one of the key", len(b.ledger.held()), 99)

		// The filter as it is now decides on dead letters, too.
		all.Store(true)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "dead letters after a redrive", len(b.ledger.held()), 0)
		want(t, "arrivals after a redrive", len(b.arrived()), 5001-99)
		want(t, "filtered", b.ledger.total.Filtered, int64(5000+1+99))
		want(t, "delivered", b.ledger.total.Delivered, int64(5001-99))
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(10_002))
	})
}

// A batch of filtered messages alone is acknowledged.
func TestFilteredBatchIsAcked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Transform = func(batch []relay.Message, buf []byte) []byte {
			for i := range batch {
				batch[i].Err = relay.ErrFiltered
			}
			return buf
		}
		queue := new(relaytest.Queue)
		if err := queue.Sink().Publish(t.Context(), []relay.Message{relaytest.Message(1, "k"), relaytest.Message(2, "k")}); err != nil {
			t.Fatal(err)
		}
		b.cfg.Source = queue.Source()
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "filtered", b.ledger.total.Filtered, int64(2))
		want(t, "arrivals", len(b.arrived()), 0)
	})
}
