package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// table is a Checkpointer over a slice: an outbox in memory.
type table struct {
	mu      sync.Mutex
	rows    []relay.Message
	next    int
	settled map[int]bool
	more    chan struct{}
}

func newTable(n, keys int) *table {
	s := &table{settled: make(map[int]bool), more: make(chan struct{}, 1)}
	for i := range n {
		s.rows = append(s.rows, relaytest.Message(i+1, fmt.Sprintf("k%d", i%keys)))
	}
	return s
}

// reopen is what a restart sees: everything beyond the checkpoint again.
func (s *table) reopen(at relay.Checkpoint) *table {
	n := &table{rows: s.rows, settled: make(map[int]bool), more: make(chan struct{}, 1)}
	n.next = int(at.LastID)
	for i := range n.next {
		n.settled[i+1] = true
	}
	return n
}

func (s *table) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		s.mu.Lock()
		end := min(len(s.rows), s.next+limit)
		batch := slices.Clone(s.rows[s.next:end])
		s.next = end
		s.mu.Unlock()
		if len(batch) > 0 {
			return batch, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.more:
		}
	}
}

// read returns how many rows were received.
func (s *table) read() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.next
}

func (s *table) insert(rows ...relay.Message) {
	s.mu.Lock()
	s.rows = append(s.rows, rows...)
	s.mu.Unlock()
	s.more <- struct{}{}
}

func (s *table) Ack(context.Context, []relay.Message) error { panic("a Checkpointer is not acked") }
func (s *table) Close() error                               { return nil }

func (s *table) Checkpoint(batch []relay.Message) (relay.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		s.settled[int(batch[i].OutboxID)] = true
	}
	upTo := 0
	for s.settled[upTo+1] {
		upTo++
	}
	return relay.Checkpoint{State: json.RawMessage(strconv.Itoa(upTo)), LastID: int64(upTo)}, nil
}

func (s *table) Committed(context.Context, relay.Checkpoint) error { return nil }

// memory is a Ledger that keeps its commits.
type memory struct {
	mu      sync.Mutex
	state   engine.State
	stored  []engine.DeadLetter
	dead    map[string]bool
	commits int
	total   engine.Commit
	fenced  bool
	fail    error
}

func newMemory() *memory { return &memory{dead: make(map[string]bool)} }

func (l *memory) Commit(_ context.Context, c engine.Commit) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fenced {
		return engine.ErrFenced
	}
	if l.fail != nil {
		return l.fail
	}
	l.commits++
	if c.Checkpoint != nil {
		l.state.Checkpoint = *c.Checkpoint
	}
	if c.Position != "" {
		l.state.Position = c.Position
	}
	l.total.Delivered += c.Delivered
	l.total.Skipped += c.Skipped
	l.total.Unexpected += c.Unexpected
	l.total.Filtered += c.Filtered
	for _, letter := range c.DeadLetters {
		letter.Message.Key = l.Key(letter.Message.Key)
		at := slices.IndexFunc(l.stored, func(o engine.DeadLetter) bool { return o.Message.ID == letter.Message.ID })
		if at < 0 {
			letter.ID = int64(len(l.stored) + 1)
			l.stored = append(l.stored, letter)
		}
		l.dead[letter.Message.ID] = !letter.Parked()
	}
	l.stored = slices.DeleteFunc(l.stored, func(o engine.DeadLetter) bool { return slices.Contains(c.Redriven, o.ID) })
	return nil
}

func (l *memory) Deliverable(_ context.Context, limit int) (out []engine.DeadLetter, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	blocked := make(map[string]bool)
	for _, letter := range l.stored {
		if key := letter.Message.Key; l.dead[letter.Message.ID] {
			blocked[key] = true
		} else if !blocked[key] && len(out) < limit {
			out = append(out, letter)
		}
	}
	return out, nil
}

func (l *memory) ParkedKeys(context.Context) (keys []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, letter := range l.stored {
		keys = append(keys, letter.Message.Key)
	}
	return keys, nil
}

// Key changes those that are not text.
func (l *memory) Key(key string) string { return strings.ToValidUTF8(key, "?") }

func (l *memory) held() []engine.DeadLetter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.stored)
}

func (l *memory) fence(yes bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fenced = yes
}

