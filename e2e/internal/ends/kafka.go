package ends

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
)

const kafkaPartitions = 4

type kafkaEnd struct{ broker, topic string }

func newKafka(ctx context.Context, env Env) (End, error) {
	e := kafkaEnd{env.Server.URL, env.Name}
	return e, e.create(ctx)
}

func (e kafkaEnd) create(ctx context.Context) error {
	client := &kafka.Client{Addr: kafka.TCP(e.broker), Transport: &kafka.Transport{}} // of its own: the broker may just be back
	res, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{
		Topic: e.topic, NumPartitions: kafkaPartitions, ReplicationFactor: 1,
		ConfigEntries: []kafka.ConfigEntry{{ConfigName: "max.message.bytes", ConfigValue: "4194304"}},
	}}})
	if err != nil {
		return err
	}
	if err := res.Errors[e.topic]; err != nil {
		return err
	}
	return retry(ctx, func(ctx context.Context) error { // until every partition has a leader
		for partition := range kafkaPartitions {
			conn, err := kafka.DialLeader(ctx, "tcp", e.broker, e.topic, partition)
			if err != nil {
				return err
			}
			if err := conn.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e kafkaEnd) Sink() map[string]any {
	return map[string]any{"brokers": e.broker, "topic": e.topic}
}

func (e kafkaEnd) Source() map[string]any {
	return map[string]any{"brokers": e.broker, "topic": e.topic, "group_id": e.topic}
}

func (e kafkaEnd) Arrived(ctx context.Context) (records []Record, err error) {
	for partition := range kafkaPartitions {
		if records, err = e.read(ctx, partition, records); err != nil {
			return nil, fmt.Errorf("read partition %d of %s: %w", partition, e.topic, err)
		}
	}
	return records, nil
}

func (e kafkaEnd) read(ctx context.Context, partition int, to []Record) ([]Record, error) {
	conn, err := kafka.DialLeader(ctx, "tcp", e.broker, e.topic, partition)
	if err != nil {
		return nil, err
	}
	_, last, err := conn.ReadOffsets()
	if err = errors.Join(err, conn.Close()); err != nil {
		return nil, err
	}
	r := kafka.NewReader(kafka.ReaderConfig{
		Brokers: []string{e.broker}, Topic: e.topic, Partition: partition,
		MaxBytes: 16 << 20, MaxWait: 100 * time.Millisecond,
	})
	defer r.Close()
	for at := int64(0); at < last; {
		m, err := r.ReadMessage(ctx)
		if err != nil {
			return nil, err
		}
		at = m.Offset + 1
		to = append(to, Record{ID: header(m.Headers, "pgtrickle-dedup-key"), Key: string(m.Key), Body: m.Value})
	}
	return to, nil
}

func header(headers []kafka.Header, name string) string {
	for _, h := range headers {
		if h.Key == name {
			return string(h.Value)
		}
	}
	return ""
}

func (e kafkaEnd) Produce(ctx context.Context, records []Record) error {
	messages := make([]kafka.Message, len(records))
	for i, r := range records {
		name := "pgtrickle-dedup-key"
		if r.Foreign {
			name = "id"
		}
		messages[i] = kafka.Message{Key: []byte(r.Key), Value: r.Body, Headers: []kafka.Header{{Key: name, Value: []byte(r.ID)}}}
	}
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	w := &kafka.Writer{
		Addr: kafka.TCP(e.broker), Topic: e.topic, Balancer: &kafka.Hash{}, RequiredAcks: kafka.RequireAll,
		BatchTimeout: time.Millisecond, BatchBytes: 4 << 20, MaxAttempts: 1, Transport: transport,
	}
	defer w.Close()
	return retry(ctx, func(ctx context.Context) error {
		err := w.WriteMessages(ctx, messages...)
		var each kafka.WriteErrors
		if errors.As(err, &each) { // those that were not written go again, in order
			var again []kafka.Message
			for i, err := range each {
				if err != nil {
					again = append(again, messages[i])
				}
			}
			messages = again
		}
		return err
	})
}

func (kafkaEnd) Close() {}
