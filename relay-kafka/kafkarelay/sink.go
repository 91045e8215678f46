package kafkarelay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

var (
	_ relay.Limiter = (*sink)(nil)
	_ relay.Resumer = (*sink)(nil)
	_ relay.Router  = (*sink)(nil)
	_ relay.Pinger  = (*sink)(nil)

	_ relay.Tombstoner = (*sink)(nil)
	_ relay.Noter      = (*sink)(nil)
)

type sink struct {
	cfg        sinkConfig
	env        relay.Env
	cluster    *cluster
	acks       kafka.RequiredAcks
	attributes protocol.Attributes // of a batch: its compression

	producer producer // the numbers with which a partition starts
	topics   map[string]*topic
	fixed    *topic       // set when all messages have one topic
	stale    bool         // the layout must be asked for before anything is sent
	doubtful []*partition // with a batch of unknown fate

	// Of one Publish, kept for the next.
	outcome relay.Outcome
	name    []byte // a rendered topic
	active  []*partition
	where   map[string]*topic // the topic of a key, in a wave
	refused map[string]refusal
	lanes   []*lane
	spread  int // partition for messages without a key
}

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{
		cfg: cfg, env: env, acks: kafka.RequireAll, producer: producer{id: -1},
		topics: make(map[string]*topic), where: make(map[string]*topic), refused: make(map[string]refusal),
	}
	if cfg.Acks == "1" {
		s.acks = kafka.RequireOne
	}
	var codec compress.Compression
	if err := codec.UnmarshalText([]byte(cfg.Compression)); err != nil {
		return nil, relaycfg.Errorf("compression", "%s", err)
	}
	s.attributes = protocol.Attributes(codec)
	var topics []string
	if !cfg.Topic.IsZero() && cfg.Topic.Fixed() {
		topics = []string{cfg.Topic.Pattern("", "")}
	}

	var err error
	if s.cluster, err = newCluster(env, &cfg.connection, topics); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, topics); err != nil {
		s.cluster.reset()
		return nil, err
	}
	return s, nil
}

func (s *sink) connect(ctx context.Context, topics []string) (err error) {
	if err := s.Ping(ctx); err != nil {
		return err
	}
	if s.cfg.Idempotence {
		if s.producer, err = patiently(ctx, func() (producer, error) { return s.newProducer(ctx) }); err != nil {
			return err
		}
	}
	if topics != nil {
		s.fixed, err = s.learn(ctx, topics[0])
	}
	return err
}

func (s *sink) newProducer(ctx context.Context) (producer, error) {
	res, err := s.cluster.client.InitProducerID(ctx, &kafka.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		s.cluster.reset()
		return producer{id: -1}, classify(fmt.Errorf("get a producer id: %w; set kafka_idempotence to false where that is not allowed", err))
	}
	return producer{id: int64(res.Producer.ProducerID), epoch: int16(res.Producer.ProducerEpoch)}, nil
}

// Ping implements [relay.Pinger]: it asks for the cluster's layout.
func (s *sink) Ping(ctx context.Context) error {
	s.cluster.reset()
	_, err := s.cluster.layout(ctx)
	return err
}

// Limits implements [relay.Limiter]: one Publish takes a few requests.
func (s *sink) Limits() (messages, bytes int) { return 0, 16 << 20 }

// Destination implements [relay.Router]: the topic of m.
func (s *sink) Destination(m *relay.Message) (string, error) {
	if s.cfg.Topic.IsZero() {
		return m.Subject, nil
	}
	return s.cfg.Topic.Render(m)
}

// Close implements [relay.Sink]: it closes the connections.
func (s *sink) Close() error {
	s.outcome.Close()
	s.cluster.reset()
	return nil
}

// Publish implements [relay.Sink]. It sends one batch at a time to each partition, to
// all partitions at once.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	defer s.outcome.Reset(nil)
	// The engine has called Resume if a batch was of unknown fate. A caller that did not
	// may write messages twice.
	if err := s.settle(ctx); err != nil {
		return err
	}
	for _, p := range s.doubtful {
		p.doubt = nil
	}
	s.doubtful = s.doubtful[:0]

	for from := 0; from < len(batch); {
		to, err := s.assign(ctx, batch, from)
		if err == nil {
			err = s.send(ctx, batch)
		}
		s.forget()
		if err != nil {
			s.outcome.FailRest(err)
			break
		}
		from = to
	}
	return s.outcome.Err()
}

