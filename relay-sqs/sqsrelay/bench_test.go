package sqsrelay

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// BenchmarkSink publishes batches of 1,000 messages in turn with the SDK's
// SendMessageBatch and with the sink, to queues of their own on one server. Both send
// four requests at a time, with the same bodies and attributes; the SDK without regard
// to order. It reports the medians' ratio.
func BenchmarkSink(b *testing.B) {
	endpoint := relaytest.Endpoint(b, endpointEnv)
	for name, suffix := range map[string]string{"FIFO": ".fifo", "standard": ""} {
		b.Run(name, func(b *testing.B) { benchmarkSink(b, endpoint, suffix) })
	}
}

func benchmarkSink(b *testing.B, endpoint, suffix string) {
	const batchSize = 1000
	rawURL, ourURL := newQueue(b, endpoint, suffix), newQueue(b, endpoint, suffix)
	client := rawClient(endpoint)
	s := openSink(b, ourURL, nil)
	next := 0
	var raw, ours []time.Duration
	round := func() {
		batch := benchBatch(&next, batchSize)
		raw = append(raw, took(b, func() error { return sendRaw(b, client, rawURL, batch) }))
		ours = append(ours, took(b, func() error { return s.Publish(b.Context(), batch) }))
	}
	for range 5 {
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

func sendRaw(b *testing.B, client *sqs.Client, url string, batch []relay.Message) error {
	b.Helper()
	parts := make(chan []relay.Message)
	errs := make([]error, 4)
	var wait sync.WaitGroup
	for w := range errs {
		wait.Go(func() {
			for part := range parts {
				if _, err := client.SendMessageBatch(b.Context(), &sqs.SendMessageBatchInput{QueueUrl: &url, Entries: rawEntries(part, url)}); err != nil {
					errs[w] = err
				}
			}
		})
	}
	for part := range slices.Chunk(batch, maxEntries) {
		parts <- part
	}
	close(parts)
	wait.Wait()
	return errs[0]
}

func rawEntries(part []relay.Message, url string) []types.SendMessageBatchRequestEntry {
	out := make([]types.SendMessageBatchRequestEntry, len(part))
	for i := range part {
		m := &part[i]
		attribute := func(value string) types.MessageAttributeValue {
			return types.MessageAttributeValue{DataType: aws.String("String"), StringValue: &value}
		}
		out[i] = types.SendMessageBatchRequestEntry{
			Id: aws.String(fmt.Sprint(i)), MessageBody: aws.String(string(m.Body)),
			MessageAttributes: map[string]types.MessageAttributeValue{
				"dedup_key": attribute(m.ID), relay.HeaderSubject: attribute(m.Subject), relay.HeaderOp: attribute(m.Op),
				relay.HeaderOutboxID: attribute(fmt.Sprint(m.OutboxID)), relay.HeaderKey: attribute(m.Key), relay.HeaderContentType: attribute(m.ContentType),
			},
		}
		if strings.HasSuffix(url, ".fifo") {
			out[i].MessageGroupId, out[i].MessageDeduplicationId = &m.Key, &m.ID
		}
	}
	return out
}

func benchBatch(next *int, n int) []relay.Message {
	batch := make([]relay.Message, n)
	pad := strings.Repeat("x", 240)
	for i := range batch {
		*next++
		batch[i] = relaytest.Message(*next, fmt.Sprintf("k%d", i%1000))
		batch[i].Body = fmt.Appendf(nil, `{"n":%d,"pad":%q}`, *next, pad)
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
