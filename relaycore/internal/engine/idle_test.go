package engine_test

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// A thousand idle pipelines had six goroutines each.
func TestIdleRunHasTwoGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(0, 1)
		before := runtime.NumGoroutine()
		b.start()
		synctest.Wait()
		if n := runtime.NumGoroutine() - before; n > 2 {
			t.Errorf("a run without messages has %d goroutines, want 2", n)
		}
		b.finish(t)
	})
}

// The publisher of an idle run starts for a redrive, too.
func TestRedriveOfAnIdleRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1, 1)
		b.sink.answer = poison(false, 1)
		b.start()
		b.finish(t)
		want(t, "dead letters", len(b.ledger.held()), 1)
		dead := b.ledger.stored
		b.ledger.stored = nil
		b.sink.script(nil)
		b.cfg.Source = newTable(0, 1)
		b.start()
		synctest.Wait()
		b.ledger.mu.Lock()
		b.ledger.stored = dead // by a command, while nothing moves
		b.ledger.mu.Unlock()
		b.ledger.retryAll()
		b.engine.Redrive()
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 1))
		want(t, "dead letters", len(b.ledger.held()), 0)
	})
}

// Every stage of an idle run starts when it is needed, in whatever order.
func TestIdleRunStartsToMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(0, 1)
		b.start()
		synctest.Wait()
		b.engine.Redrive()
		b.source.insert(relaytest.Message(1, "k0"))
		synctest.Wait()
		large := relaytest.Message(2, "k0")
		large.Body = make([]byte, 1<<20) // more than is transformed at once
		b.source.insert([]relay.Message{large}...)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 2))
	})
}

// immediateSink is a sink at which nothing arrives late.
type immediateSink struct{ *resumableSink }

func (immediateSink) Immediate() {}

// A takeover of a file waited 100 ms for messages on a connection that it does not have.
func TestTakeoverOfAnImmediateSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1, 1)
		b.cfg.Sink = immediateSink{&resumableSink{script: b.sink, queue: b.queue}}
		b.cfg.State = engine.State{Position: "0", Started: true}
		began := time.Now()
		b.start()
		for len(b.arrived()) == 0 {
			time.Sleep(time.Millisecond)
		}
		if took := time.Since(began); took > 10*time.Millisecond {
			t.Errorf("the first message came after %s", took)
		}
		b.finish(t)
	})
}
