package kafkarelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// quiet is how long the end of a partition is watched for a batch that was on
// its way when its sender died.
const quiet = 200 * time.Millisecond

// maxPosition is what the contract allows.
const maxPosition = 64 << 10

// position is where the confirmed messages of a pipeline end.
type position struct {
	Time int64              `json:"time"` // milliseconds; when it was taken
	Ends map[string][]int64 `json:"ends"` // by topic and partition
}

// Position returns the end offset of every partition of every topic that the
// sink has sent to. It asks nobody.
func (s *sink) Position(context.Context) (string, error) {
	pos := position{Time: time.Now().UnixMilli(), Ends: make(map[string][]int64, len(s.topics))}
	for name, t := range s.topics {
		ends := make([]int64, len(t.partitions))
		for i, p := range t.partitions {
			ends[i] = p.end
		}
		pos.Ends[name] = ends
	}
	b, err := json.Marshal(pos)
	if err != nil {
		return "", err
	}
	if len(b) > maxPosition {
		// What is not in a position is looked up by time: slower, not wrong.
		pos.Ends = nil
		if b, err = json.Marshal(pos); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

// candidates lists the topics that exist and that the topic template could name;
// without a template that is any.
func (s *sink) candidates(ctx context.Context) ([]string, error) {
	if s.fixed != nil {
		return []string{s.fixed.name}, nil
	}
	s.cluster.reset()
	res, err := s.cluster.layout(ctx)
	if err != nil {
		return nil, err
	}
	prefix, suffix := literalEnds(s.cfg.Topic.String())
	var names []string
	for _, t := range res.Topics {
		if !t.Internal && t.Error == nil && len(t.Name) >= len(prefix)+len(suffix) && strings.HasPrefix(t.Name, prefix) && strings.HasSuffix(t.Name, suffix) {
			names = append(names, t.Name)
		}
	}
	return names, nil
}

// literalEnds returns what stands before the first and after the last variable
// of a template.
func literalEnds(template string) (prefix, suffix string) {
	suffix = template
	prefix, _, _ = strings.Cut(template, "{")
	if i := strings.LastIndexByte(template, '}'); i >= 0 {
		suffix = template[i+1:]
	}
	return prefix, suffix
}

// Resume reads every partition from its place in the position to its end. In a
// topic that is not in the position the sink had not written when the position
// was taken, so that is read from that time on: records bear the time at which
// the relay sent them.
func (s *sink) Resume(ctx context.Context, at string, seen func(id string)) error {
	var pos position
	if err := json.Unmarshal([]byte(at), &pos); err != nil {
		return fmt.Errorf("read position %q: %w", at, err)
	}
	names, err := s.candidates(ctx)
	if err != nil {
		return err
	}
	for name := range pos.Ends {
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if err := s.resumeTopic(ctx, name, &pos, seen); err != nil {
			return err
		}
	}
	return nil
}

// clockSkew is by how much the clocks of a relay, its successor and the brokers
// may differ.
const clockSkew = 5 * time.Minute

func (s *sink) resumeTopic(ctx context.Context, name string, pos *position, seen func(id string)) error {
	res, err := s.cluster.layout(ctx, name)
	if err != nil {
		return err
	}
	if errors.Is(res.Topics[0].Error, kafka.UnknownTopicOrPartition) && s.fixed == nil {
		return nil // deleted since
	}
	ends, known := pos.Ends[name]
	t := s.topics[name]
	if t == nil {
		if t, err = s.learn(ctx, name); err != nil {
			return err
		}
		if !known {
			defer delete(s.topics, name) // until it is written to
		}
	}
	var from, first []int64
	if first, err = s.cluster.offsets(ctx, name, len(t.partitions), kafka.FirstOffset); err != nil {
		return err
	}
	from = first
	if !known {
		if from, err = s.cluster.offsets(ctx, name, len(t.partitions), pos.Time-clockSkew.Milliseconds()); err != nil {
			return err
		}
	}
	moved := false
	for _, p := range t.partitions {
		switch {
		case p.id < len(ends):
			from[p.id] = max(from[p.id], ends[p.id])
		case from[p.id] < 0: // nothing that recent
			from[p.id] = p.end
		}
		moved = moved || from[p.id] != p.end
		p.end = from[p.id]
	}
	if !known && !moved {
		return nil
	}
	return s.readTails(ctx, t.partitions, first, seen)
}

// readTails reads partitions of one topic from their ends on, and moves these.
// It reads again after a quiet moment, for what was on its way.
func (s *sink) readTails(ctx context.Context, partitions []*partition, first []int64, seen func(id string)) error {
	began := time.Now()
	for round := range 2 {
		ends, err := s.cluster.offsets(ctx, partitions[0].topic.name, len(partitions[0].topic.partitions), kafka.LastOffset)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			if p.end > ends[p.id] && first != nil {
				p.end = first[p.id] // the topic was made anew
			}
			if err := s.readTail(ctx, p, ends[p.id], seen); err != nil {
				return err
			}
		}
		if round == 0 {
			if err := backoff.Sleep(ctx, quiet-time.Since(began)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sink) readTail(ctx context.Context, p *partition, end int64, seen func(id string)) error {
	f := fetcher{cluster: s.cluster, wait: 100 * time.Millisecond, maxBytes: 4 << 20}
	sp := &spot{topic: p.topic.name, partition: p.id, offset: p.end}
	for sp.offset < end {
		err := f.read(ctx, []*spot{sp}, func(_ *spot, r *protocol.Record) error {
			for i := range r.Headers {
				if strings.EqualFold(r.Headers[i].Key, relay.HeaderDedupKey) {
					seen(string(r.Headers[i].Value))
					break
				}
			}
			return nil
		})
		if err != nil {
			s.cluster.reset()
			return classify(fmt.Errorf("read back what was written: %w", err))
		}
	}
	p.end = max(p.end, sp.offset)
	return nil
}

// settle finds out which batches of unknown fate the brokers have: a numbered
// batch by sending it once more, any other by reading its partition's tail.
func (s *sink) settle(ctx context.Context) error {
	for len(s.unsettled) > 0 {
		p := s.unsettled[0]
		u := p.unsettled
		if !u.lost && p.producer.id >= 0 {
			if err := s.again(ctx, p); err != nil {
				return err
			}
		} else if err := s.lookUp(ctx, p); err != nil {
			return err
		}
		p.unsettled = nil
		s.unsettled = s.unsettled[1:]
	}
	return nil
}

// again sends p's unsettled batch as it was. The broker drops it if it has it,
// and says the same either way.
func (s *sink) again(ctx context.Context, p *partition) error {
	u := p.unsettled
	res, err := s.roundTrip(ctx, &rawproduce.Request{
		Acks: int16(s.acks), Timeout: int32(s.cfg.ConfirmTimeout.D() / time.Millisecond),
		Topics: []rawproduce.RequestTopic{{Topic: p.topic.name, Partitions: []rawproduce.RequestPartition{{
			Partition: int32(p.id), RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(u.bytes)},
		}}}},
	})
	var a *produce.ResponsePartition
	if err == nil {
		a = answer(res, p)
		if a.ErrorCode != 0 {
			err = kafka.Error(a.ErrorCode)
		}
	}
	var code kafka.Error
	switch {
	case err == nil || errors.Is(err, kafka.DuplicateSequenceNumber):
		if err == nil && a.BaseOffset >= 0 {
			p.end = max(p.end, a.BaseOffset+int64(len(u.ids)))
		}
		p.advance(len(u.ids))
		for _, id := range u.ids {
			s.settled[id] = struct{}{}
		}
		return nil
	case errors.As(err, &code) && (sequenceLost(code) || refusedBeforeAppend(code) && relay.IsPermanent(classify(code))):
		return s.lookUp(ctx, p)
	}
	s.stale = true
	s.cluster.reset()
	return classify(fmt.Errorf("send a batch again to partition %d of topic %q: %w", p.id, p.topic.name, err))
}

// lookUp reads p's tail for its unsettled batch, and numbers batches anew.
func (s *sink) lookUp(ctx context.Context, p *partition) error {
	ours := make(map[string]bool, len(p.unsettled.ids))
	for _, id := range p.unsettled.ids {
		ours[id] = true
	}
	err := s.readTails(ctx, []*partition{p}, nil, func(id string) {
		if ours[id] {
			s.settled[id] = struct{}{}
		}
	})
	if err != nil {
		return err
	}
	if p.producer.id >= 0 {
		if p.producer, err = s.newProducer(ctx); err != nil {
			return err
		}
	}
	return nil
}