// refresh asks for the layout after an error.
func (s *sink) refresh(ctx context.Context) error {
	if !s.stale {
		return nil
	}
	for name := range s.topics {
		_, err := s.learn(ctx, name)
		if s.fixed == nil && (relay.IsFatal(err) || relay.IsPermanent(err)) {
			s.drop(name) // the error comes back with a message for this topic
			continue
		}
		if err != nil {
			return err
		}
	}
	s.stale = false
	return nil
}

// drop forgets a topic.
func (s *sink) drop(name string) {
	delete(s.topics, name)
	s.doubtful = slices.DeleteFunc(s.doubtful, func(p *partition) bool { return p.topic.name == name })
}

// forget empties the queues of the partitions.
func (s *sink) forget() {
	for _, p := range s.active {
		p.queue, p.next = p.queue[:0], 0
	}
	s.active = s.active[:0]
}

// assign queues messages from index from on at their partitions, and returns the
// index after the last one: a wave. A wave ends before a message whose key is queued
// for another topic. Topics are sent to side by side, so the second message could
// arrive although the first has failed.
func (s *sink) assign(ctx context.Context, batch []relay.Message, from int) (int, error) {
	clear(s.where)
	s.spread++
	for i := from; i < len(batch); i++ {
		m := &batch[i]
		if s.outcome.Held(i) {
			continue
		}
		t, err := s.topicOf(ctx, m)
		if err != nil && relay.IsPermanent(err) {
			s.outcome.Fail(i, err) // the queued messages of its key come before it and are sent
			continue
		}
		if err != nil {
			return i, err
		}

		var p *partition
		if m.Key == "" {
			p = t.partitions[(s.spread+len(s.active)/4)%len(t.partitions)]
		} else {
			if s.fixed == nil {
				if other, ok := s.where[m.Key]; ok && other != t {
					return i, nil
				}
				s.where[m.Key] = t
			}
			p = t.partitions[partitionOf(m.Key, t.ids)]
		}
		if limit := int(s.cfg.MaxMessageBytes); limit > 0 && recordSize(m) > limit {
			s.outcome.Fail(i, relay.Permanent(fmt.Errorf("%w: %d bytes, max_message_bytes is %d", kafka.MessageSizeTooLarge, recordSize(m), limit)))
			continue
		}
		if len(p.queue) == 0 {
			s.active = append(s.active, p)
		}
		p.queue = append(p.queue, int32(i))
	}
	return len(batch), nil
}

func (s *sink) topicOf(ctx context.Context, m *relay.Message) (*topic, error) {
	if s.fixed != nil {
		return s.fixed, nil
	}
	var err error
	if s.cfg.Topic.IsZero() {
		s.name = append(s.name[:0], m.Subject...)
	} else if s.name, err = s.cfg.Topic.Append(s.name[:0], m); err != nil {
		return nil, err
	}
	if t, ok := s.topics[string(s.name)]; ok {
		return t, nil
	}
	if r, ok := s.refused[string(s.name)]; ok && time.Since(r.at) < refusedFor {
		return nil, r.err
	}
	return s.learn(ctx, string(s.name))
}

// refusal is why messages for a topic that a row names cannot be sent. It holds for a
// second, because to look a missing topic up takes as long.
type refusal struct {
	err error
	at  time.Time
}

const (
	refusedFor = time.Second
	maxRefused = 1000
)

// refuse returns err, and remembers it if it refuses a topic that a row names.
func (s *sink) refuse(name string, err error) error {
	if !relay.IsPermanent(err) {
		return err
	}
	if len(s.refused) >= maxRefused {
		clear(s.refused)
	}
	s.refused[name] = refusal{err, time.Now()}
	return err
}

// ofRow reports whether the fields of a row name the topic. Then a topic that is missing
// or denied is the fault of that row, and others go on.
func (s *sink) ofRow() bool {
	if s.cfg.Topic.IsZero() {
		return s.env.Subject.PerMessage()
	}
	return s.cfg.Topic.PerMessage()
}

// send sends the queued messages and returns the first error after which nothing
// more of this batch may be sent.
func (s *sink) send(ctx context.Context, batch []relay.Message) error {
	lanes := s.spreadOver()
	var wait sync.WaitGroup
	for _, l := range lanes[1:] {
		wait.Go(func() { l.run(ctx, batch) })
	}
	lanes[0].run(ctx, batch)
	wait.Wait()

	var first error
	for _, l := range lanes {
		if first == nil {
			first = l.err
		}
		for _, p := range l.partitions {
			if p.doubt != nil {
				s.doubtful = append(s.doubtful, p)
			}
		}
	}
	if first != nil {
		s.stale = true
		s.cluster.reset()
	}
	return first
}
