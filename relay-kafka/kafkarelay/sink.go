package kafkarelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

var errClosed = errors.New("sink is closed")

type sink struct {
	cfg        sinkConfig
	env        relay.Env
	cluster    *cluster
	acks       kafka.RequiredAcks
	attributes protocol.Attributes // of a batch: its compression

	producer producer // what a partition starts from
	topics   map[string]*topic
	fixed    *topic // when every message has the same topic
	stale    bool   // the layout must be learnt anew before anything is sent
	closed   bool

	unsettled []*partition        // with a batch of unknown fate
	settled   map[string]struct{} // ids found to be there, which the engine will publish again

	// Of one Publish, kept for the next.
	name   []byte
	active []*partition
	where  map[string]*topic   // of a key, in a wave
	held   map[string]struct{} // keys with a failed message
	lanes  []*lane
	spread int // partition for messages without a key
}

func newSink(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Sink, error) {
	cfg := sinkDefaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	s := &sink{
		cfg: cfg, env: env, acks: kafka.RequireAll,
		producer: producer{id: -1},
		topics:   make(map[string]*topic), settled: make(map[string]struct{}), where: make(map[string]*topic), held: make(map[string]struct{}),
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
		topics = []string{cfg.Topic.String()}
		if name, err := cfg.Topic.Render(&relay.Message{}); err == nil {
			topics[0] = name
		}
	}
	var err error
	if s.cluster, err = newCluster(&cfg.connection, topics); err != nil {
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
		if s.fixed, err = s.learn(ctx, topics[0]); err != nil {
			return err
		}
	}
	return nil
}

func (s *sink) newProducer(ctx context.Context) (producer, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	res, err := s.cluster.client.InitProducerID(ctx, &kafka.InitProducerIDRequest{ProducerID: -1, ProducerEpoch: -1})
	if err == nil {
		err = res.Error
	}
	if err != nil {
		s.cluster.reset()
		return producer{id: -1}, classify(fmt.Errorf("get a producer id (set idempotence to false where that is not allowed): %w", err))
	}
	return producer{id: int64(res.Producer.ProducerID), epoch: int16(res.Producer.ProducerEpoch)}, nil
}

// Ping asks for the cluster's layout.
func (s *sink) Ping(ctx context.Context) error {
	s.cluster.reset()
	_, err := s.cluster.layout(ctx)
	return err
}

// Limits keeps what one Publish encodes within a few requests.
func (s *sink) Limits() (messages, bytes int) { return 0, 16 << 20 }

// Destination returns the topic of m.
func (s *sink) Destination(m *relay.Message) (string, error) {
	if s.cfg.Topic.IsZero() {
		return m.Subject, nil
	}
	return s.cfg.Topic.Render(m)
}

// Close drops the connections.
func (s *sink) Close() error {
	s.closed = true
	s.cluster.reset()
	return nil
}

// Publish sends one batch at a time to each partition, to all partitions at
// once.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errClosed
	}
	if err := s.recover(ctx); err != nil {
		return err
	}
	clear(s.held)
	var failed relay.BatchError
	for from := 0; from < len(batch); {
		to, err := s.assign(ctx, batch, from, &failed)
		if err != nil {
			s.forget()
			return s.rest(batch, from, &failed, err)
		}
		s.confirm(batch[from:to])
		if err := s.send(ctx, batch, &failed); err != nil {
			return s.rest(batch, to, &failed, err)
		}
		from = to
	}
	return failed.Err()
}

// recover brings the sink back to where it can send, after an error.
func (s *sink) recover(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.stale {
		for name := range s.topics {
			_, err := s.learn(ctx, name)
			if s.fixed == nil && relay.IsFatal(err) {
				s.drop(name) // it is missed when a message is for it
				continue
			}
			if err != nil {
				return err
			}
		}
		s.stale = false
	}
	return s.settle(ctx)
}

// drop forgets a topic.
func (s *sink) drop(name string) {
	delete(s.topics, name)
	s.unsettled = slices.DeleteFunc(s.unsettled, func(p *partition) bool { return p.topic.name == name })
}

// rest fails everything from index on with err, because nothing more may be sent.
func (*sink) rest(batch []relay.Message, from int, failed *relay.BatchError, err error) error {
	for i := from; i < len(batch); i++ {
		if _, ok := failed.Failed[i]; !ok {
			failed.Fail(i, err)
		}
	}
	if len(failed.Failed) < len(batch) {
		return failed
	}
	for _, e := range failed.Failed {
		if relay.IsPermanent(e) {
			return failed
		}
	}
	return err
}

func (s *sink) fail(failed *relay.BatchError, batch []relay.Message, i int, err error) {
	failed.Fail(i, err)
	if key := batch[i].Key; key != "" {
		s.held[strings.Clone(key)] = struct{}{}
	}
}

// confirm forgets those of a wave that were found to be there: they are not sent,
// so they count as confirmed. Until the wave is complete they may be failed with
// the rest, and published again.
func (s *sink) confirm(messages []relay.Message) {
	if len(s.settled) == 0 {
		return
	}
	for i := range messages {
		delete(s.settled, messages[i].ID)
	}
}

func (s *sink) forget() {
	for _, p := range s.active {
		p.queue, p.next = p.queue[:0], 0
	}
	s.active = s.active[:0]
}

// assign queues messages from index from on at their partitions, and returns the
// index behind the last one. It stops before a message whose key has been queued
// for another topic: topics are sent to side by side, which would let the second
// message arrive although the first has failed.
func (s *sink) assign(ctx context.Context, batch []relay.Message, from int, failed *relay.BatchError) (int, error) {
	clear(s.where)
	s.spread++
	for i := from; i < len(batch); i++ {
		m := &batch[i]
		if len(s.settled) > 0 {
			if _, ok := s.settled[m.ID]; ok {
				continue // confirm forgets it
			}
		}
		if len(s.held) > 0 && m.Key != "" {
			if _, held := s.held[m.Key]; held {
				failed.Fail(i, relay.ErrHeldBack)
				continue
			}
		}
		t, err := s.topicOf(ctx, m)
		if err != nil && relay.IsPermanent(err) {
			// Messages of its key that are queued stand before it and go out.
			s.fail(failed, batch, i, err)
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
			s.fail(failed, batch, i, relay.Permanent(fmt.Errorf("%w: %d bytes, max_message_bytes is %d", kafka.MessageSizeTooLarge, recordSize(m), limit)))
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
	return s.learn(ctx, string(s.name))
}

// send sends what is queued and returns the first error after which nothing
// more of this batch may be sent.
func (s *sink) send(ctx context.Context, batch []relay.Message, failed *relay.BatchError) error {
	lanes := s.spreadOver()
	var wait sync.WaitGroup
	for _, l := range lanes[1:] {
		wait.Go(func() { l.run(ctx, batch) })
	}
	lanes[0].run(ctx, batch)
	wait.Wait()
	var first error
	for _, l := range lanes {
		for _, f := range l.failed {
			s.fail(failed, batch, int(f.index), f.err)
		}
		for _, p := range l.partitions {
			if p.unsettled != nil {
				s.unsettled = append(s.unsettled, p)
			}
		}
		if l.err != nil && first == nil {
			first = l.err
		}
	}
	s.forget()
	if first != nil {
		s.stale = true
		s.cluster.reset()
	}
	return first
}
