package engine_test

import (
	"context"
	"errors"
	"fmt"
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

// Rows that the source delivered and the sink refuses are late, too.
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
		b.sink.script(nil)
		time.Sleep(time.Minute)
		want(t, "lag once all is delivered", *meter.Numbers().LagSeconds, 0.0)
		b.finish(t)
	})
}

// rewound is a table whose ids have begun again: nothing that was read back from the
// far end is to come from it.
type rewound struct{ *table }

func (rewound) Expects(string) (expected, known bool) { return false, true }

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

// unsure is a source that does not know which messages are still to come.
type unsure struct{ *table }

func (unsure) Expects(string) (expected, known bool) { return true, false }

// TestPositionPassesWhatNeverComes reads a message back whose row is gone. The sink's
// position must not stay before it for ever, because each start reads all behind it.
func TestPositionPassesWhatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(150_000, 10)
		gone := relaytest.Message(1_000_000, "k7")
		if err := b.queue.Sink().Publish(t.Context(), []relay.Message{gone}); err != nil {
			t.Fatal(err)
		}
		b.cfg.Sink = &resumableSink{script: b.sink, queue: b.queue}
		b.cfg.Source, b.cfg.State = unsure{b.source}, engine.State{Position: "0"}
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "position", b.ledger.state.Position, "150001")
	})
}

// TestMarkerGoesAlone: the marker of a snapshot's end is published once all before it is
// settled, and nothing goes along with it.
func TestMarkerGoesAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(9, 3)
		b.source.rows[5].Op = relay.OpSnapshotEnd
		var calls []string
		b.sink.answer = func(call int, batch []relay.Message) error {
			calls = append(calls, fmt.Sprintf("%d to %d", batch[0].OutboxID, batch[len(batch)-1].OutboxID))
			if call == 1 {
				return &relay.BatchError{Failed: map[int]error{1: errors.New("not now")}}
			}
			return nil
		}
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "calls", calls, []string{"1 to 5", "2 to 2", "6 to 6", "7 to 9"})
	})
}

// Of a key, what comes before a row that cannot be decoded goes out, or dies before it.
func TestWhatComesBeforeAnUndecodableRow(t *testing.T) {
	for name, tc := range map[string]struct {
		poison  int64
		arrived []string
		dead    []string
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
				var dead []string
				for _, letter := range b.ledger.held() {
					dead = append(dead, fmt.Sprintf("%d %s", letter.Message.OutboxID, letter.Class))
				}
				want(t, "dead letters", dead, tc.dead)
			})
		})
	}
}

// TestUnexpectedDuplicates: what the far end had already is counted as skipped, unless the
// last owner or a failed try can have delivered it.
func TestUnexpectedDuplicates(t *testing.T) {
	crashed := engine.State{Checkpoint: relay.Checkpoint{LastID: 1}}
	for name, tc := range map[string]struct {
		state engine.State
		fails bool
		want  int64
	}{
		"a new pipeline":     {want: 3},
		"after a clean stop": {state: engine.State{Checkpoint: crashed.Checkpoint, Clean: true}, want: 3},
		"after a crash":      {state: crashed},
		"after a crash before the first checkpoint": {state: engine.State{Started: true}},
		"after a failed try":                        {fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(5, 5)
				b.cfg.Sink = &forgetful{script: b.sink, had: 3}
				b.cfg.State = tc.state
				b.sink.answer = func(call int, _ []relay.Message) error {
					if tc.fails && call == 1 {
						return errors.New("not now")
					}
					return nil
				}
				b.start()
				time.Sleep(time.Minute)
				b.finish(t)
				want(t, "skipped", b.ledger.total.Unexpected, tc.want)
			})
		})
	}
}

// forgetful is a sink whose far end had some of the first messages already.
type forgetful struct {
	*script
	had int
}

func (f *forgetful) TakeDuplicates() int {
	n := f.had
	f.had = 0
	return n
}

// refetching is a table whose rows can be read again.
type refetching struct{ *table }

func (refetching) Refetch(context.Context, int64, func(int64) error) ([]relay.Message, error) {
	return nil, relay.Permanent(errors.New("not called"))
}

// TestStreamsGoAlone: a stream is alone in its batch, in the order of its key, and a dead
// letter of it holds a reference.
func TestStreamsGoAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(9, 1)
		b.cfg.Source = refetching{b.source}
		for _, i := range []int{2, 6} {
			b.source.rows[i].Payload.Stream = &relay.Stream{RowLength: 1 << 40}
		}
		var batches []int
		b.sink.script(func(_ int, batch []relay.Message) error {
			batches = append(batches, len(batch))
			if batch[0].OutboxID == 7 {
				return relay.Permanent(errors.New("413"))
			}
			return nil
		})
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "batches", batches, []int{2, 1, 3, 1})
		want(t, "arrived", b.arrived(), numbers(1, 6))
		want(t, "stored", len(b.ledger.stored), 3)
		if l := b.ledger.stored[0]; !l.ByReference || l.Message.Row != nil || l.Message.Payload.Stream != nil || l.Class != engine.ClassRefused {
			t.Errorf("dead letter %+v, want a reference of class refused", l)
		}
	})
}
