package rabbitmqrelay

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// BenchmarkAgainstRaw publishes the same messages with the client alone, and with the
// sink, in turns on one server. The client has deferred confirms and a window of 1000.
// It reports the medians and their ratio:
//
//	go test -run - -bench AgainstRaw -benchtime 5x
func BenchmarkAgainstRaw(b *testing.B) {
	broker := endpoint(b)
	const count = 40_000
	batch := make([]relay.Message, count)
	for i := range batch {
		body := fmt.Appendf(nil, `{"dedup_key":"outbox_orders:%d:0","subject":"pgtrickle.orders.insert","payload":{"id":%d,"customer":"customer-%d","amount":129.95,"status":"new","note":%q},"op":"insert","is_full_refresh":false,"outbox_id":%d,"refresh_id":null}`, i, i, i%1000, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", i)
		batch[i] = relay.Message{
			ID: fmt.Sprintf("outbox_orders:%d:0", i), Subject: "pgtrickle.orders.insert", Key: fmt.Sprint(i % 1000), Op: relay.OpInsert,
			Body: body, ContentType: "application/json", Time: time.Now(), StreamTable: "orders", OutboxID: int64(i),
		}
	}
	for _, size := range []int{1000, 5000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			queue := declare(b, broker, "quorum", nil)
			admin := rawChannel(b, broker)
			var raw, sink sample
			for b.Loop() {
				raw.measure(b, admin, queue, count, func() { publishRaw(b, broker, queue, batch) })
				s, err := Backend().Sink.New(b.Context(), testEnv(b), fmt.Appendf(nil, `{"url":%q,"exchange":%q}`, broker, queue))
				if err != nil {
					b.Fatal(err)
				}
				sink.measure(b, admin, queue, count, func() {
					for chunk := range slices.Chunk(batch, size) {
						if err := s.Publish(b.Context(), chunk); err != nil {
							b.Fatal(err)
						}
					}
				})
				_ = s.Close()
			}
			b.ReportMetric(raw.median(), "raw/s")
			b.ReportMetric(sink.median(), "sink/s")
			b.ReportMetric(sink.median()/raw.median(), "ratio")
			b.ReportMetric(raw.allocs, "raw-allocs/msg")
			b.ReportMetric(sink.allocs, "sink-allocs/msg")
		})
	}
}

type sample struct {
	rates  []float64
	allocs float64
}

func (s *sample) measure(b *testing.B, admin *amqp.Channel, queue string, n int, run func()) {
	b.Helper()
	if _, err := admin.QueuePurge(queue, false); err != nil {
		b.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	run()
	s.rates = append(s.rates, float64(n)/time.Since(began).Seconds())
	runtime.ReadMemStats(&after)
	s.allocs = float64(after.Mallocs-before.Mallocs) / float64(n)
}

func (s *sample) median() float64 {
	slices.Sort(s.rates)
	return s.rates[len(s.rates)/2]
}

// publishRaw is what the client's users write: a sliding window of 1000.
func publishRaw(b *testing.B, broker, queue string, batch []relay.Message) {
	b.Helper()
	conn, err := amqp.Dial(broker)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	channel, err := conn.Channel()
	if err != nil {
		b.Fatal(err)
	}
	if err := channel.Confirm(false); err != nil {
		b.Fatal(err)
	}
	const window = 1000
	var confirms []*amqp.DeferredConfirmation
	settle := func(n int) {
		for _, c := range confirms[:n] {
			if !c.Wait() {
				b.Fatal("the broker rejected a message")
			}
		}
		confirms = append(confirms[:0], confirms[n:]...)
	}
	for i := range batch {
		m := &batch[i]
		c, err := channel.PublishWithDeferredConfirm(queue, "orders.insert", true, false, amqp.Publishing{
			DeliveryMode: amqp.Persistent, ContentType: m.ContentType, MessageId: m.ID, Type: m.Op, Body: m.Body,
		})
		if err != nil {
			b.Fatal(err)
		}
		if confirms = append(confirms, c); len(confirms) == window {
			settle(window / 2)
		}
	}
	settle(len(confirms))
}
