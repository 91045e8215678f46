package kafkarelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type source struct {
	cfg     sourceConfig
	env     relay.Env
	cluster *cluster
	group   *kafka.ConsumerGroup

	chunks chan *chunk // what was fetched, in turn
	errs   chan error
	rest   *chunk // of the last chunk, not handed out yet
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	settled *sync.Cond // something was acknowledged
}

// chunk is what one answer of a broker holds of one partition.
type chunk struct {
	part     *assigned
	messages []relay.Message
	offsets  []int64
}

// token is a message's place.
type token struct {
	part   *assigned
	number int
}

func newSource(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Source, error) {
	cfg := sourceDefaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	c, err := newCluster(&cfg.connection, cfg.Topic)
	if err != nil {
		return nil, err
	}
	s := &source{cfg: cfg, env: env, cluster: c, chunks: make(chan *chunk), errs: make(chan error), done: make(chan struct{})}
	s.settled = sync.NewCond(&s.mu)
	if err := s.Ping(ctx); err != nil {
		c.reset()
		return nil, err
	}
	start := kafka.FirstOffset
	if cfg.AutoOffsetReset == "latest" {
		start = kafka.LastOffset
	}
	s.group, err = kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: cfg.group(env), Brokers: cfg.Brokers, Topics: cfg.Topic, Dialer: c.dialer, StartOffset: start,
		SessionTimeout: cfg.SessionTimeout.D(), RebalanceTimeout: max(cfg.SessionTimeout.D(), 10*time.Second),
		HeartbeatInterval: cfg.SessionTimeout.D() / 10, JoinGroupBackoff: 200 * time.Millisecond,
		WatchPartitionChanges: true, PartitionWatchInterval: 30 * time.Second,
	})
	if err != nil {
		c.reset()
		return nil, fmt.Errorf("join consumer group: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	go s.run(run)
	return s, nil
}

// Ping looks the topics up.
func (s *source) Ping(ctx context.Context) error {
	s.cluster.reset()
	res, err := s.cluster.layout(ctx, s.cfg.Topic...)
	if err != nil {
		return err
	}
	for _, t := range res.Topics {
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			return missing(t.Name, "create it, or correct the key topic")
		}
		if t.Error != nil {
			return classify(fmt.Errorf("look up topic %q: %w", t.Name, t.Error))
		}
	}
	return nil
}

// Receive hands out what was fetched.
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		c := s.rest
		s.rest = nil
		if c == nil {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case err := <-s.errs:
				return nil, err
			case <-s.done:
				return nil, errors.New("source is closed")
			case c = <-s.chunks:
			}
		}
		n := min(limit, len(c.messages))
		if !s.hand(c, n) {
			continue // the partition is another's by now
		}
		if n < len(c.messages) {
			s.rest = &chunk{part: c.part, messages: c.messages[n:], offsets: c.offsets[n:]}
		}
		return c.messages[:n:n], nil
	}
}

func (s *source) hand(c *chunk, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.part.generation.ending {
		return false
	}
	tokens := make([]token, n)
	for i := range n {
		tokens[i] = token{c.part, c.part.hand(c.offsets[i])}
		c.messages[i].Token = &tokens[i]
	}
	return true
}

// Ack commits, for each partition in batch, the position before which everything
// is settled.
func (s *source) Ack(_ context.Context, batch []relay.Message) error {
	s.mu.Lock()
	touched := make(map[*generation]map[string]map[int]int64)
	for i := range batch {
		t, ok := batch[i].Token.(*token)
		if !ok {
			s.mu.Unlock()
			return fmt.Errorf("acknowledge %s: not a message of this source", batch[i].ID)
		}
		p := t.part
		p.settle(t.number)
		if p.position > p.committed {
			topics := touched[p.generation]
			if topics == nil {
				topics = make(map[string]map[int]int64)
				touched[p.generation] = topics
			}
			if topics[p.topic] == nil {
				topics[p.topic] = make(map[int]int64)
			}
			topics[p.topic][p.spot.partition] = p.position
		}
	}
	s.settled.Broadcast()
	s.mu.Unlock()
	for g, topics := range touched {
		if err := s.commit(g, topics); err != nil {
			return err
		}
	}
	return nil
}

func (s *source) commit(g *generation, topics map[string]map[int]int64) error {
	err := g.CommitOffsets(topics)
	switch {
	case err == nil:
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range g.parts {
			if at, ok := topics[p.topic][p.spot.partition]; ok {
				p.committed = max(p.committed, at)
			}
		}
		s.settled.Broadcast()
		return nil
	case g.over() || errors.Is(err, kafka.IllegalGeneration) || errors.Is(err, kafka.UnknownMemberId) || errors.Is(err, kafka.RebalanceInProgress):
		// The partitions have a new owner, who gets these messages again.
		s.env.Logger.Info("partitions were reassigned before their position was committed; their new owner gets some messages again", "err", err)
		return nil
	}
	return classify(fmt.Errorf("commit the position of group %q: %w", g.GroupID, err))
}

// Close leaves the group.
func (s *source) Close() error {
	s.stop()
	s.mu.Lock()
	s.settled.Broadcast()
	s.mu.Unlock()
	<-s.done
	return nil
}
