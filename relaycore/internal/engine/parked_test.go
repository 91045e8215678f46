package engine_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// A ledger may not be able to store a key as it is. Even so the key waits behind its
// dead letter, for this owner, after a redrive, and for the next one.
func TestAKeyWaitsInItsStoredForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(0, 1)
		for i := range 3 {
			b.source.rows = append(b.source.rows, relaytest.Message(i+1, "a\xff"))
		}
		b.sink.answer = poison(false, 1)
		b.start()
		time.Sleep(time.Second)
		want(t, "dead letters", len(b.ledger.held()), 3)

		b.ledger.retryAll()
		b.engine.Redrive() // it is refused again, and the keys are read back
		time.Sleep(time.Second)
		b.source.insert(relaytest.Message(4, "a\xff"))
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrived after a redrive", b.arrived(), []string(nil))
		want(t, "dead letters after a redrive", len(b.ledger.held()), 4)

		second := &bench{source: b.source.reopen(b.ledger.state.Checkpoint), queue: b.queue, sink: b.sink, ledger: b.ledger, cfg: b.cfg}
		second.cfg.Source, second.cfg.State = second.source, b.ledger.state
		second.start()
		second.source.insert(relaytest.Message(5, "a\xff"), relaytest.Message(6, "b"))
		time.Sleep(time.Second)
		second.finish(t)
		want(t, "arrived after a restart", b.arrived(), []string{"6"})
		want(t, "dead letters after a restart", len(b.ledger.held()), 5)
	})
}
