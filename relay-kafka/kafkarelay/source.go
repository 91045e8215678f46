package kafkarelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var _ relay.Pinger = (*source)(nil)

type source struct {
	cfg     sourceConfig
	env     relay.Env
	cluster *cluster
	group   *kafka.ConsumerGroup
	farEnds *relay.FarEnds

	chunks chan *chunk // fetched records
	errs   chan error
	rest   *chunk // the part of the last chunk that Receive has not returned
	stop   context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	settled *sync.Cond // signalled when messages are acknowledged or committed
}

// chunk holds the records of one partition in one answer of a broker.
type chunk struct {
	part     *assigned
	messages []relay.Message
	offsets  []int64
}

// reassigned are the errors of a commit after which the partitions have a new owner.
var reassigned = []kafka.Error{kafka.IllegalGeneration, kafka.UnknownMemberId, kafka.RebalanceInProgress}

// token is the ticket of a message.
type token struct {
	part   *assigned
	ticket uint64
}

func newSource(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
	cfg.GroupID = cmp.Or(cfg.GroupID, "pgtrickle-relay."+env.Group+"."+env.Pipeline)
	farEnds, err := relay.RecallFarEnds(env, cfg.OnRecreated)
	if err != nil {
		return nil, err
	}
	c, err := newCluster(env, &cfg.connection, cfg.Topic)
	if err != nil {
		return nil, err
	}
	s := &source{
		cfg: cfg, env: env, cluster: c, farEnds: farEnds,
		chunks: make(chan *chunk), errs: make(chan error), done: make(chan struct{}),
	}
	s.settled = sync.NewCond(&s.mu)
	err = s.Ping(ctx)
	if err == nil {
		_, err = s.meet(ctx)
	}
	if err != nil {
		c.reset()
		return nil, err
	}
	s.group, err = kafka.NewConsumerGroup(kafka.ConsumerGroupConfig{
		ID: cfg.GroupID, Brokers: cfg.Brokers, Topics: cfg.Topic, Dialer: c.dialer,
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

// Ping implements [relay.Pinger]: it looks the topics up.
func (s *source) Ping(ctx context.Context) error {
	s.cluster.reset()
	res, err := s.cluster.layout(ctx, s.cfg.Topic...)
	if err != nil {
		return err
	}
	for _, t := range res.Topics {
		if errors.Is(t.Error, kafka.UnknownTopicOrPartition) {
			return missing(t.Name, "create it, or correct kafka_topic")
		}
		if t.Error != nil {
			return classify(fmt.Errorf("look up topic %q: %w", t.Name, t.Error))
		}
	}
	return nil
}

// Receive implements [relay.Source]: it returns fetched records.
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
				return nil, relay.ErrClosed
			case c = <-s.chunks:
			}
		}
		n := min(limit, len(c.messages))
		if !s.hand(c, n) {
			continue // the partition is no longer assigned to this member
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
		tokens[i] = token{c.part, c.part.acks.Add(c.offsets[i] + 1)}
		c.messages[i].Token = &tokens[i]
	}
	return true
}

// Ack implements [relay.Source]: for each partition in batch it commits the position
// before which all messages are settled.
func (s *source) Ack(_ context.Context, batch []relay.Message) error {
	touched := make(map[*generation]bool)
	s.mu.Lock()
	for i := range batch {
		t := batch[i].Token.(*token)
		if position, moved := t.part.acks.Done(t.ticket); moved {
			t.part.position = position
		}
		touched[t.part.generation] = true
	}
	s.settled.Broadcast()
	s.mu.Unlock()
	for g := range touched {
		if err := s.commit(g); err != nil {
			return err
		}
	}
	return nil
}

// commit stores the positions of g that have moved.
func (s *source) commit(g *generation) error {
	moved := make(map[string]map[int]int64)
	s.mu.Lock()
	for _, p := range g.parts {
		if p.position > p.committed {
			if moved[p.spot.topic] == nil {
				moved[p.spot.topic] = make(map[int]int64)
			}
			moved[p.spot.topic][p.spot.partition] = p.position
		}
	}
	s.mu.Unlock()
	if len(moved) == 0 {
		return nil
	}

	err := g.CommitOffsets(moved)
	switch {
	case err == nil:
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, p := range g.parts {
			p.committed = max(p.committed, moved[p.spot.topic][p.spot.partition])
		}
		s.settled.Broadcast()
		return nil
	case g.over() || slices.ContainsFunc(reassigned, func(code kafka.Error) bool { return errors.Is(err, code) }):
		// The partitions have a new owner, which receives some messages again.
		s.env.Logger.Info("partitions reassigned before their commit", "err", err)
		return nil
	}
	return classify(fmt.Errorf("commit the position of group %q: %w", g.GroupID, err))
}

// Close implements [relay.Source]: it leaves the group.
func (s *source) Close() error {
	s.stop()
	s.mu.Lock()
	s.settled.Broadcast()
	s.mu.Unlock()
	<-s.done
	return nil
}
