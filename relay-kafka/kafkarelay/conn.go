package kafkarelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// cluster is a pool of connections with the cluster's layout.
type cluster struct {
	client    *kafka.Client
	transport *kafka.Transport
	net       relaynet.Dialer
	dialer    *kafka.Dialer // of the consumer group, which uses net too
	brokers   []string
	fetch     int // bytes that a fetch may ask for; 0: no bound
}

const dialTimeout = 5 * time.Second

// newCluster does not connect yet. The layout is that of topics, or of all topics when
// there are none.
func newCluster(env relay.Env, cfg *connection, topics []string) (*cluster, error) {
	tlsConfig, err := cfg.Client(env.Read)
	if err != nil {
		return nil, err
	}
	mechanism, err := cfg.mechanism()
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", cfg.SASLMechanism, err)
	}
	boundCodecs()
	c := &cluster{brokers: cfg.Brokers, net: relaynet.Dialer{Timeout: dialTimeout, TLS: tlsConfig, Control: env.Control}}
	c.fetch = int(env.MaxAnswer / 2) // a broker adds headers
	c.net.Wrap = func(conn net.Conn) net.Conn { return newGuard(conn, env.MaxAnswer) }
	c.transport = &kafka.Transport{
		Dial: c.net.DialContext, DialTimeout: dialTimeout, IdleTimeout: time.Minute,
		MetadataTTL: time.Minute, MetadataTopics: topics, ClientID: cfg.ClientID, SASL: mechanism,
	}
	c.client = &kafka.Client{Addr: kafka.TCP(cfg.Brokers...), Transport: c.transport, Timeout: 2 * dialTimeout}
	c.dialer = &kafka.Dialer{ClientID: cfg.ClientID, Timeout: dialTimeout, DialFunc: c.net.DialContext, SASLMechanism: mechanism}
	return c, nil
}

// reset drops all connections and the layout, so that the next request connects and
// asks for the leaders again. It is called after each error: the transport keeps its
// layout, and its last error, until the layout expires.
func (c *cluster) reset() { c.transport.CloseIdleConnections() }

// layout returns the partitions and leaders of topics, or of all topics.
func (c *cluster) layout(ctx context.Context, topics ...string) (*kafka.MetadataResponse, error) {
	res, err := c.client.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
	if err != nil {
		c.reset()
		if errors.Is(err, io.ErrUnexpectedEOF) { // kafka-go makes it of an EOF
			err = fmt.Errorf("%w: the broker closed the connection; check host, port and kafka_tls", err)
		}
		return nil, classify(fmt.Errorf("ask %s for the cluster's layout: %w", c.client.Addr, err))
	}
	return res, nil
}

// offsets returns an offset of each partition of topic. which is kafka.FirstOffset,
// kafka.LastOffset, or a time in milliseconds. For a time it is the offset of the first
// record at that time or later, or -1 without one.
func (c *cluster) offsets(ctx context.Context, topic string, partitions int, which int64) ([]int64, error) {
	const atOnce = 8 // the client takes a connection for each partition it asks for
	out := make([]int64, partitions)
	for from := 0; from < partitions; from += atOnce {
		var reqs []kafka.OffsetRequest
		for p := from; p < min(from+atOnce, partitions); p++ {
			reqs = append(reqs, kafka.OffsetRequest{Partition: p, Timestamp: which})
		}
		res, err := c.client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: reqs}})
		if err != nil {
			c.reset()
			return nil, classify(fmt.Errorf("list the offsets of topic %q: %w", topic, err))
		}
		for _, p := range res.Topics[topic] {
			if p.Error != nil {
				c.reset()
				return nil, classify(fmt.Errorf("list the offset of partition %d of topic %q: %w", p.Partition, topic, p.Error))
			}
			out[p.Partition] = max(p.FirstOffset, p.LastOffset)
			for offset := range p.Offsets {
				out[p.Partition] = offset
			}
		}
	}
	return out, nil
}

// patiently calls ask until it succeeds, fails with an error that will not pass, or two
// seconds have passed. A new topic has no leader yet, and a broker that has just started
// no producer ids.
func patiently[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for wait := 25 * time.Millisecond; ; wait *= 2 {
		v, err := ask()
		var code kafka.Error
		if err == nil || relay.IsFatal(err) || relay.IsPermanent(err) || !errors.As(err, &code) || wait > time.Second {
			return v, err
		}
		if backoff.Sleep(ctx, wait) != nil {
			return v, err
		}
	}
}

