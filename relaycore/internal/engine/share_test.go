package engine_test

import (
	"context"
	"errors"
	"fmt"
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

// What cannot be encoded is dead when it is redriven, though it had only waited:
// it must not come again at once.
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
		want(t, "class of the second letter", b.ledger.held()[1].Class, engine.ClassParked)
		b.sink.say(nil)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 1))
		want(t, "letters", len(b.ledger.held()), 1)
		want(t, "letter 2 is dead", b.ledger.dead["outbox_orders:2:0"], true)
	})
}

// A letter that its configuration gives another id now, and that fails again, is
// dead under that id.
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
				t.Error("letters are redriven again and again")
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
		want(t, "letters", ids, []string{"source#outbox_orders:2:0", "source#outbox_orders:3:0"})
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
		want(t, "letters", len(b.ledger.held()), 25)
		b.sink.say(nil)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(1500 * time.Millisecond)
		b.finish(t)
		want(t, "arrived", b.arrived(), append(numbers(26, 40), numbers(1, 20)...))
		want(t, "letters that are left", len(b.ledger.held()), 5)
	})
}

// Of a key, what comes before a row that cannot be decoded goes out, or dies before it.
func TestWhatComesBeforeAnUndecodableRow(t *testing.T) {
	for name, tc := range map[string]struct {
		poison  int64
		arrived []string
		letters []string
	}{
		"is delivered": {0, numbers(1, 2), []string{"3 decode", "4 parked"}},
		"is refused":   {2, numbers(1, 1), []string{"2 refused", "3 decode", "4 parked"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(4, 1)
				b.source.rows[2].Err = relay.Permanent(errors.New("not JSON"))
				b.source.rows[2].Row = nil
				b.sink.answer = poison(false, tc.poison)
				b.start()
				time.Sleep(time.Second)
				b.finish(t)
				want(t, "arrived", b.arrived(), tc.arrived)
				var letters []string
				for _, letter := range b.ledger.held() {
					letters = append(letters, fmt.Sprintf("%d %s", letter.Message.OutboxID, letter.Class))
				}
				want(t, "letters", letters, tc.letters)
			})
		})
	}
}
