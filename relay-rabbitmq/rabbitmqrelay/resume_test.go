package rabbitmqrelay

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// persevere receives until it has wanted, as the engine would: an error is only
// the end of one try. It returns all that came.
func persevere(t testing.TB, src relay.Source, wanted string) (got []relay.Message, errs error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), relaytest.Patience())
	defer cancel()
	for {
		batch, err := src.Receive(ctx, 100)
		if ctx.Err() != nil || relay.IsFatal(err) {
			t.Fatalf("Receive = %v, and %q has not come (of %d messages)", err, wanted, len(got))
		}
		if err != nil {
			errs = errors.Join(errs, err)
			time.Sleep(20 * time.Millisecond)
			continue
		}
		got = append(got, batch...)
		for _, m := range batch {
			if m.ID == wanted {
				return got, errs
			}
		}
	}
}

// stream is a stream with the queue of its offset.
type stream struct {
	queue   string
	offsets string
	channel *amqp.Channel
	fed     int
}

func newStream(t testing.TB, broker string) *stream {
	t.Helper()
	s := &stream{queue: declare(t, broker, "stream", nil), channel: confirming(t, broker)}
	s.offsets = s.queue + ".kept"
	t.Cleanup(func() { _, _ = s.channel.QueueDelete(s.offsets, false, false, false) })
	return s
}

func (s *stream) feed(t testing.TB, n int) {
	t.Helper()
	for range n {
		feed(t, s.channel, s.queue, "orders.x", amqp.Publishing{Body: fmt.Appendf(nil, `{"n":%d}`, s.fed)})
		s.fed++
	}
}

// id is that of the message at an offset.
func (s *stream) id(offset int) string { return fmt.Sprintf("rabbitmq:%s:%d", s.queue, offset) }

