package kafkarelay

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

const brokersEnv = "RELAY_TEST_KAFKA_BROKERS"

// rawTransport has the connections of the tests' own clients.
var rawTransport = &kafka.Transport{}

func testEnv() relay.Env {
	return relay.Env{Pipeline: "test", Identity: relaytest.Identity, Group: "default", Logger: slog.New(slog.DiscardHandler)}
}

func TestSink(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	for name, more := range map[string]string{
		"Plain":       `{}`,
		"Zstd":        `{"compression":"zstd"}`,
		"NotNumbered": `{"idempotence":false}`,
	} {
		t.Run(name, func(t *testing.T) {
			copies := Backend().Copies
			if name == "Zstd" {
				copies = 0 // the compressor takes 16 MiB, whatever the body is
			}
			relaytest.TestSink(t, relaytest.SinkHarness{
				Copies: copies,
				New: func(t testing.TB) relaytest.SinkCase {
					topic := newTopic(t, brokers, 3)
					config := with(more, map[string]any{"brokers": brokers, "topic": topic})
					return relaytest.SinkCase{
						Open:    func(t testing.TB) relay.Sink { return openSink(t, config) },
						Read:    func(t testing.TB, n int) []relay.Message { return readRaw(t, brokers, topic, n) },
						Foreign: func(t testing.TB) { writeRaw(t, brokers, topic, kafka.Message{Value: []byte("not ours")}) },
					}
				},
				Refuse: func(_ testing.TB, m *relay.Message) {
					noise := make([]byte, 3<<20) // topics take 2 MiB, and this does not compress
					_, _ = rand.Read(noise)
					m.Body = noise
				},
			})
		})
	}
}

func TestSource(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	relaytest.TestSource(t, relaytest.SourceHarness{
		New: func(t testing.TB) relaytest.SourceCase {
			topic := newTopic(t, brokers, 3)
			return relaytest.SourceCase{
				Open: func(t testing.TB, _ relay.Checkpoint) relay.Source {
					return openSource(t, map[string]any{"brokers": brokers, "topic": topic, "group_id": topic})
				},
				OpenBounded: func(t testing.TB, maxAnswer int64) relay.Source {
					env := testEnv()
					env.MaxAnswer = maxAnswer
					return openSourceIn(t, env, map[string]any{"brokers": brokers, "topic": topic, "group_id": topic})
				},
				Feed: func(t testing.TB, batch []relay.Message) {
					records := make([]kafka.Message, len(batch))
					for i := range batch {
						records[i] = rawRecord(&batch[i])
					}
					writeRaw(t, brokers, topic, records...)
				},
				FeedForeign: func(t testing.TB, body []byte) { writeRaw(t, brokers, topic, kafka.Message{Value: body}) },
			}
		},
	})
}

func with(base string, more map[string]any) map[string]any {
	config := make(map[string]any)
	if err := json.Unmarshal([]byte(base), &config); err != nil {
		panic(err)
	}
	maps.Copy(config, more)
	return config
}

func openSink(t testing.TB, config map[string]any) relay.Sink {
	t.Helper()
	raw, _ := json.Marshal(config)
	s, err := Backend().Sink.New(t.Context(), testEnv(), raw)
	if err != nil {
		t.Fatalf("open sink with %s: %v", raw, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openSource(t testing.TB, config map[string]any) relay.Source {
	t.Helper()
	return openSourceIn(t, testEnv(), config)
}

func openSourceIn(t testing.TB, env relay.Env, config map[string]any) relay.Source {
	t.Helper()
	raw, _ := json.Marshal(config)
	s, err := Backend().Source.New(t.Context(), env, raw)
	if err != nil {
		t.Fatalf("open source with %s: %v", raw, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var topicNumber atomic.Int64

func newTopicName() string {
	return fmt.Sprintf("relaytest-%d-%d", time.Now().UnixNano(), topicNumber.Add(1))
}

func newTopic(t testing.TB, brokers string, partitions int) string {
	t.Helper()
	topic := newTopicName()
	createTopic(t, brokers, topic, partitions, "delete")
	return topic
}

func createTopic(t testing.TB, brokers, topic string, partitions int, cleanup string) {
	t.Helper()
	client := rawClient(brokers)
	_, err := patiently(t.Context(), func() (any, error) { // a broker that was just started
		res, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
			Topic: topic, NumPartitions: partitions, ReplicationFactor: 1,
			ConfigEntries: []kafka.ConfigEntry{
				{ConfigName: "max.message.bytes", ConfigValue: "2097152"}, {ConfigName: "cleanup.policy", ConfigValue: cleanup},
			},
		}}})
		if err == nil {
			err = res.Errors[topic]
		}
		return nil, err
	})
	if err != nil {
		t.Fatalf("create topic %s: %v", topic, err)
	}
	t.Cleanup(func() {
		_, _ = client.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
	})
}

func rawClient(brokers string) *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(strings.Split(brokers, ",")...), Timeout: 20 * time.Second, Transport: rawTransport}
}

