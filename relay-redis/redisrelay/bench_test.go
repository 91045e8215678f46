package redisrelay

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// BenchmarkAgainstRaw adds the same messages with pipelines of 1000 XADD of the client
// alone, and with the sink, in turns on one server. It reports the medians and their
// ratio:
//
//	go test -run - -bench AgainstRaw -benchtime 5x
func BenchmarkAgainstRaw(b *testing.B) {
	url := relaytest.Endpoint(b, "RELAY_TEST_REDIS_URL")
	const count = 50_000
	batch := make([]relay.Message, count)
	for i := range batch {
		body := fmt.Appendf(nil, `{"dedup_key":"outbox_orders:%d:0","subject":"pgtrickle.orders.insert","payload":{"id":%d,"customer":"customer-%d","amount":129.95,"status":"new","note":%q},"op":"insert","is_full_refresh":false,"outbox_id":%d,"refresh_id":null}`, i, i, i%1000, "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", i)
		batch[i] = relay.Message{
			ID: fmt.Sprintf("outbox_orders:%d:0", i), Subject: "pgtrickle.orders.insert", Key: fmt.Sprint(i % 1000), Op: relay.OpInsert,
			Body: body, ContentType: "application/json", StreamTable: "orders", OutboxID: int64(i),
		}
	}
	client, stream := rawClient(b, url), uniqueName(b)
	b.Cleanup(func() { client.Del(b.Context(), stream) })
	s := mustSink(b, testEnv(b), fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	// The client alone, with id and body only, and with all that the sink writes.
	add := func(more ...any) {
		for chunk := range slices.Chunk(batch, 1000) {
			pipe := client.Pipeline()
			for i := range chunk {
				values := append([]any{"dedup_key", chunk[i].ID, "payload", chunk[i].Body}, more...)
				pipe.XAdd(b.Context(), &redis.XAddArgs{Stream: stream, Values: values})
			}
			if _, err := pipe.Exec(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
	var raw, full, sink sample
	for b.Loop() {
		client.Del(b.Context(), stream)
		raw.measure(count, func() { add() })
		client.Del(b.Context(), stream)
		full.measure(count, func() {
			add("subject", "pgtrickle.orders.insert", "op", "insert", "pgtrickle-outbox-id", "12345", "pgtrickle-key", "999", "content-type", "application/json")
		})
		client.Del(b.Context(), stream)
		sink.measure(count, func() {
			for chunk := range slices.Chunk(batch, 1000) {
				if err := s.Publish(b.Context(), chunk); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.ReportMetric(raw.median(), "raw/s")
	b.ReportMetric(sink.median(), "sink/s")
	b.ReportMetric(full.median(), "raw-same-fields/s")
	b.ReportMetric(sink.median()/raw.median(), "ratio")
	b.ReportMetric(sink.median()/full.median(), "ratio-same-fields")
	b.ReportMetric(raw.allocs, "raw-allocs/msg")
	b.ReportMetric(sink.allocs, "sink-allocs/msg")
}

type sample struct {
	rates  []float64
	allocs float64
}

func (s *sample) measure(n int, run func()) {
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
