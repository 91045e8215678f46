package engine_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// Encoders keep the batch in hand in buffers of their own.
func TestRedriveIsNotEncodedBesideNewRows(t *testing.T) {
	b := newBench(10, 10)
	var busy atomic.Bool
	b.cfg.Transform = func(_ []relay.Message, buf []byte) []byte {
		if !busy.CompareAndSwap(false, true) {
			t.Error("two batches are encoded at a time")
		}
		time.Sleep(100 * time.Microsecond)
		busy.Store(false)
		return buf
	}
	b.sink.answer = poison(false, 3)
	b.start()
	for i := range 200 {
		b.source.insert(numbered(11+i, 11+i)...)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(200 * time.Microsecond)
	}
	b.stop()
	if err := <-b.result; err != nil {
		t.Errorf("Run = %v after a stop, want nil", err)
	}
}

// A message that cannot be encoded is dead when it is redriven, even if it was parked:
// it is not redriven again at once.
func TestRedriveOfWhatCannotBeEncodedEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1, 1)
		encoded := 0
		b.cfg.Transform = func(batch []relay.Message, buf []byte) []byte {
			for i := range batch {
				if batch[i].OutboxID != 2 {
					continue
				}
				if encoded++; encoded > 10 {
					t.Errorf("row 2 was encoded %d times", encoded)
					return buf
				}
				batch[i].Err, batch[i].Body = relay.Permanent(errors.New("no such field")), nil
			}
			return buf
		}
		b.sink.answer = poison(false, 1)
		b.start()
		time.Sleep(time.Second)
		b.source.insert(relaytest.Message(2, "k0"))
		time.Sleep(time.Second)
		want(t, "class of the second dead letter", b.ledger.held()[1].Class, engine.ClassParked)
		b.sink.script(nil)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 1))
		want(t, "dead letters", len(b.ledger.held()), 1)
		want(t, "message 2 is dead", b.ledger.dead["outbox_orders:2:0"], true)
	})
}

// A dead letter that has another id by its configuration now, and fails again, is dead
// under that id.
func TestRedriveUnderAnotherID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(3, 1)
		b.sink.answer = poison(false, 2)
		b.start()
		time.Sleep(time.Second)
		b.stop()
		<-b.result
		second := &bench{source: b.source.reopen(b.ledger.state.Checkpoint), queue: b.queue, sink: b.sink, ledger: b.ledger, cfg: b.cfg}
		calls := 0
		second.cfg.Source = second.source
		second.cfg.Transform = func(batch []relay.Message, buf []byte) []byte {
			if calls++; calls > 10 {
				t.Error("dead letters are redriven again and again")
				return buf
			}
			for i := range batch {
				batch[i].ID = "source#" + batch[i].ID
			}
			return buf
		}
		b.ledger.retryAll()
		second.start()
		time.Sleep(time.Second)
		second.finish(t)
		var ids []string
		for _, letter := range b.ledger.held() {
			ids = append(ids, letter.Message.ID)
		}
		want(t, "dead letters", ids, []string{"source#outbox_orders:2:0", "source#outbox_orders:3:0"})
	})
}

// A stop inside a redrive leaves what the sink does not have, and repeats nothing of
// what it has.
func TestStopInsideARedrive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(40, 40)
		b.cfg.Sink = slow{b.sink}
		b.sink.answer = poison(false, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25)
		b.start()
		time.Sleep(time.Minute)
		want(t, "dead letters", len(b.ledger.held()), 25)
		b.sink.script(nil)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(1500 * time.Millisecond)
		b.finish(t)
		want(t, "arrived", b.arrived(), append(numbers(26, 40), numbers(1, 20)...))
		want(t, "dead letters that are left", len(b.ledger.held()), 5)
	})
}
