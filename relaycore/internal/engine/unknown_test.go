package engine_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// lossy is a sink that loses the answers to some calls. It fails the test if a
// message that arrived is published again.
type lossy struct {
	*resumableSink
	t       *testing.T
	lose    func(call int, batch []relay.Message) error // nil: nothing is lost
	calls   int
	resumes int
	resume  func(read int) error // before the read-th Resume; nil: it works
	blank   bool                 // Position is "", as before the first message
}

func (s *lossy) Publish(ctx context.Context, batch []relay.Message) error {
	s.calls++
	if err := s.resumableSink.Publish(ctx, batch); err != nil || s.lose == nil {
		return err
	}
	return s.lose(s.calls, batch)
}

func (s *lossy) Position(ctx context.Context) (string, error) {
	if s.blank {
		return "", nil
	}
	return s.resumableSink.Position(ctx)
}

func (s *lossy) Resume(ctx context.Context, position string, seen func(string)) error {
	s.resumes++
	if s.resume != nil {
		if err := s.resume(s.resumes); err != nil {
			return err
		}
	}
	return s.resumableSink.Resume(ctx, position, seen)
}

var errLost = errors.New("connection lost")

// first loses the answer to the first call.
func first(err error) func(int, []relay.Message) error {
	return func(call int, _ []relay.Message) error {
		if call > 1 {
			return nil
		}
		return err
	}
}

func TestLostAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		lose   func(call int, batch []relay.Message) error
		resume func(int) error
	}{
		"of a whole batch": {lose: first(relay.Unknown(errLost))},
		"of some messages": {lose: func(call int, batch []relay.Message) error {
			if call > 1 {
				return nil
			}
			o := relay.NewOutcome(batch)
			for i := range len(batch) / 2 {
				o.Confirm(i)
			}
			o.FailRest(relay.Unknown(errLost))
			return o.Err()
		}},
		"of call after call": {lose: func(call int, _ []relay.Message) error {
			if call > 5 {
				return nil
			}
			return relay.Unknown(errLost)
		}},
		"while the far end cannot be read": {lose: first(relay.Unknown(errLost)), resume: func(read int) error {
			if read < 20 {
				return errors.New("connection refused")
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(1000, 10)
				b.cfg.Batch = 50
				sink := &lossy{
					resumableSink: &resumableSink{script: b.sink, queue: b.queue, refuseDuplicates: t},
					t:             t, lose: tc.lose, resume: tc.resume,
				}
				b.cfg.Sink = sink
				var last error
				b.cfg.Changed = func(err error) { last = err }
				b.start()
				time.Sleep(time.Minute)
				b.finish(t)
				want(t, "arrived", b.arrived(), numbers(1, 1000))
				want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 1000)
				want(t, "position", b.ledger.state.Position, "1000")
				want(t, "delivered", b.ledger.total.Delivered, 1000)
				want(t, "state of the pipeline", last, nil)
				if sink.resumes == 0 {
					t.Error("the far end was not read back")
				}
			})
		})
	}
}

// What a lost connection carried may arrive while the far end is read.
func TestLostAnswerOfWhatArrivesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10, 1)
		sink := &lossy{resumableSink: &resumableSink{script: b.sink, queue: b.queue, refuseDuplicates: t}, t: t}
		late := b.source.rows
		b.sink.answer = func(call int, _ []relay.Message) error {
			if call > 1 {
				return nil
			}
			time.AfterFunc(60*time.Millisecond, func() { _ = b.queue.Sink().Publish(context.Background(), late) })
			return relay.Unknown(errLost)
		}
		b.cfg.Sink = sink
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 10))
		want(t, "publishes", sink.calls, 1)
	})
}

// Only what is in doubt is read back, and only where that can be done.
func TestNothingIsReadBackWithoutNeed(t *testing.T) {
	for name, tc := range map[string]struct {
		lose  error
		blank bool
		twice bool // the messages are published again
	}{
		"an error before anything was sent": {lose: errLost, twice: true},
		"a sink without a position":         {lose: relay.Unknown(errLost), blank: true, twice: true},
		"no error":                          {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(10, 1)
				sink := &lossy{
					resumableSink: &resumableSink{script: b.sink, queue: b.queue},
					t:             t, lose: first(tc.lose), blank: tc.blank,
				}
				b.cfg.Sink = sink
				b.start()
				time.Sleep(time.Minute)
				b.finish(t)
				want(t, "arrived", b.arrived(), numbers(1, 10))
				want(t, "read back", sink.resumes, 0)
				want(t, "published again", sink.calls > 1, tc.twice)
			})
		})
	}
}

// A sink that cannot be read back gets the messages again.
func TestLostAnswerOfASinkThatCannotBeReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10, 1)
		b.sink.answer = func(call int, batch []relay.Message) error {
			if call == 1 {
				_ = b.queue.Sink().Publish(context.Background(), batch)
				return relay.Unknown(errLost)
			}
			return nil
		}
		b.cfg.Sink = struct{ relay.Sink }{b.sink}
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 10))
		want(t, "delivered", b.ledger.total.Delivered, 10)
	})
}

// A message that arrived behind a refused one of its key is neither parked nor
// published again.
func TestLostAnswerBehindARefusedMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(0, 1)
		b.source.rows = []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, "a"), relaytest.Message(3, "a")}
		sink := &lossy{resumableSink: &resumableSink{script: b.sink, queue: b.queue, refuseDuplicates: t}, t: t}
		b.sink.answer = func(_ int, batch []relay.Message) error {
			_ = b.queue.Sink().Publish(context.Background(), batch[1:2])
			o := relay.NewOutcome(batch)
			o.Confirm(1)
			o.Fail(0, relay.Permanent(errors.New("too large")))
			o.FailRest(errLost)
			return o.Err()
		}
		b.cfg.Sink = sink
		b.start()
		time.Sleep(time.Minute)
		b.finish(t)
		want(t, "arrived", b.arrived(), []string{"2"})
		var held []string
		for _, letter := range b.ledger.held() {
			held = append(held, letter.Message.ID+" "+letter.Class)
		}
		want(t, "dead letters", held, []string{"outbox_orders:1:0 refused", "outbox_orders:3:0 parked"})
	})
}

// A stop does not wait for a far end that cannot be read back.
func TestStopWhileTheFarEndCannotBeReadBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Sink = &lossy{
			resumableSink: &resumableSink{script: b.sink, queue: b.queue}, t: t,
			lose:   func(int, []relay.Message) error { return relay.Unknown(errLost) },
			resume: func(int) error { return errors.New("connection refused") },
		}
		b.start()
		time.Sleep(time.Minute)
		began := time.Now()
		b.finish(t)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("stopping took %s", took)
		}
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 0)
	})
}