func (s *stream) open(t testing.TB, url, more string) relay.Source {
	t.Helper()
	return mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"queue":%q,"queue_type":"stream","offset_queue":%q%s}`, url, s.queue, s.offsets, more))
}

// What is published while no session is open is not passed over, although
// nothing has been acknowledged yet.
func TestStreamStartIsKept(t *testing.T) {
	broker := endpoint(t)
	for offset, first := range map[string]int{"next": 3, "last": 2, "1h": 0, "first": 0, "1": 1} {
		t.Run(offset, func(t *testing.T) {
			p, through := newProxy(t, broker)
			s := newStream(t, broker)
			s.feed(t, 3)
			config := fmt.Sprintf(`,"stream_offset":%q`, offset)
			src := s.open(t, through, config)
			if first < s.fed {
				if got := receive(t, src, 1); got[0].ID != s.id(first) {
					t.Fatalf("the first message is %s, want %s", got[0].ID, s.id(first))
				}
			} else {
				nothing(t, src)
			}
			p.cut()
			s.feed(t, 1)
			expect(t, src, s, first) // in the next session
			_ = src.Close()
			s.feed(t, 1)
			expect(t, s.open(t, through, config), s, first) // by the next owner
		})
	}
}

// expect receives until the last message has come, and wants all from an offset on.
func expect(t testing.TB, src relay.Source, s *stream, first int) {
	t.Helper()
	got, _ := persevere(t, src, s.id(s.fed-1))
	came := make(map[string]bool)
	for _, m := range got {
		came[m.ID] = true
	}
	for i := first; i < s.fed; i++ {
		if !came[s.id(i)] {
			t.Errorf("%s has never come", s.id(i))
		}
	}
}

// check opens a source and receives nothing: that is not a pipeline's start.
func TestStreamOpenedOnly(t *testing.T) {
	broker := endpoint(t)
	s := newStream(t, broker)
	src := s.open(t, broker, `,"stream_offset":"next"`)
	if err := src.(relay.Pinger).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = src.Close()
	if _, err := rawChannel(t, broker).QueueDeclarePassive(s.offsets, true, false, false, false, nil); err == nil {
		t.Error("an offset was stored although nothing was received")
	}
}

// An offset that another connection holds is waited for.
func TestStreamOffsetHeld(t *testing.T) {
	broker := endpoint(t)
	p, through := newProxy(t, broker)
	s := newStream(t, broker)
	s.feed(t, 6)
	src := s.open(t, through, "")
	// All are received, so that what comes again is the next session's.
	if err := src.Ack(t.Context(), receive(t, src, 6)[:3]); err != nil {
		t.Fatal(err)
	}
	hold := func() amqp.Delivery {
		d, ok, err := rawChannel(t, broker).Get(s.offsets, false)
		if !ok || err != nil {
			t.Fatalf("Get of the offset = %t, %v", ok, err)
		}
		return d
	}
	// The same process knows the offset.
	held := hold()
	p.cut()
	got, _ := persevere(t, src, s.id(5))
	if got[0].ID != s.id(3) {
		t.Errorf("the next session begins at %s, want %s", got[0].ID, s.id(3))
	}
	if err := src.Ack(t.Context(), got[:1]); err != nil {
		t.Fatal(err)
	}
	if err := held.Nack(false, true); err != nil {
		t.Fatal(err)
	}
	_ = src.Close()

	// The next owner does not.
	held = hold()
	src = s.open(t, broker, "")
	if batch, err := src.Receive(t.Context(), 1); err == nil || relay.IsFatal(err) || !strings.Contains(err.Error(), "held by another connection") {
		t.Fatalf("Receive while the offset is held = %d messages, %v; want a transient error", len(batch), err)
	}
	time.AfterFunc(300*time.Millisecond, func() { _ = held.Nack(false, true) })
	if got, _ := persevere(t, src, s.id(5)); got[0].ID != s.id(4) {
		t.Errorf("the next owner begins at %s, want %s", got[0].ID, s.id(4))
	}
}

// An owner that ends while it stores its first position leaves it to the next.
func TestStreamStartOfAnOwnerThatEnds(t *testing.T) {
	broker := endpoint(t)
	s := newStream(t, broker)
	s.feed(t, 2)
	stored := 0
	for after := time.Millisecond; after < 60*time.Millisecond; after += 3 * time.Millisecond {
		s.offsets = fmt.Sprintf("%s.after.%s", s.queue, after)
		t.Cleanup(func() { _, _ = s.channel.QueueDelete(s.offsets, false, false, false) })
		src := s.open(t, broker, "")
		ctx, cancel := context.WithTimeout(t.Context(), after)
		if _, err := src.Receive(ctx, 1); err == nil {
			stored++
		}
		cancel()
		_ = src.Close()
		if got, errs := persevere(t, s.open(t, broker, `,"heartbeat":"1s"`), s.id(1)); errs != nil || got[0].ID != s.id(0) {
			t.Errorf("an owner that ended after %s: the next received %s after %v", after, got[0].ID, errs)
		}
	}
	t.Logf("%d of the owners had stored it", stored)
}

// A queue whose offset is gone for good holds nothing up for ever.
func TestStreamOffsetLost(t *testing.T) {
	broker := endpoint(t)
	s := newStream(t, broker)
	s.feed(t, 2)
	if err := (&offsetStore{channel: s.channel, queue: s.offsets}).declare(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	src := s.open(t, broker, `,"heartbeat":"1s"`)
	got, errs := persevere(t, src, s.id(1))
	if took := time.Since(began); took < heldHeartbeats*time.Second || errs == nil || got[0].ID != s.id(0) {
		t.Errorf("received %s after %s and %v, want the first message after %d heartbeats", got[0].ID, took, errs, heldHeartbeats)
	}
}

func TestStartMark(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for offset, tc := range map[string]struct {
		stored string
		arg    any
	}{
		"first": {"-1", "first"},
		"0":     {"-1", "first"},
		"4711":  {"4710", int64(4711)},
		"next":  {"2026-01-02T03:03:05Z", now.Add(-time.Minute)},
		"last":  {"2026-01-02T03:03:05Z", now.Add(-time.Minute)},
		"1h":    {"2026-01-02T02:03:05Z", now.Add(-61 * time.Minute)},
		"2D":    {"2025-12-31T03:03:05Z", now.Add(-48*time.Hour - time.Minute)},
		"999Y":  {"1976-01-15T03:03:05Z", now.Add(-50*365*24*time.Hour - time.Minute)},
	} {
		t.Run(offset, func(t *testing.T) {
			t.Parallel()
			m, err := parsePosition(startPosition(offset, now).String())
			if err != nil || m.String() != tc.stored || m.arg() != tc.arg {
				t.Errorf("stream_offset %s is stored as %s (%v) and read from %v, want %s and %v", offset, m, err, m.arg(), tc.stored, tc.arg)
			}
		})
	}
}
