package kafkarelay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// cluster is a pool of connections with the cluster's layout.
type cluster struct {
	client    *kafka.Client
	transport *kafka.Transport
	dialer    *kafka.Dialer // for the consumer group, which dials for itself
	lines     *lines        // the dialer's
}

const dialTimeout = 5 * time.Second

// newCluster connects nothing yet. The layout is that of topics alone, or of all
// topics when there are none.
func newCluster(cfg *connection, topics []string) (*cluster, error) {
	tlsConfig, err := cfg.tlsConfig()
	if err != nil {
		return nil, err
	}
	mechanism, err := cfg.mechanism()
	if err != nil {
		return nil, fmt.Errorf("set up %s: %w", cfg.SASLMechanism, err)
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	transport := &kafka.Transport{
		Dial:           dialer.DialContext,
		DialTimeout:    dialTimeout,
		IdleTimeout:    time.Minute,
		MetadataTTL:    time.Minute,
		MetadataTopics: topics,
		ClientID:       cfg.ClientID,
		TLS:            tlsConfig,
		SASL:           mechanism,
	}
	lines := newLines(tlsConfig)
	return &cluster{
		client:    &kafka.Client{Addr: kafka.TCP(cfg.Brokers...), Transport: transport},
		transport: transport,
		dialer: &kafka.Dialer{
			ClientID: cfg.ClientID, Timeout: dialTimeout, DialFunc: lines.dial, SASLMechanism: mechanism,
		},
		lines: lines,
	}, nil
}

// reset drops all connections and the layout, so that the next request dials
// anew and learns who leads what. It is called after each error: the transport
// would keep to its layout, and to its last error, until the layout expires.
func (c *cluster) reset() { c.transport.CloseIdleConnections() }

// layout returns what the cluster knows of topics, or of all topics.
func (c *cluster) layout(ctx context.Context, topics ...string) (*kafka.MetadataResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	res, err := c.client.Metadata(ctx, &kafka.MetadataRequest{Topics: topics})
	if err != nil {
		c.reset()
		return nil, classify(fmt.Errorf("ask %s for the cluster's layout: %w", c.client.Addr, err))
	}
	return res, nil
}

// offsets asks for an offset of each partition of topic: the first
// (kafka.FirstOffset), the end (kafka.LastOffset), or that of the first record
// at a time in milliseconds or later, -1 when there is none.
func (c *cluster) offsets(ctx context.Context, topic string, partitions int, which int64) ([]int64, error) {
	const atOnce = 8 // the client takes a connection for each partition it asks for
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
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

// patiently calls ask until it succeeds, fails for good, or has had a second or
// so: a topic that was just made has no leader yet, and a broker that was just
// started has no producer ids.
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

// missing is the error for a topic that is not there.
func missing(topic, cure string) error {
	return relay.Fatal(fmt.Errorf("topic %q does not exist: %s", topic, cure))
}
