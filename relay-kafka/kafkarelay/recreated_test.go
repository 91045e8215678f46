package kafkarelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRecreated(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	relaytest.TestRecreated(t, func(t testing.TB) relaytest.RecreatedCase {
		topic := newTopic(t, brokers, 1)
		return relaytest.RecreatedCase{
			Env:  testEnv(),
			Open: recreatedSource(brokers, topic),
			Feed: func(t testing.TB, from, count int) { feedNumbers(t, brokers, topic, from, count) },
			Recreate: func(t testing.TB) {
				client := &kafka.Client{Addr: kafka.TCP(brokers), Transport: rawTransport}
				res, err := client.DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
				if err == nil {
					err = res.Errors[topic]
				}
				if err != nil {
					t.Fatal(err)
				}
				config := kafka.TopicConfig{Topic: topic, NumPartitions: 1, ReplicationFactor: 1}
				for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
					res, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{config}})
					if err == nil {
						err = res.Errors[topic]
					}
					if err == nil {
						return
					}
					if !errors.Is(err, kafka.TopicAlreadyExists) || time.Now().After(deadline) {
						t.Fatal(err)
					}
				}
			},
		}
	})
}

func recreatedSource(brokers, topic string) func(context.Context, relay.Env, string) (relay.Source, error) {
	return func(ctx context.Context, env relay.Env, onRecreated string) (relay.Source, error) {
		raw, _ := json.Marshal(map[string]any{"brokers": brokers, "topic": topic, "group_id": topic, "on_recreated": onRecreated})
		return Backend().Source.New(ctx, env, raw)
	}
}

func feedNumbers(t testing.TB, brokers, topic string, from, count int) {
	t.Helper()
	records := make([]kafka.Message, count)
	for i := range records {
		records[i].Value = fmt.Appendf(nil, `{"n":%d}`, from+i)
	}
	writeRaw(t, brokers, topic, records...)
}

// Without a topic id, as before 2.8, a topic that was created again shows only by ending
// before the group's position. So does one that lost its last records.
func TestPositionBeyondTheEnd(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 1)
	feedNumbers(t, brokers, topic, 1, 3)
	client := &kafka.Client{Addr: kafka.TCP(brokers), Transport: rawTransport}
	res, err := client.OffsetCommit(t.Context(), &kafka.OffsetCommitRequest{
		GroupID: topic, GenerationID: -1, Topics: map[string][]kafka.OffsetCommit{topic: {{Partition: 0, Offset: 10}}},
	})
	if err != nil || res.Topics[topic][0].Error != nil {
		t.Fatal(err, res)
	}
	var cursor relaytest.Cursor
	open := recreatedSource(brokers, topic)
	for range 2 {
		s, err := open(t.Context(), cursor.Env(testEnv()), relay.OnRecreatedStop)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Receive(t.Context(), 10)
		_ = s.Close()
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), "ends at 3, before the position 10") {
			t.Fatalf("Receive = %v, want a fatal error that names both positions", err)
		}
	}
	s, err := open(t.Context(), cursor.Env(testEnv()), relay.OnRecreatedRestart)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	got, err := s.Receive(t.Context(), 10)
	if err != nil || len(got) != 3 || !strings.HasSuffix(got[0].ID, ".1:0:0") {
		t.Fatalf("Receive = %v, %v; want three messages with ids of their own", got, err)
	}
}

func TestTopicIDs(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	a, b := newTopic(t, brokers, 3), newTopic(t, brokers, 1)
	c, err := newCluster(relay.Env{}, &connection{Brokers: []string{"127.0.0.1:1", brokers}, ClientID: "test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.net.Close()
	ids, err := c.topicIDs(t.Context(), []string{a, "no-such-topic", b})
	if err != nil || len(ids) != 2 || len(ids[a]) != 22 || len(ids[b]) != 22 || ids[a] == ids[b] {
		t.Errorf("topicIDs = %v, %v; want two different ids", ids, err)
	}
}