// missing returns the error for a topic that does not exist.
func missing(topic, cure string) error {
	return refusals.Classify(fmt.Errorf("topic %q does not exist: %s", topic, cure), noTopic, false)
}

// topic is a topic that the sink writes to.
type topic struct {
	name       string
	partitions []*partition
	ids        []int // 0, 1, … for the balancer
	policy     policy
}

// partition is the sink's state of one partition. queue and next are empty between two
// Publish calls. During a Publish one goroutine has the partition.
type partition struct {
	topic  *topic
	id     int
	leader int
	limit  int   // bytes that a batch may have
	end    int64 // offset after the last record that is known to be there
	producer
	doubt *doubt // nil when it is known which batches the broker has

	queue      []int32 // indexes in the batch, in order
	next       int     // how many of queue are done
	maxRecords int     // of a batch, after the broker refused a larger one; 0: no limit
}

// doubt is a batch of unknown fate: the broker may have it.
type doubt struct {
	bytes   []byte // the batch as it was sent
	ids     []string
	lost    bool     // the broker no longer knows its numbers
	found   []string // ids that the broker has
	settled bool     // found is complete
}

// defaultLimit is the default of max.message.bytes.
const defaultLimit = 1048588

// learn returns the topic called name from the cluster's layout, and creates it if it is
// missing and create_if_missing is set. It finds the end of new partitions, so that
// [sink.Resume] does not read the records of other producers.
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

// find waits for a topic that is not in the layout: the topic may have been created, or
// the broker started, a moment ago.
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
			return kafka.Topic{}, s.refuse(name, classifyFor(fmt.Errorf("look up topic %q: %w", name, meta.Error), s.ofRow()))
		case attempt >= 1 && s.cfg.CreateIfMissing:
			if err := s.create(ctx, name); err != nil {
				return kafka.Topic{}, err
			}
		case attempt >= 3:
			err := missing(name, "create it, or set kafka_create_if_missing to true")
			return kafka.Topic{}, s.refuse(name, refusals.Classify(err, noTopic, s.ofRow()))
		}
		s.cluster.reset()
		if err := backoff.Sleep(ctx, time.Duration(attempt)*150*time.Millisecond); err != nil {
			return kafka.Topic{}, err
		}
	}
}

func (s *sink) create(ctx context.Context, name string) error {
	cfg := kafka.TopicConfig{Topic: name, NumPartitions: cmp.Or(s.cfg.Partitions, -1), ReplicationFactor: cmp.Or(s.cfg.ReplicationFactor, -1)}
	if s.cfg.MaxMessageBytes > 0 {
		// The broker counts the batch around the message, too.
		size := strconv.FormatInt(int64(s.cfg.MaxMessageBytes)+batchOverhead, 10)
		cfg.ConfigEntries = append(cfg.ConfigEntries, kafka.ConfigEntry{ConfigName: "max.message.bytes", ConfigValue: size})
	}
	res, err := s.cluster.client.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{cfg}})
	if err == nil {
		err = res.Errors[name]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		s.cluster.reset()
		return s.refuse(name, classifyFor(fmt.Errorf("create topic %q: %w", name, err), s.ofRow()))
	}
	s.env.Logger.InfoContext(ctx, "created topic", "topic", name)
	return nil
}

const batchOverhead = 128

// topicLimit returns max.message.bytes of a topic. Without the permission to ask it
// returns the default; a topic with a lower limit then refuses a batch.
func (s *sink) topicLimit(ctx context.Context, name string) int {
	value, _ := s.topicSetting(ctx, name, "max.message.bytes")
	if n, err := strconv.Atoi(value); err == nil && n > 0 {
		return n
	}
	return defaultLimit
}

// topicSetting returns a setting of a topic, "" if the brokers do not have it.
func (s *sink) topicSetting(ctx context.Context, topic, setting string) (string, error) {
	res, err := s.cluster.client.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{setting},
	}}})
	if err != nil {
		return "", classify(fmt.Errorf("ask for %s of topic %q: %w", setting, topic, err))
	}
	for _, r := range res.Resources {
		if r.Error != nil {
			return "", classify(fmt.Errorf("ask for %s of topic %q: %w", setting, topic, r.Error))
		}
		for _, e := range r.ConfigEntries {
			if e.ConfigName == setting {
				return e.ConfigValue, nil
			}
		}
	}
	return "", nil
}
