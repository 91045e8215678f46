package rabbitmqrelay

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestSink(t *testing.T) {
	broker := endpoint(t)
	for _, queueType := range []string{"quorum", "classic"} {
		t.Run(queueType, func(t *testing.T) {
			p, through := newProxy(t, broker)
			relaytest.TestSink(t, relaytest.SinkHarness{
				Copies: Backend().Copies,
				New: func(t testing.TB) relaytest.SinkCase {
					queue := declare(t, broker, queueType, nil)
					return relaytest.SinkCase{
						Open: func(t testing.TB) relay.Sink {
							return mustSink(t, fmt.Sprintf(`{"url":%q,"exchange":%q}`, through, queue))
						},
						Read: func(t testing.TB, n int) []relay.Message { return readQueue(t, broker, queue, n) },
					}
				},
				Refuse:  func(_ testing.TB, m *relay.Message) { m.StreamTable = "nowhere" },
				Restart: func(testing.TB) { p.cut() },
			})
		})
	}
}

// readQueue reads with the raw client alone.
func readQueue(t testing.TB, broker, queue string, n int) (got []relay.Message) {
	t.Helper()
	for _, d := range drain(t, broker, queue, n) {
		m := relay.Message{ID: d.MessageId, Op: d.Type, Body: d.Body}
		for name, value := range d.Headers {
			text, _ := value.(string)
			switch name {
			case "Pgtrickle-Key":
				m.Key = text
			case relay.HeaderBeforeKey:
				m.BeforeKey = text
			default:
				m.Headers = append(m.Headers, relay.Header{Name: name, Value: text})
			}
		}
		got = append(got, m)
	}
	return got
}

func TestSource(t *testing.T) {
	broker := endpoint(t)
	for _, queueType := range []string{"quorum", "classic", "stream"} {
		t.Run(queueType, func(t *testing.T) {
			p, through := newProxy(t, broker)
			relaytest.TestSource(t, relaytest.SourceHarness{
				New: func(t testing.TB) relaytest.SourceCase {
					queue, env := declare(t, broker, queueType, nil), testEnv(t)
					channel := rawChannel(t, broker)
					if err := channel.Confirm(false); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _, _ = channel.QueueDelete(queue+".offset", false, false, false) })
					return relaytest.SourceCase{
						Open: func(t testing.TB, _ relay.Checkpoint) relay.Source {
							return mustSource(t, env, fmt.Sprintf(`{"url":%q,"queue":%q,"queue_type":%q,"id":"hash","offset_queue":%q}`, through, queue, queueType, queue+".offset"))
						},
						OpenBounded: func(t testing.TB, maxAnswer int64) relay.Source {
							bounded := env
							bounded.MaxAnswer = maxAnswer
							return mustSource(t, bounded, fmt.Sprintf(`{"url":%q,"queue":%q,"queue_type":%q,"id":"hash","offset_queue":%q}`, through, queue, queueType, queue+".offset"))
						},
						Feed: func(t testing.TB, batch []relay.Message) {
							for _, m := range batch {
								headers := amqp.Table{"Pgtrickle-Op": m.Op, "Pgtrickle-Key": m.Key}
								for _, h := range m.Headers {
									headers[h.Name] = h.Value
								}
								feed(t, channel, queue, m.Subject, amqp.Publishing{
									MessageId: m.ID, Type: m.Op, Timestamp: time.Now(), ContentType: m.ContentType, Headers: headers, Body: m.Body, DeliveryMode: amqp.Persistent,
								})
							}
						},
						FeedForeign: func(t testing.TB, body []byte) {
							feed(t, channel, queue, "orders.x", amqp.Publishing{Body: body, DeliveryMode: amqp.Persistent})
						},
					}
				},
				Restart: func(testing.TB) { p.cut() },
			})
		})
	}
}

func feed(t testing.TB, channel *amqp.Channel, exchange, key string, p amqp.Publishing) {
	t.Helper()
	confirm, err := channel.PublishWithDeferredConfirm(exchange, key, true, false, p)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := confirm.WaitContext(t.Context()); !ok || err != nil {
		t.Fatalf("publish to %q = %v, %v", exchange, ok, err)
	}
}