func rawRecord(m *relay.Message) kafka.Message {
	r := kafka.Message{Value: m.Body, Headers: []kafka.Header{
		{Key: "pgtrickle-dedup-key", Value: []byte(m.ID)},
		{Key: "pgtrickle-subject", Value: []byte(m.Subject)},
		{Key: "pgtrickle-op", Value: []byte(m.Op)},
		{Key: "content-type", Value: []byte(m.ContentType)},
	}}
	if m.Key != "" {
		r.Key = []byte(m.Key)
	}
	for _, h := range m.Headers {
		r.Headers = append(r.Headers, kafka.Header{Key: h.Name, Value: []byte(h.Value)})
	}
	return r
}

func writeRaw(t testing.TB, brokers, topic string, records ...kafka.Message) {
	t.Helper()
	w := &kafka.Writer{
		Addr: kafka.TCP(strings.Split(brokers, ",")...), Topic: topic, Balancer: kafka.Murmur2Balancer{Consistent: true},
		RequiredAcks: kafka.RequireAll, BatchTimeout: 2 * time.Millisecond, BatchBytes: 4 << 20, Transport: rawTransport,
	}
	defer func() { _ = w.Close() }()
	if err := w.WriteMessages(t.Context(), records...); err != nil {
		t.Fatalf("write %d records to %s: %v", len(records), topic, err)
	}
}

// readRaw returns what is in topic, partition by partition, once there are n
// records of the relay's.
func readRaw(t testing.TB, brokers, topic string, n int) []relay.Message {
	t.Helper()
	client := rawClient(brokers)
	ctx, cancel := context.WithTimeout(context.Background(), relaytest.Patience())
	defer cancel()
	var all []relay.Message
	for {
		all = all[:0]
		meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil {
			t.Fatalf("metadata of %s: %v", topic, err)
		}
		for p := range meta.Topics[0].Partitions {
			all = append(all, readPartition(ctx, t, client, topic, p)...)
		}
		if len(all) >= n {
			return all
		}
		if ctx.Err() != nil {
			t.Fatalf("topic %s holds %d messages of the relay's, want %d", topic, len(all), n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func readPartition(ctx context.Context, t testing.TB, client *kafka.Client, topic string, partition int) []relay.Message {
	t.Helper()
	offsets, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: {kafka.LastOffsetOf(partition)}}})
	if err != nil {
		t.Fatalf("list offsets of %s: %v", topic, err)
	}
	end := offsets.Topics[topic][0].LastOffset
	var out []relay.Message
	r := kafka.NewReader(kafka.ReaderConfig{Brokers: strings.Split(client.Addr.String(), ","), Topic: topic, Partition: partition, MaxBytes: 16 << 20, MaxWait: 100 * time.Millisecond})
	defer func() { _ = r.Close() }()
	for at := int64(0); at < end; {
		rec, err := r.ReadMessage(ctx)
		if err != nil {
			t.Fatalf("read %s/%d at %d of %d: %v", topic, partition, at, end, err)
		}
		at = rec.Offset + 1
		m := relay.Message{Key: string(rec.Key), Body: rec.Value, Subject: topic}
		for _, h := range rec.Headers {
			switch h.Key {
			case "pgtrickle-dedup-key":
				m.ID = string(h.Value)
			case "pgtrickle-before-key":
				m.BeforeKey = string(h.Value)
			case "pgtrickle-op":
				m.Op = string(h.Value)
			case "pgtrickle-subject":
				m.Subject = string(h.Value)
			default:
				m.Headers = append(m.Headers, relay.Header{Name: h.Key, Value: string(h.Value)})
			}
		}
		if m.ID != "" {
			out = append(out, m)
		}
	}
	return out
}
