package engine_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A pipeline whose far end is away fills the budget with what it read ahead. Another
// pipeline still delivers.
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
