package engine_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// What a pipeline whose far end is away has read ahead fills the budget for as long
// as it is away. Another one delivers all the same.
func TestStuckPipelineDoesNotStarveAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := engine.NewBudget(20_000)
		stuck, healthy := newBench(10_000, 10), newBench(10_000, 10)
		stuck.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		for _, b := range []*bench{stuck, healthy} {
			b.cfg.Budget, b.cfg.Batch = budget, 10
		}
		stuck.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if used := budget.Used(); used < 10_000 || used > 20_000 {
			t.Fatalf("%d bytes are in flight before a sink that is down; the budget is 20000", used)
		}
		healthy.start()
		time.Sleep(time.Minute)
		want(t, "arrivals", len(healthy.arrived()), 10_000)
		healthy.finish(t)
		stuck.finish(t)
		want(t, "bytes that are left in the budget", budget.Used(), int64(0))
	})
}

// A run that is abandoned while its checkpoints cannot be written gives back what it
// held: the budget is the process's.
func TestAbandonedRunGivesTheBudgetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := engine.NewBudget(1 << 20)
		b := newBench(10_000, 10)
		b.cfg.Budget, b.cfg.Batch = budget, 10
		b.sink.answer = func(int, []relay.Message) error { time.Sleep(time.Millisecond); return nil }
		b.ledger.fail = errors.New("connection refused")
		b.start()
		time.Sleep(time.Minute)
		b.kill()
		<-b.result
		want(t, "bytes in flight after the run", budget.Used(), int64(0))
	})
}

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

// slow takes ten messages at a time, and a second for them.
type slow struct{ *script }

func (slow) Limits() (messages, bytes int) { return 10, 0 }

func (s slow) Publish(ctx context.Context, batch []relay.Message) error {
	time.Sleep(time.Second)
	return s.script.Publish(ctx, batch)
}

// A stop waits for the part of a batch that the sink has in its hand, and forgets none
// that came before.
func TestStopInsideABatchRepeatsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Sink = slow{b.sink}
		b.start()
		time.Sleep(3500 * time.Millisecond)
		began := time.Now()
		b.finish(t)
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		want(t, "arrived", b.arrived(), numbers(1, 40))
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(40))
	})
}

// A crash repeats no more than the part that was in the sink's hand.
func TestCrashInsideABatchRepeatsAPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Sink = slow{b.sink}
		b.start()
		time.Sleep(3500 * time.Millisecond)
		b.ledger.fence(true)
		b.kill()
		<-b.result
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(30))
	})
}

// What a limit makes a batch wait for can be long: one of bytes does not split it.
func TestStopDoesNotWaitForTheRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1000, 10)
		b.cfg.RateBytes, b.cfg.Batch = 10, 10
		b.start()
		time.Sleep(time.Second)
		began := time.Now()
		b.finish(t)
		if took := time.Since(began); took > time.Second {
			t.Errorf("stopping took %s", took)
		}
		n := len(b.arrived())
		if n == 0 || n == 1000 {
			t.Errorf("%d of 1000 messages in a second at 10 bytes a second", n)
		}
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(n))
	})
}

// Rows that the source has given and the sink does not take are late, too.
func TestLagHasWhatTheSinkHolds(t *testing.T) {
	metrics, err := observe.NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		meter := metrics.Pipeline(catalog.Key{Direction: relay.Forward, Name: "p"})
		meter.SetLag(0, 0) // as the source, which has nothing left
		b := newBench(10, 10)
		b.cfg.Meter = meter
		b.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		b.start()
		time.Sleep(time.Minute)
		want(t, "lag while the sink is down", *meter.Numbers().LagSeconds, 60.0)
		b.sink.say(nil)
		time.Sleep(time.Minute)
		want(t, "lag once all is delivered", *meter.Numbers().LagSeconds, 0.0)
		b.finish(t)
	})
}

// rewound is a table whose ids have begun again: nothing that was read back from the
// far end is to come from it.
type rewound struct{ *table }

func (rewound) Expects(string) bool { return false }

func TestNewRowsUnderOldIDsAreDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		old := relaytest.Message(7, "k7")
		if err := b.queue.Sink().Publish(t.Context(), []relay.Message{old}); err != nil {
			t.Fatal(err)
		}
		b.cfg.Sink = &resumableSink{script: b.sink, queue: b.queue}
		b.cfg.Source, b.cfg.State = rewound{b.source}, engine.State{Position: "0"}
		published := 0
		b.sink.answer = func(_ int, batch []relay.Message) error {
			published += len(batch)
			return nil
		}
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "published", published, 100)
	})
}
