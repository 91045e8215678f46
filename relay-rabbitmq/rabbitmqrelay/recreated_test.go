package rabbitmqrelay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// recreate deletes a stream and declares it again, empty.
func (s *stream) recreate(t testing.TB) {
	t.Helper()
	if _, err := s.channel.QueueDelete(s.queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	if _, err := s.channel.QueueDeclare(s.queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: "stream"}); err != nil {
		t.Fatal(err)
	}
	if err := s.channel.QueueBind(s.queue, "orders.*", s.queue, false, nil); err != nil {
		t.Fatal(err)
	}
	s.fed = 0
}

func (s *stream) try(ctx context.Context, env relay.Env, broker, more string) (relay.Source, error) {
	config := fmt.Sprintf(`{"url":%q,"queue":%q,"queue_type":"stream","offset_queue":%q%s}`, broker, s.queue, s.offsets, more)
	return Backend().Source.New(ctx, env, []byte(config))
}

// A stream that is longer than the position when the source looks.
func TestRecreated(t *testing.T) {
	broker := endpoint(t)
	relaytest.TestRecreated(t, func(t testing.TB) relaytest.RecreatedCase {
		s := newStream(t, broker)
		return relaytest.RecreatedCase{
			Env: testEnv(t),
			Open: func(ctx context.Context, env relay.Env, onRecreated string) (relay.Source, error) {
				return s.try(ctx, env, broker, fmt.Sprintf(`,"on_recreated":%q`, onRecreated))
			},
			Feed: func(t testing.TB, from, count int) {
				for n := range count {
					feed(t, s.channel, s.queue, "orders.x", amqp.Publishing{Body: fmt.Appendf(nil, `{"n":%d}`, from+n)})
				}
			},
			Recreate: func(t testing.TB) { s.recreate(t) },
		}
	})
}

// A stream that was created again and is still shorter than the position, or empty.
func TestPositionBeyondTheEnd(t *testing.T) {
	broker := endpoint(t)
	for fed, problem := range map[int]string{0: "it is empty, before the position 3", 2: "ends at 1, before the position 3"} {
		t.Run(fmt.Sprint(fed), func(t *testing.T) {
			s := newStream(t, broker)
			s.feed(t, 4)
			var cursor relaytest.Cursor
			src, err := s.try(t.Context(), cursor.Env(testEnv(t)), broker, "")
			if err != nil {
				t.Fatal(err)
			}
			if err := src.Ack(t.Context(), receive(t, src, 4)); err != nil {
				t.Fatal(err)
			}
			_ = src.Close()
			s.recreate(t)
			s.feed(t, fed)
			for range 2 {
				if _, err := s.try(t.Context(), cursor.Env(testEnv(t)), broker, ""); !relay.IsFatal(err) || !strings.Contains(err.Error(), problem) {
					t.Fatalf("NewSource = %v, want a fatal error with %q", err, problem)
				}
			}
			if src, err = s.try(t.Context(), cursor.Env(testEnv(t)), broker, `,"on_recreated":"restart"`); err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			s.feed(t, 1)
			if got := receive(t, src, 1); got[0].ID != "rabbitmq:"+s.queue+"@.1:0" {
				t.Errorf("received %s, want the first message with an id of another life", got[0].ID)
			}
		})
	}
}

// The position's witness is that of its message, in whichever order messages are settled.
func TestWitnessOfUnorderedAcks(t *testing.T) {
	broker := endpoint(t)
	for name, order := range map[string][][]int{
		"a gap filled":         {{2}, {0}, {1}},
		"in one call":          {{2, 0, 1}},
		"the end in the call":  {{1}, {0, 2}},
		"an earlier one alone": {{1, 2}, {0}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, broker)
			s.feed(t, 4)
			src := s.open(t, broker, "")
			got := receive(t, src, 4)
			for _, call := range order {
				var batch []relay.Message
				for _, i := range call {
					batch = append(batch, got[i])
				}
				if err := src.Ack(t.Context(), batch); err != nil {
					t.Fatal(err)
				}
			}
			_ = src.Close()
			src, err := s.try(t.Context(), testEnv(t), broker, "")
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			if got := receive(t, src, 1); got[0].ID != s.id(3) {
				t.Errorf("received %s, want %s", got[0].ID, s.id(3))
			}
		})
	}
}

// Retention may remove the witness, and an older relay stored none. Both go on; the
// log reports a position that cannot be checked.
func TestWitnessIsMissing(t *testing.T) {
	broker := endpoint(t)
	t.Run("trimmed", func(t *testing.T) {
		s := newStream(t, broker)
		if _, err := s.channel.QueueDelete(s.queue, false, false, false); err != nil {
			t.Fatal(err)
		}
		small := amqp.Table{amqp.QueueTypeArg: "stream", "x-max-length-bytes": int64(20_000), "x-stream-max-segment-size-bytes": int64(10_000)}
		if _, err := s.channel.QueueDeclare(s.queue, true, false, false, false, small); err != nil {
			t.Fatal(err)
		}
		filler := bytes.Repeat([]byte("x"), 4000)
		fill := func(n int) {
			for range n {
				feed(t, s.channel, "", s.queue, amqp.Publishing{Body: filler})
			}
		}
		fill(2)
		src := s.open(t, broker, "")
		if err := src.Ack(t.Context(), receive(t, src, 2)); err != nil {
			t.Fatal(err)
		}
		_ = src.Close()
		fill(40)
		var log bytes.Buffer
		env := testEnv(t)
		env.Logger = slog.New(slog.NewTextHandler(&log, nil))
		src, err := s.try(t.Context(), env, broker, "")
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		if got := receive(t, src, 1); got[0].ID == s.id(2) {
			t.Fatal("the broker has not trimmed the stream")
		}
		if !strings.Contains(log.String(), "cannot be checked") {
			t.Errorf("log %q, want a position that cannot be checked", log.String())
		}
	})
	t.Run("none", func(t *testing.T) {
		s := newStream(t, broker)
		s.feed(t, 3)
		old := &offsetStore{channel: s.channel, queue: s.offsets, known: &progress{}}
		if err := old.declare(); err != nil {
			t.Fatal(err)
		}
		if err := old.store(t.Context(), position{offset: 1}); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, s.open(t, broker, ""), 1); got[0].ID != s.id(2) {
			t.Errorf("received %s, want %s", got[0].ID, s.id(2))
		}
	})
}
