package kafkarelay

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// BenchmarkSink publishes batches of 10,000 messages in turn with kafka-go's writer and
// with the sink, and reports the medians' ratio. Each has a topic of its own on the same
// server. The writer sends the same keys, bodies and headers.
func BenchmarkSink(b *testing.B) {
	brokers := relaytest.Endpoint(b, brokersEnv)
	for _, partitions := range []int{1, 12} {
		for _, compression := range []string{"none", "lz4"} {
			b.Run(fmt.Sprintf("partitions=%d/%s", partitions, compression), func(b *testing.B) {
				benchmarkSink(b, brokers, partitions, compression)
			})
		}
	}
}

func benchmarkSink(b *testing.B, brokers string, partitions int, compression string) {
	const batchSize = 10_000
	batch := benchBatch(batchSize)
	records := make([]kafka.Message, len(batch))
	for i := range batch {
		records[i] = rawRecord(&batch[i])
	}
	rawTopic, ourTopic := newTopic(b, brokers, partitions), newTopic(b, brokers, partitions)
	var codec kafka.Compression
	if err := codec.UnmarshalText([]byte(compression)); err != nil {
		b.Fatal(err)
	}
	w := &kafka.Writer{
		Addr: kafka.TCP(strings.Split(brokers, ",")...), Topic: rawTopic, Balancer: kafka.Murmur2Balancer{Consistent: true}, RequiredAcks: kafka.RequireAll,
		BatchSize: batchSize, BatchTimeout: time.Millisecond, BatchBytes: 1 << 20, Compression: codec, Transport: rawTransport,
	}
	defer func() { _ = w.Close() }()
	s := openSink(b, map[string]any{"brokers": brokers, "topic": ourTopic, "compression": compression})
	var raw, ours []time.Duration
	round := func() {
		raw = append(raw, took(b, func() error { return w.WriteMessages(b.Context(), records...) }))
		ours = append(ours, took(b, func() error { return s.Publish(b.Context(), batch) }))
	}
	for range 3 {
		round() // both warm
	}
	raw, ours = nil, nil
	for b.Loop() {
		round()
	}
	slices.Sort(raw)
	slices.Sort(ours)
	rawRate := batchSize / raw[len(raw)/2].Seconds()
	ourRate := batchSize / ours[len(ours)/2].Seconds()
	b.ReportMetric(rawRate, "raw/s")
	b.ReportMetric(ourRate, "ours/s")
	b.ReportMetric(ourRate/rawRate, "ratio")
}

// BenchmarkEncode encodes a batch of 1,000 messages.
func BenchmarkEncode(b *testing.B) {
	batch := benchBatch(1000)
	indexes := make([]int32, len(batch))
	for i := range indexes {
		indexes[i] = int32(i)
	}
	var out bytes.Buffer
	var w batchWriter
	p := &partition{topic: &topic{name: "orders"}, producer: producer{id: 1}}
	defer relaytest.ReportCPU(b)()
	for b.Loop() {
		out.Reset()
		if err := w.write(&out, batch, indexes, p, time.Now()); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(out.Len()))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(batch)), "ns/msg")
}

// BenchmarkPublish counts the allocations of the sink alone.
func BenchmarkPublish(b *testing.B) {
	brokers := relaytest.Endpoint(b, brokersEnv)
	batch := benchBatch(1000)
	s := openSink(b, map[string]any{"brokers": brokers, "topic": newTopic(b, brokers, 4)})
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Publish(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(batch))*float64(b.N)/b.Elapsed().Seconds(), "msg/s")
}

func benchBatch(n int) []relay.Message {
	batch := make([]relay.Message, n)
	pad := strings.Repeat("x", 240)
	for i := range batch {
		batch[i] = relaytest.Message(i, fmt.Sprintf("k%d", i%1000))
		batch[i].Body = fmt.Appendf(nil, `{"n":%d,"pad":%q}`, i, pad)
	}
	return batch
}

func took(b *testing.B, run func() error) time.Duration {
	b.Helper()
	began := time.Now()
	if err := run(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}
