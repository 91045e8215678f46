package engine_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A pipeline whose far end is away fills the budget with what it read ahead. Another
// pipeline still delivers.
func TestStuckPipelineDoesNotStarveAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := budget.New(20_000, 20_000)
		stuck, healthy := newBench(10_000, 10), newBench(10_000, 10)
		stuck.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		for _, b := range []*bench{stuck, healthy} {
			b.cfg.Budget, b.cfg.Batch = shared, 10
		}
		stuck.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if used := shared.Used(); used < 10_000 || used > 20_000 {
			t.Fatalf("%d bytes are in flight before a sink that is down; the budget is 20000", used)
		}
		healthy.start()
		time.Sleep(time.Minute)
		want(t, "arrivals", len(healthy.arrived()), 10_000)
		healthy.finish(t)
		stuck.finish(t)
		want(t, "bytes that are left in the budget", shared.Used(), int64(0))
	})
}

// A run that is abandoned while its checkpoints cannot be written gives back what it
// held: the budget is the process's.
func TestAbandonedRunGivesTheBudgetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := budget.New(1<<20, 1<<20)
		b := newBench(10_000, 10)
		b.cfg.Budget, b.cfg.Batch = shared, 10
		b.sink.answer = func(int, []relay.Message) error { time.Sleep(time.Millisecond); return nil }
		b.ledger.fail = errors.New("connection refused")
		b.start()
		time.Sleep(time.Minute)
		b.kill()
		<-b.result
		want(t, "bytes in flight after the run", shared.Used(), int64(0))
	})
}

// A pipeline whose far end is away gives up its large message when another pipeline
// waits. Its run ends, and the message is read again later.
func TestLargeMessageOfAStuckPipelineMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := budget.New(1<<20, 1000)
		stuck, healthy := newBench(2, 2), newBench(5, 2)
		stuck.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		for _, b := range []*bench{stuck, healthy} {
			b.cfg.Source, b.cfg.Budget, b.cfg.Batch, b.cfg.Copies = &asking{b.source, 300}, shared, 1, 3
		}
		stuck.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if !shared.HoldsLarge() {
			t.Fatal("the stuck pipeline holds no large message")
		}
		healthy.start()
		time.Sleep(time.Minute)
		want(t, "arrivals", len(healthy.arrived()), 5)
		if err := <-stuck.result; err == nil || relay.IsFatal(err) {
			t.Errorf("Run = %v, want an error after which the pipeline is run again", err)
		}
		stuck.kill()
		healthy.finish(t)
		want(t, "large messages that are left", shared.HoldsLarge(), false)
	})
}

// asking is a table all of whose rows are large.
type asking struct {
	*table
	bytes int64
}

func (a *asking) Wants() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next == len(a.rows) {
		return 0
	}
	return a.bytes
}

// Pipelines hold as many large messages at a time as the budget has room for, and give
// all of it back.
func TestLargeMessagesWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := budget.New(1<<20, 1000)
		var atOnce, most atomic.Int64
		var benches []*bench
		for range 4 {
			b := newBench(20, 2)
			b.cfg.Source, b.cfg.Budget, b.cfg.Batch, b.cfg.Copies = &asking{b.source, 200}, shared, 1, 2
			b.sink.answer = func(int, []relay.Message) error {
				most.Store(max(most.Load(), atOnce.Add(1)))
				time.Sleep(time.Second)
				atOnce.Add(-1)
				return nil
			}
			benches = append(benches, b)
			b.start()
		}
		time.Sleep(10 * time.Minute)
		for _, b := range benches {
			want(t, "arrivals", len(b.arrived()), 20)
			b.finish(t)
		}
		if n := most.Load(); n > 2 {
			t.Errorf("%d messages of 400 bytes were at the sinks at once, with a budget of 1000", n)
		}
		want(t, "bytes that are left in the budget", shared.Used(), int64(0))
		want(t, "large messages that are left", shared.HoldsLarge(), false)
	})
}

// What a transform makes of messages counts as what is in flight. Small rows that become
// large ones before a sink that is down do not fill the memory.
func TestGrownMessagesAreWithinTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each, bound = 10_000, 1 << 20
		shared := budget.New(4<<20, 4<<20)
		b := newBench(20_000, 10)
		var made, settled atomic.Int64 // bytes
		down := atomic.Bool{}
		down.Store(true)
		b.sink.answer = func(_ int, batch []relay.Message) error {
			if down.Load() {
				return errors.New("down")
			}
			settled.Add(int64(len(batch) * each))
			return nil
		}
		var most int64
		b.cfg.Transform = func(batch []relay.Message, buf []byte) []byte {
			for i := range batch {
				batch[i].Body = make([]byte, each)
			}
			most = max(most, made.Add(int64(len(batch)*each))-settled.Load())
			return buf
		}
		b.cfg.Budget, b.cfg.Grows, b.cfg.InFlightBytes = shared, true, bound
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := made.Load(); n < bound/2 || n > 2*bound {
			t.Errorf("%d bytes were made before a sink that is down; the bound is %d", n, bound)
		}
		down.Store(false)
		time.Sleep(10 * time.Minute)
		want(t, "arrivals", b.arrived(), numbers(1, 20_000))
		if most > 3*bound {
			t.Errorf("%d bytes were made and not published at once; the bound is %d", most, bound)
		}
		b.finish(t)
		want(t, "bytes that are left in the budget", shared.Used(), int64(0))
	})
}