func (l *memory) retryAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.dead)
}

// script is a sink that asks answer for the result of each Publish, and keeps the
// confirmed messages in a queue.
type script struct {
	relay.Sink
	mu     sync.Mutex
	answer func(call int, batch []relay.Message) error
	calls  int
}

// script replaces the answers while the engine runs.
func (s *script) script(answer func(int, []relay.Message) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *script) Publish(ctx context.Context, batch []relay.Message) error {
	s.mu.Lock()
	s.calls++
	answer, call := s.answer, s.calls
	s.mu.Unlock()
	if answer != nil {
		err := answer(call, batch)
		var partial *relay.BatchError
		if err != nil && !errors.As(err, &partial) {
			return err
		}
		if partial != nil {
			for i := range batch {
				if partial.Failed[i] == nil {
					_ = s.Sink.Publish(ctx, batch[i:i+1])
				}
			}
			return err
		}
	}
	return s.Sink.Publish(ctx, batch)
}

func noTransform(_ []relay.Message, buf []byte) []byte { return buf }

type bench struct {
	source *table
	queue  *relaytest.Queue
	sink   *script
	ledger *memory
	cfg    engine.Config
	engine *engine.Engine
	stop   context.CancelFunc
	kill   context.CancelFunc
	result chan error
}

func newBench(n, keys int) *bench {
	b := &bench{source: newTable(n, keys), queue: new(relaytest.Queue), ledger: newMemory()}
	b.sink = &script{Sink: b.queue.Sink()}
	b.cfg = engine.Config{Pipeline: "test", Source: b.source, Sink: b.sink, Transform: noTransform, Ledger: b.ledger, Meter: new(observe.Pipeline)}
	return b
}

func (b *bench) start() {
	ctx, kill := context.WithCancel(context.Background())
	stop, end := context.WithCancel(context.Background())
	b.kill, b.stop, b.result = kill, end, make(chan error, 1)
	b.cfg.State.NoDeadLetters = len(b.ledger.held()) == 0
	b.engine = engine.New(b.cfg)
	go func() { b.result <- b.engine.Run(ctx, stop) }()
}

// finish stops in good order, and checks that all n rows arrived in order.
func (b *bench) finish(t *testing.T) {
	t.Helper()
	synctest.Wait()
	b.stop()
	if err := <-b.result; err != nil {
		t.Errorf("Run = %v after a stop, want nil", err)
	}
}

func (b *bench) arrived() (ids []string) {
	for _, m := range b.queue.Messages() {
		ids = append(ids, strings.TrimSuffix(strings.TrimPrefix(m.ID, "outbox_orders:"), ":0"))
	}
	return ids
}

func want[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", what, diff)
	}
}

func numbers(from, to int) (s []string) {
	for i := from; i <= to; i++ {
		s = append(s, strconv.Itoa(i))
	}
	return s
}

func TestDeliversInOrderAndCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(20_000, 100)
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 20_000))
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 20_000)
		want(t, "delivered", b.ledger.total.Delivered, 20_000)
		if b.ledger.commits > 10 {
			t.Errorf("%d commits for a backlog that took no time, want few", b.ledger.commits)
		}
	})
}

func TestRetriesForeverInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(500, 5)
		b.cfg.Batch = 50
		var states []string
		b.cfg.Changed = func(err error) { states = append(states, fmt.Sprint(err)) }
		down := time.Now().Add(time.Hour)
		b.sink.answer = func(int, []relay.Message) error {
			if time.Now().Before(down) {
				return errors.New("broker is down")
			}
			return nil
		}
		b.start()
		time.Sleep(time.Hour + time.Second) // back within a second
		synctest.Wait()
		want(t, "arrived", b.arrived(), numbers(1, 500))
		want(t, "dead letters", len(b.ledger.held()), 0)
		want(t, "states", states, []string{"publish: broker is down", "<nil>"})
		b.finish(t)
	})
}

// A far end that refuses what it could not take before has recovered, even if nothing
// follows. A burst of dead letters is one line of the log.
func TestRefusalAfterAnOutageEndsTheRetries(t *testing.T) {
	for name, refuse := range map[string]func(batch []relay.Message) error{
		"the batch": func([]relay.Message) error { return relay.Permanent(errors.New("422")) },
		"each message": func(batch []relay.Message) error {
			outcome := relay.NewOutcome(batch)
			outcome.FailRest(relay.Permanent(errors.New("422")))
			return outcome.Err()
		},
	} {
		t.Run(name, func(t *testing.T) { testRefusalAfterAnOutage(t, refuse) })
	}
}

