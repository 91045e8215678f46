package kafkarelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

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

// The alarm for records that left before the group read them has their number. It is logged
// and counted once, although the cursor cannot store it at first.
func TestRetentionPassedThePosition(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 1)
	var log relaytest.Log
	var cursor relaytest.Cursor
	open := func() relay.Source {
		env := testEnv()
		env.Logger = log.Logger()
		s, err := recreatedSource(brokers, topic)(t.Context(), cursor.Env(env), relay.OnRecreatedStop)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := open()
	feedNumbers(t, brokers, topic, 1, 3)
	for n, deadline := 0, time.Now().Add(relaytest.Patience()); n < 3; { // a new broker has no coordinator yet
		got, err := s.Receive(t.Context(), 10)
		if err == nil {
			err = s.Ack(t.Context(), got)
		}
		if err != nil && time.Now().After(deadline) {
			t.Fatal(err)
		}
		n += len(got)
	}
	_ = s.Close()
	feedNumbers(t, brokers, topic, 4, 10)
	deleteRecords(t, brokers, topic, 11)
	got := cursor.LossOnce(t, open(), 2, &log, "position lost; reading oldest record", topic, 8)
	if !strings.HasSuffix(got[0].ID, ":0:11") {
		t.Errorf("received %s first, want offset 11", got[0].ID)
	}
	if want := "partition=0 position=3 oldest=11 messages=8"; !strings.Contains(log.String(), want) {
		t.Errorf("logged %s, want %q", &log, want)
	}
}

// deleteRecords removes the records of partition 0 before offset.
func deleteRecords(t testing.TB, brokers, topic string, offset int64) {
	t.Helper()
	registerDeleteRecords()
	req := &deleteRecordsRequest{TimeoutMs: 10_000, Topics: []deleteRecordsTopic{{topic, []deleteRecordsPartition{{0, offset}}}}}
	res, err := rawTransport.RoundTrip(t.Context(), kafka.TCP(brokers), req)
	if err != nil {
		t.Fatal(err)
	}
	if p := res.(*deleteRecordsResponse).Topics[0].Partitions[0]; p.ErrorCode != 0 || p.LowWatermark != offset {
		t.Fatalf("delete records before %d: %v, the oldest is now %d", offset, kafka.Error(p.ErrorCode), p.LowWatermark)
	}
}

// The client does not have DeleteRecords.
type (
	deleteRecordsRequest struct {
		Topics    []deleteRecordsTopic `kafka:"min=v0,max=v1"`
		TimeoutMs int32                `kafka:"min=v0,max=v1"`
	}
	deleteRecordsTopic struct {
		Name       string                   `kafka:"min=v0,max=v1"`
		Partitions []deleteRecordsPartition `kafka:"min=v0,max=v1"`
	}
	deleteRecordsPartition struct {
		Index  int32 `kafka:"min=v0,max=v1"`
		Offset int64 `kafka:"min=v0,max=v1"`
	}
	deleteRecordsResponse struct {
		ThrottleTimeMs int32                        `kafka:"min=v0,max=v1"`
		Topics         []deleteRecordsTopicResponse `kafka:"min=v0,max=v1"`
	}
	deleteRecordsTopicResponse struct {
		Name       string                           `kafka:"min=v0,max=v1"`
		Partitions []deleteRecordsPartitionResponse `kafka:"min=v0,max=v1"`
	}
	deleteRecordsPartitionResponse struct {
		Index        int32 `kafka:"min=v0,max=v1"`
		LowWatermark int64 `kafka:"min=v0,max=v1"`
		ErrorCode    int16 `kafka:"min=v0,max=v1"`
	}
)

var registerDeleteRecords = sync.OnceFunc(func() { protocol.Register(&deleteRecordsRequest{}, &deleteRecordsResponse{}) })

func (*deleteRecordsRequest) ApiKey() protocol.ApiKey  { return protocol.DeleteRecords } //nolint:staticcheck // the interface's name
func (*deleteRecordsResponse) ApiKey() protocol.ApiKey { return protocol.DeleteRecords } //nolint:staticcheck // the interface's name

// Broker implements [protocol.BrokerMessage]: the tests' cluster has one broker.
func (*deleteRecordsRequest) Broker(c protocol.Cluster) (protocol.Broker, error) {
	return c.Brokers[c.Controller], nil
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
