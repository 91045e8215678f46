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

// receive gets n messages.
func receive(t testing.TB, src relay.Source, n int) (got []relay.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), relaytest.Patience())
	defer cancel()
	for len(got) < n {
		batch, err := src.Receive(ctx, n-len(got))
		if err != nil {
			t.Fatalf("Receive = %v after %d of %d messages", err, len(got), n)
		}
		got = append(got, batch...)
	}
	return got
}

// nothing expects that no message comes.
func nothing(t testing.TB, src relay.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if batch, err := src.Receive(ctx, 10); err == nil {
		t.Fatalf("received %s, want nothing", batch[0].ID)
	}
}

func confirming(t testing.TB, broker string) *amqp.Channel {
	t.Helper()
	channel := rawChannel(t, broker)
	if err := channel.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return channel
}

func TestSourceStartErrors(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	for name, tc := range map[string]struct {
		config string
		fatal  bool
		text   string
	}{
		"no such queue":    {`"queue":"no-such-queue"`, true, "NOT_FOUND"},
		"other type":       {fmt.Sprintf(`"queue":%q,"declare_queue":true,"queue_type":"quorum"`, queue), true, "PRECONDITION_FAILED"},
		"no such exchange": {fmt.Sprintf(`"queue":%q,"declare_queue":true,"queue_type":"classic","bind_exchange":"no-such-exchange"`, queue), true, "NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Backend().Source.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":%q,%s}`, broker, tc.config))
			if err == nil || !strings.Contains(err.Error(), tc.text) || relay.IsFatal(err) != tc.fatal {
				t.Fatalf("NewSource = %v (fatal %t), want %q (fatal %t)", err, relay.IsFatal(err), tc.text, tc.fatal)
			}
		})
	}
}

// A message that has no id is refused; what the queue does with it is on_reject.
func TestSourceOnReject(t *testing.T) {
	broker := endpoint(t)
	for policy, want := range map[string]struct{ redelivered, deadLetters int }{
		"requeue":     {redelivered: 1, deadLetters: 0},
		"drop":        {redelivered: 0, deadLetters: 0},
		"dead-letter": {redelivered: 0, deadLetters: 1},
	} {
		t.Run(policy, func(t *testing.T) {
			letters := declare(t, broker, "classic", nil)
			queue := declare(t, broker, "quorum", amqp.Table{"x-dead-letter-exchange": letters})
			src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"queue":%q,"on_reject":%q}`, broker, queue, policy))
			channel := confirming(t, broker)
			feed(t, channel, queue, "orders.x", amqp.Publishing{Body: []byte(`{"no":"id"}`)})
			feed(t, channel, queue, "orders.x", amqp.Publishing{Body: []byte(`{}`), MessageId: "good"})
			var refused relay.Message
			for _, m := range receive(t, src, 2) {
				if m.Err == nil && m.ID != "good" || m.Err != nil && (m.ID == "" || string(m.Body) != `{"no":"id"}`) {
					t.Errorf("received ID %q, body %s, error %v", m.ID, m.Body, m.Err)
				}
				if m.Err != nil {
					refused = m
				}
				if err := src.Ack(t.Context(), []relay.Message{m}); err != nil {
					t.Fatal(err)
				}
			}
			if refused.Err == nil {
				t.Error("the message without message-id was not refused")
			}
			nothing(t, src)
			if got := drain(t, broker, letters, want.deadLetters); len(got) != want.deadLetters {
				t.Errorf("%d messages were dead-lettered, want %d", len(got), want.deadLetters)
			}
			if got := drain(t, broker, queue, 0); len(got) != 0 {
				t.Errorf("%d messages are left in the queue", len(got))
			}
		})
	}
}

func TestSourceMaxDeliveries(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "quorum", nil)
	feed(t, confirming(t, broker), queue, "orders.x", amqp.Publishing{Body: []byte(`{}`), MessageId: "poison"})
	env := testEnv(t)
	for i := range 3 {
		src := mustSource(t, env, fmt.Sprintf(`{"url":%q,"queue":%q,"max_deliveries":2,"on_reject":"drop"}`, broker, queue))
		m := receive(t, src, 1)[0]
		if (m.Err != nil) != (i == 2) {
			t.Errorf("delivery %d has error %v", i+1, m.Err)
		}
		if err := src.Close(); err != nil { // without Ack: a crash
			t.Fatal(err)
		}
	}
}