func testRefusalAfterAnOutage(t *testing.T, refuse func(batch []relay.Message) error) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(20, 2)
		b.cfg.OnError = engine.OnErrorSkip
		var log bytes.Buffer
		b.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		var states []string
		b.cfg.Changed = func(err error) { states = append(states, fmt.Sprint(err)) }
		up := time.Now().Add(time.Minute)
		b.sink.answer = func(_ int, batch []relay.Message) error {
			if time.Now().Before(up) {
				return errors.New("503")
			}
			return refuse(batch)
		}
		b.start()
		time.Sleep(time.Minute + 2*time.Second)
		synctest.Wait()
		want(t, "states", states, []string{"publish: 503", "<nil>"})
		b.finish(t)
		want(t, "dead letters", len(b.ledger.held()), 20)
		if got := log.String(); strings.Count(got, "dead-lettered") != 1 || !strings.Contains(got, "count=20") {
			t.Errorf("20 dead letters at once are logged as\n%s", got)
		}
	})
}

func TestPartialFailureIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.sink.answer = func(call int, batch []relay.Message) error {
			if call > 3 {
				return nil
			}
			return answer(batch, func(i int) error {
				if i == len(batch)/2 {
					return errors.New("leader changed")
				}
				return nil
			})
		}
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		assertKeyOrder(t, b, 100, 10)
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 100)
		want(t, "delivered", b.ledger.total.Delivered, 100)
	})
}

func assertKeyOrder(t *testing.T, b *bench, n, keys int) {
	t.Helper()
	last := make(map[int]int)
	ids := b.arrived()
	for _, id := range ids {
		i, _ := strconv.Atoi(id)
		if i < last[i%keys] {
			t.Errorf("message %d arrived after %d of its key", i, last[i%keys])
		}
		last[i%keys] = i
	}
	want(t, "number of arrivals", len(ids), n)
}

// poison refuses messages by number, one by one or with the whole batch.
func poison(whole bool, numbers ...int64) func(int, []relay.Message) error {
	return func(_ int, batch []relay.Message) error {
		err := answer(batch, func(i int) error {
			if slices.Contains(numbers, batch[i].OutboxID) {
				return relay.Permanent(errors.New("too large"))
			}
			return nil
		})
		if whole && err != nil {
			return relay.Permanent(errors.New("something in there is too large"))
		}
		return err
	}
}

// answer is what a sink returns for a batch: refuse has the error of message i, or nil.
func answer(batch []relay.Message, refuse func(i int) error) error {
	outcome := relay.NewOutcome(batch)
	for i := range batch {
		if outcome.Held(i) {
			continue
		}
		if err := refuse(i); err != nil {
			outcome.Fail(i, err)
		} else {
			outcome.Confirm(i)
		}
	}
	return outcome.Err()
}

func TestPoisonParksItsKeyAlone(t *testing.T) {
	for _, whole := range []bool{false, true} {
		t.Run(fmt.Sprintf("whole=%v", whole), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(10_000, 100)
				b.sink.answer = poison(whole, 137) // key 36, hit at 137, 237, ...
				b.start()
				time.Sleep(time.Second)
				synctest.Wait()
				want(t, "arrivals", len(b.arrived()), 10_000-99)
				want(t, "dead letters", len(b.ledger.held()), 99)
				want(t, "first dead letter", b.ledger.held()[0].Class+" "+b.ledger.held()[0].Message.ID, "refused outbox_orders:137:0")

				b.source.insert(relaytest.Message(10_001, "k36"), relaytest.Message(10_002, "k0"))
				time.Sleep(time.Second)
				want(t, "dead letters after one more of the key", len(b.ledger.held()), 100)

				b.sink.script(nil)
				b.ledger.retryAll()
				b.engine.Redrive()
				time.Sleep(time.Second)
				want(t, "dead letters after redrive", len(b.ledger.held()), 0)
				b.source.insert(relaytest.Message(10_003, "k36"))
				time.Sleep(time.Second)
				b.finish(t)
				var key36 []string
				for _, m := range b.queue.Messages() {
					if m.Key == "k36" {
						key36 = append(key36, strconv.FormatInt(m.OutboxID, 10))
					}
				}
				want(t, "the key's messages", len(key36), 102)
				if !slices.IsSortedFunc(key36, func(a, b string) int { return len(a) - len(b) }) || key36[101] != "10003" {
					t.Errorf("the key's messages arrived as %v", key36)
				}
			})
		})
	}
}

func TestRedriveThatFailsAgainKeepsTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10, 1)
		b.sink.answer = poison(false, 3)
		b.start()
		time.Sleep(time.Second)
		b.ledger.retryAll()
		b.engine.Redrive()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrived", b.arrived(), numbers(1, 2))
		want(t, "dead letters", len(b.ledger.held()), 8)
		want(t, "the head is dead", b.ledger.dead["outbox_orders:3:0"], true)
	})
}

func TestSkipGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10, 1)
		b.cfg.OnError = engine.OnErrorSkip
		b.sink.answer = poison(false, 3)
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrived", b.arrived(), append(numbers(1, 2), numbers(4, 10)...))
		want(t, "dead letters", len(b.ledger.held()), 1)
	})
}

func TestHaltStopsInFront(t *testing.T) {
	for _, undecodable := range []bool{false, true} {
		t.Run(fmt.Sprintf("undecodable=%v", undecodable), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(10, 1)
				b.cfg.OnError = engine.OnErrorHalt
				if undecodable {
					b.source.rows[2].Err = errors.New("payload version 2")
				} else {
					b.sink.answer = poison(false, 3)
				}
				b.start()
				err := <-b.result
				if !relay.IsFatal(err) || !strings.Contains(err.Error(), "outbox_orders:3:0") {
					t.Errorf("Run = %v, want a fatal error that names the message", err)
				}
				want(t, "arrived", b.arrived(), numbers(1, 2))
				want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 2)
				want(t, "dead letters", len(b.ledger.held()), 0)
			})
		})
	}
}

func TestUndecodableIsDeadLettered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10, 1)
		b.source.rows[2].Err = errors.New("payload version 2")
		b.source.rows[2].Key = ""
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrivals", len(b.arrived()), 9)
		want(t, "dead letter", b.ledger.held()[0].Reason, "payload version 2")
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 10)
	})
}

// What is read back from a position means nothing without knowing which source's
// messages lie behind it.
func TestPositionComesWithACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(0, 1)
		b.cfg.Sink = &resumableSink{script: b.sink, queue: b.queue}
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "state", b.ledger.state, engine.State{Position: "0", Checkpoint: relay.Checkpoint{State: json.RawMessage("0")}})
	})
}

// A crash between publish and checkpoint: the successor reads the tail back.
func TestResumeSkipsWhatArrived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(3000, 10)
		resumable := &resumableSink{script: b.sink, queue: b.queue}
		b.cfg.Sink = resumable
		b.cfg.CommitEvery = time.Hour
		b.start()
		time.Sleep(time.Second)
		b.ledger.fence(true) // nothing more is written, as if killed
		b.source.insert(relaytest.Message(3001, "k0"))
		time.Sleep(time.Second)
		b.kill()
		<-b.result
		b.ledger.fence(false)
		committed := b.ledger.state.Checkpoint.LastID
		if published := len(b.queue.Messages()); int64(published) <= committed {
			t.Fatalf("the crash lost nothing: %d published, %d committed", published, committed)
		}

		second := &bench{source: b.source.reopen(b.ledger.state.Checkpoint), queue: b.queue, sink: b.sink, ledger: b.ledger, cfg: b.cfg}
		second.cfg.Source, second.cfg.State, second.cfg.CommitEvery = second.source, b.ledger.state, 0
		resumable.refuseDuplicates = t
		second.start()
		time.Sleep(time.Second)
		second.finish(t)
		want(t, "arrived", second.arrived(), numbers(1, 3001))
		want(t, "skipped", b.ledger.total.Skipped, 3001-committed)
	})
}

