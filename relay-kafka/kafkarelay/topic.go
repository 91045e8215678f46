package kafkarelay

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// topic is one that the sink has written to, or is about to.
type topic struct {
	name       string
	partitions []*partition
	ids        []int // 0, 1, … for the balancer
}

// partition is the sink's side of one partition. Between two Publish calls queue
// and next are empty, and inside one a single goroutine has it.
type partition struct {
	topic  *topic
	id     int
	leader int
	limit  int   // bytes that a batch may have
	end    int64 // offset behind the last record that is known to be there
	producer
	unsettled *unsettled

	queue      []int32 // indexes in the batch, in order
	next       int     // how many of queue are done
	maxRecords int     // of a batch, after the broker refused a larger one; 0: no limit
}

// unsettled is a batch of which nobody knows whether the broker has it.
type unsettled struct {
	bytes []byte // as it was sent
	ids   []string
	lost  bool // sending it again would not tell
}

// defaultLimit is max.message.bytes of a broker that was not told otherwise.
const defaultLimit = 1048588

// learn returns the topic called name as the cluster has it, and creates it
// where it may. For partitions that were not known before it finds the end, so
// that [sink.Resume] need not read what others wrote there.
func (s *sink) learn(ctx context.Context, name string) (*topic, error) {
	if !validTopic(name) {
		return nil, relay.Permanent(fmt.Errorf("topic %q: not a name that Kafka allows: up to 249 of a-z A-Z 0-9 . _ -", name))
	}
	meta, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	t := s.topics[name]
	if t == nil {
		t = &topic{name: name}
	}
	if n := len(meta.Partitions); n > len(t.partitions) {
		ends, err := patiently(ctx, func() ([]int64, error) { return s.cluster.offsets(ctx, name, n, kafka.LastOffset) })
		if err != nil {
			return nil, err
		}
		limit := s.topicLimit(ctx, name)
		for id := len(t.partitions); id < n; id++ {
			t.partitions = append(t.partitions, &partition{topic: t, id: id, limit: limit, end: ends[id], producer: s.producer})
		}
	}
	t.partitions = t.partitions[:len(meta.Partitions)] // the topic may have been created again
	t.ids = t.ids[:0]
	for id := range t.partitions {
		t.ids = append(t.ids, id)
	}
	for _, p := range meta.Partitions {
		if p.ID < len(t.partitions) {
			t.partitions[p.ID].leader = p.Leader.ID
		}
	}
	s.topics[name] = t
	return t, nil
}

// find waits a moment for a topic that is not in the layout: it may have been
// created just now, or the broker may have started just now.
func (s *sink) find(ctx context.Context, name string) (kafka.Topic, error) {
	for attempt := 0; ; attempt++ {
		res, err := s.cluster.layout(ctx, name)
		if err != nil {
			return kafka.Topic{}, err
		}
		meta := res.Topics[0]
		switch {
		case meta.Error == nil && len(meta.Partitions) > 0:
			return meta, nil
		case meta.Error != nil && !errors.Is(meta.Error, kafka.UnknownTopicOrPartition):
			s.cluster.reset()
			return kafka.Topic{}, classify(fmt.Errorf("look up topic %q: %w", name, meta.Error))
		case attempt >= 1 && s.cfg.CreateIfMissing:
			if err := s.create(ctx, name); err != nil {
				return kafka.Topic{}, err
			}
		case attempt >= 3:
			return kafka.Topic{}, missing(name, "create it, or set create_if_missing to true")
		}
		s.cluster.reset()
		if err := backoff.Sleep(ctx, time.Duration(attempt)*150*time.Millisecond); err != nil {
			return kafka.Topic{}, err
		}
	}
}

func (s *sink) create(ctx context.Context, name string) error {
	cfg := kafka.TopicConfig{Topic: name, NumPartitions: -1, ReplicationFactor: -1}
	if s.cfg.Partitions > 0 {
		cfg.NumPartitions = s.cfg.Partitions
	}
	if s.cfg.ReplicationFactor > 0 {
		cfg.ReplicationFactor = s.cfg.ReplicationFactor
	}
	if s.cfg.MaxMessageBytes > 0 {
		// The broker counts the batch around the message, too.
		size := strconv.FormatInt(int64(s.cfg.MaxMessageBytes)+batchOverhead, 10)
		cfg.ConfigEntries = append(cfg.ConfigEntries, kafka.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: size})
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	res, err := s.cluster.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{cfg}})
	if err == nil {
		err = res.Errors[name]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		s.cluster.reset()
		return classify(fmt.Errorf("create topic %q: %w", name, err))
	}
	s.env.Logger.InfoContext(ctx, "created topic", "topic", name)
	return nil
}

const batchOverhead = 128

// topicLimit asks for max.message.bytes. Where the relay may not ask it takes
// the broker's default; a topic with a lower limit then costs a refused batch.
func (s *sink) topicLimit(ctx context.Context, name string) int {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	res, err := s.cluster.client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: name, ConfigNames: []string{"max.message.bytes"},
	}}})
	if err != nil {
		return defaultLimit
	}
	for _, r := range res.Resources {
		for _, e := range r.ConfigEntries {
			if n, err := strconv.Atoi(e.ConfigValue); err == nil && n > 0 {
				return n
			}
		}
	}
	return defaultLimit
}