func TestSourceQueueDeleted(t *testing.T) {
	broker := endpoint(t)
	exchange := declare(t, broker, "classic", nil)
	queue := exchange + "-declared"
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"queue":%q,"declare_queue":true,"queue_type":"classic","bind_exchange":%q,"bind_keys":["orders.*","more.*"],"prefetch":4,"consumer_tag":"me"}`, broker, queue, exchange))
	channel := confirming(t, broker)
	t.Cleanup(func() { _, _ = channel.QueueDelete(queue, false, false, false) })
	for i := range 10 {
		feed(t, channel, exchange, "more.x", amqp.Publishing{Body: []byte(`{}`), MessageId: fmt.Sprint(i)})
	}
	first := receive(t, src, 4)
	nothing(t, src) // the prefetch is used up
	if err := src.Ack(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if second := receive(t, src, 4); second[0].ID != "4" {
		t.Errorf("received %q after the first four, want 4", second[0].ID)
	}
	if _, err := channel.QueueDelete(queue, false, false, false); err != nil {
		t.Fatal(err)
	}
	// A source that gets its position before it is asked declares the queue at once.
	telling, told := context.WithTimeout(t.Context(), 2*time.Second)
	defer told()
	if _, err := src.Receive(telling, 1); !errors.Is(err, context.DeadlineExceeded) && (err == nil || !strings.Contains(err.Error(), "cancelled the consumer") || relay.IsFatal(err)) {
		t.Errorf("Receive after the queue was deleted = %v, want to be told", err)
	}
	// The next Receive declares it again, with its bindings.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, _ = src.Receive(ctx, 1)
	feed(t, confirming(t, broker), exchange, "orders.x", amqp.Publishing{Body: []byte(`{}`), MessageId: "back"})
	if got := receive(t, src, 1); got[0].ID != "back" {
		t.Errorf("received %q from the queue that was declared again, want back", got[0].ID)
	}
}

func TestSourceTranslates(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "classic", nil)
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"queue":%q,"id":"hash"}`, broker, queue))
	channel := confirming(t, broker)
	at := time.Unix(1_700_000_000, 0)
	feed(t, channel, queue, "orders.new", amqp.Publishing{Body: []byte(`{}`), MessageId: "1", Type: "delete", Timestamp: at, ContentType: "text/plain", Headers: amqp.Table{"N": int32(5), "b": true}})
	feed(t, channel, queue, "orders.new", amqp.Publishing{Body: []byte(`{}`)})
	got := receive(t, src, 2)
	m := got[0]
	if m.ID != "1" || m.Op != "delete" || !m.Time.Equal(at) || m.ContentType != "text/plain" || m.Subject != "orders.new" || m.Origin != "rabbitmq:"+queue {
		t.Errorf("received %+v", m)
	}
	if n, _ := m.Header("n"); n != "5" {
		t.Errorf("header N received as %q, want 5", n)
	}
	if want := "rabbitmq:" + queue + ":sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"; got[1].ID != want || got[1].Op != relay.OpEvent {
		t.Errorf("message without id received as %q, op %q; want %q, event", got[1].ID, got[1].Op, want)
	}
	if rows, _, err := src.(relay.Lagger).Lag(t.Context()); rows != 0 || err != nil {
		t.Errorf("Lag() = %d, %v; want 0", rows, err)
	}
}

func TestSourceStreamOffsets(t *testing.T) {
	broker := endpoint(t)
	queue := declare(t, broker, "stream", nil)
	channel := confirming(t, broker)
	t.Cleanup(func() { _, _ = channel.QueueDelete(queue+".kept", false, false, false) })
	for i := range 10 {
		feed(t, channel, queue, "orders.x", amqp.Publishing{Body: fmt.Appendf(nil, `{"n":%d}`, i)})
	}
	open := func(more string) relay.Source {
		return mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"queue":%q,"queue_type":"stream","offset_queue":%q%s}`, broker, queue, queue+".kept", more))
	}
	src := open(`,"stream_offset":"4"`)
	got := receive(t, src, 6)
	if want := fmt.Sprintf("rabbitmq:%s:4", queue); got[0].ID != want || got[0].Err != nil {
		t.Errorf("the first message is %q (%v), want %q", got[0].ID, got[0].Err, want)
	}
	// A gap holds the stored offset back.
	if err := src.Ack(t.Context(), append(got[0:2:2], got[3])); err != nil {
		t.Fatal(err)
	}
	_ = src.Close()
	for range 30 { // an offset must survive being read often
		_ = open("").Close()
	}
	src = open("")
	if again := receive(t, src, 1); again[0].ID != got[2].ID {
		t.Errorf("the next pipeline begins at %q, want %q", again[0].ID, got[2].ID)
	}
}