// A crash, and another one before the successor had delivered all that it found:
// its successor has to find the rest again.
func TestResumeSurvivesAnotherCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(3000, 10)
		resumable := &resumableSink{script: b.sink, queue: b.queue}
		b.cfg.Sink = resumable
		b.start()
		time.Sleep(time.Second)
		b.ledger.fence(true) // nothing more is written, as if killed
		b.source.insert(numbered(3001, 4000)...)
		time.Sleep(time.Second)
		b.kill()
		<-b.result
		b.ledger.fence(false)
		resumable.refuseDuplicates = t
		for _, upTo := range []int{3064, 3200, 4001} {
			b = &bench{source: b.source.reopen(b.ledger.state.Checkpoint), queue: b.queue, sink: b.sink, ledger: b.ledger, cfg: b.cfg}
			all := b.source.rows
			b.source.rows = append(slices.Clone(all[:min(upTo, len(all))]), numbered(len(all)+1, upTo)...)
			b.cfg.Source, b.cfg.State = b.source, b.ledger.state
			b.start()
			time.Sleep(time.Second)
			b.kill()
			<-b.result
			want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, int64(upTo))
			b.source.rows = append(b.source.rows, all[min(upTo, len(all)):]...)
		}
		want(t, "arrived", b.arrived(), numbers(1, 4001))
	})
}

// A dead letter is not delivered again if the owner that delivered it was killed before
// it stored that.
func TestRedriveSurvivesACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10, 2)
		resumable := &resumableSink{script: b.sink, queue: b.queue, refuseDuplicates: t}
		b.cfg.Sink = resumable
		b.sink.answer = poison(false, 3)
		b.start()
		time.Sleep(time.Second)
		b.sink.script(nil)
		b.ledger.retryAll()
		b.ledger.fence(true)
		b.engine.Redrive()
		time.Sleep(time.Second)
		b.kill()
		<-b.result
		b.ledger.fence(false)
		want(t, "arrived", len(b.arrived()), 10)
		want(t, "dead letters", len(b.ledger.held()), 4)

		second := &bench{source: b.source.reopen(b.ledger.state.Checkpoint), queue: b.queue, sink: b.sink, ledger: b.ledger, cfg: b.cfg}
		second.cfg.Source, second.cfg.State = second.source, b.ledger.state
		second.start()
		time.Sleep(time.Second)
		second.finish(t)
		want(t, "arrived", len(second.arrived()), 10)
		want(t, "dead letters", len(b.ledger.held()), 0)
	})
}

func numbered(from, to int) (rows []relay.Message) {
	for i := from; i <= to; i++ {
		rows = append(rows, relaytest.Message(i, fmt.Sprintf("k%d", i%10)))
	}
	return rows
}

// resumableSink fails the test when a message comes a second time.
type resumableSink struct {
	*script
	queue            *relaytest.Queue
	refuseDuplicates *testing.T
}

func (s *resumableSink) Publish(ctx context.Context, batch []relay.Message) error {
	if s.refuseDuplicates != nil {
		seen := make(map[string]bool)
		for _, m := range s.queue.Messages() {
			seen[m.ID] = true
		}
		for i := range batch {
			if seen[batch[i].ID] {
				s.refuseDuplicates.Errorf("message %s was published twice", batch[i].ID)
			}
		}
	}
	return s.script.Publish(ctx, batch)
}

func (s *resumableSink) Position(ctx context.Context) (string, error) {
	return s.Sink.(relay.Resumer).Position(ctx)
}

func (s *resumableSink) Resume(ctx context.Context, position string, seen func(string)) error {
	return s.Sink.(relay.Resumer).Resume(ctx, position, seen)
}

func TestFencedOwnerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.ledger.fenced = true
		b.start()
		if err := <-b.result; !errors.Is(err, engine.ErrFenced) {
			t.Errorf("Run = %v, want ErrFenced", err)
		}
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 0)
	})
}

func TestUntrustedLeasePublishesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.cfg.Trusted = func() bool { return false }
		b.start()
		if err := <-b.result; !errors.Is(err, engine.ErrFenced) {
			t.Errorf("Run = %v, want ErrFenced", err)
		}
		want(t, "arrivals", len(b.arrived()), 0)
	})
}

func TestStopDoesNotWaitForASinkThatIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		b.start()
		time.Sleep(time.Minute)
		began := time.Now()
		b.finish(t)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("stopping took %s", took)
		}
		want(t, "dead letters", len(b.ledger.held()), 0)
	})
}

func TestCommitRetriesWhileTheDatabaseIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(100, 10)
		b.ledger.fail = errors.New("connection refused")
		b.start()
		time.Sleep(time.Minute)
		b.ledger.mu.Lock()
		b.ledger.fail = nil
		b.ledger.mu.Unlock()
		time.Sleep(2 * time.Second)
		b.finish(t)
		want(t, "checkpoint", b.ledger.state.Checkpoint.LastID, 100)
	})
}

func TestInFlightBytesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(10_000, 10)
		b.cfg.InFlightBytes = 20_000
		b.cfg.Batch = 10
		b.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if read := b.source.read(); read > 400 { // about 100 bytes each
			t.Errorf("%d rows were read ahead of a sink that is down", read)
		}
		b.sink.script(nil)
		time.Sleep(10 * time.Second)
		want(t, "arrivals", len(b.arrived()), 10_000)
		b.finish(t)
	})
}

// What waits for a slow sink is bounded by what it takes at once. The memory of a pipeline
// is a wider bound, and each collection of garbage looks through what waits.
func TestReadAheadOfASmallSink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(20_000, 10)
		b.sink.answer = func(int, []relay.Message) error { return errors.New("down") }
		b.cfg.Sink = limited{b.sink, 1024}
		b.start()
		time.Sleep(time.Minute)
		synctest.Wait()
		if read := b.source.read(); read > 6*1024 {
			t.Errorf("%d rows were read ahead of a sink that takes 1,024 at once and is down", read)
		}
		b.sink.script(nil)
		time.Sleep(time.Minute)
		want(t, "arrivals", len(b.arrived()), 20_000)
		b.finish(t)
	})
}

// limited is a sink that takes up to n messages at once.
type limited struct {
	relay.Sink
	n int
}

func (l limited) Limits() (messages, bytes int) { return l.n, 0 }

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(1000, 10)
		b.cfg.RateMessages = 100
		b.start()
		time.Sleep(5*time.Second - time.Millisecond)
		synctest.Wait()
		if n := len(b.arrived()); n < 450 || n > 550 {
			t.Errorf("%d messages in five seconds at 100 a second", n)
		}
		b.finish(t)
	})
}

// A broker's messages are acknowledged after they are published, at once.
func TestBrokerSourceIsAcked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin, queue, ledger := new(relaytest.Queue), new(relaytest.Queue), newMemory()
		var batch []relay.Message
		for i := range 100 {
			batch = append(batch, relaytest.Message(i+1, "k"))
		}
		if err := origin.Sink().Publish(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
		b := &bench{queue: queue, ledger: ledger, sink: &script{Sink: queue.Sink()}}
		b.sink.answer = poison(true, 50)
		b.cfg = engine.Config{Source: origin.Source(), Sink: b.sink, Transform: noTransform, Ledger: ledger, Meter: new(observe.Pipeline)}
		b.start()
		time.Sleep(time.Second)
		b.finish(t)
		want(t, "arrivals", len(b.arrived()), 49)
		want(t, "dead letters", len(ledger.held()), 51)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if left, err := origin.Source().Receive(ctx, 10); err == nil {
			t.Errorf("%d messages are not acknowledged", len(left))
		}
	})
}

// The counts of a broker's messages are stored soon after its last message, not with the next.
func TestCountsOfAQuietBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		origin, queue, ledger := new(relaytest.Queue), new(relaytest.Queue), newMemory()
		b := &bench{queue: queue, ledger: ledger, sink: &script{Sink: queue.Sink()}}
		b.cfg = engine.Config{Source: origin.Source(), Sink: b.sink, Transform: noTransform, Ledger: ledger, Meter: new(observe.Pipeline)}
		b.start()
		for i := range 100 {
			if err := origin.Sink().Publish(t.Context(), []relay.Message{relaytest.Message(i+1, "k")}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		ledger.mu.Lock()
		want(t, "delivered", ledger.total.Delivered, 100)
		ledger.mu.Unlock()
		b.finish(t)
		want(t, "delivered after the stop", ledger.total.Delivered, 100)
	})
}
