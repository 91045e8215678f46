package kafkarelay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// quiet is the time for which the end of a partition is watched: the request of a
// crashed relay may still arrive.
const quiet = 200 * time.Millisecond

// maxPosition is the largest position that the contract allows.
const maxPosition = 64 << 10

// position is the end of a pipeline's confirmed messages.
type position struct {
	Time int64              `json:"time"` // milliseconds since 1970 when it was taken
	Ends map[string][]int64 `json:"ends"` // by topic and partition
}

// Position implements [relay.Resumer]: the end offset of every partition of every topic
// that the sink has sent to.
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
	if len(b) > maxPosition {
		pos.Ends = nil // Resume finds the offsets by time, which is slower
		b, err = json.Marshal(pos)
	}
	return string(b), err
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
	var names []string
	for _, t := range res.Topics {
		fits, _ := path.Match(cmp.Or(s.cfg.Topic.Pattern("*", `*?[\`), "*"), t.Name)
		if fits && !t.Internal && t.Error == nil {
			names = append(names, t.Name)
		}
	}
	return names, nil
}

// Resume implements [relay.Resumer]. After an error that left batches of unknown fate
// it looks for these alone, as everything else is known.
//
// In a new sink it reads every partition from the position to its end. A topic that the
// position does not have is read from the time of the position on. Records have the
// time at which the relay sent them.
func (s *sink) Resume(ctx context.Context, at string, seen func(id string)) error {
	if len(s.doubtful) > 0 {
		err := s.settle(ctx)
		for _, p := range s.doubtful {
			for _, id := range p.doubt.found {
				seen(id)
			}
		}
		return err
	}
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

// clockSkew bounds the difference between the clocks of relays and brokers.
const clockSkew = 5 * time.Minute

func (s *sink) resumeTopic(ctx context.Context, name string, pos *position, seen func(id string)) error {
	res, err := s.cluster.layout(ctx, name)
	if err != nil {
		return err
	}
	if errors.Is(res.Topics[0].Error, kafka.UnknownTopicOrPartition) && s.fixed == nil {
		return nil // it was deleted
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
		case from[p.id] < 0: // no record is that recent
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

// readTails reads partitions of one topic from their ends on, and moves these. It reads
// again after a quiet moment, because a request may still arrive.
func (s *sink) readTails(ctx context.Context, partitions []*partition, first []int64, seen func(id string)) error {
	began := time.Now()
	for round := range 2 {
		ends, err := s.cluster.offsets(ctx, partitions[0].topic.name, len(partitions[0].topic.partitions), kafka.LastOffset)
		if err != nil {
			return err
		}
		for _, p := range partitions {
			if p.end > ends[p.id] && first != nil {
				p.end = first[p.id] // the topic was created again
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
	sp := &spot{place: place{p.topic.name, p.id}, offset: p.end}
	for sp.offset < end {
		err := f.read(ctx, []*spot{sp}, func(_ *spot, r *protocol.Record) error {
			var m relay.Message
			pipeline := ""
			for _, h := range r.Headers {
				if strings.EqualFold(h.Key, relay.HeaderPipelineID) {
					pipeline = string(h.Value)
				}
				m.AddWireHeader(h.Key, string(h.Value))
			}
			if s.env.Wrote(pipeline) && m.ID != "" {
				seen(m.ID)
			}
			return nil
		})
		if err != nil {
			s.cluster.reset()
			return classify(fmt.Errorf("read a partition back: %w", err))
		}
	}
	p.end = max(p.end, sp.offset)
	return nil
}

// settle finds out which batches of unknown fate the brokers have. What it has found
// stays with their partitions until the next Publish.
func (s *sink) settle(ctx context.Context) error {
	if err := s.refresh(ctx); err != nil {
		return err
	}
	for _, p := range s.doubtful {
		if err := s.sendAgain(ctx, p); err != nil {
			return err
		}
		p.doubt.settled = true
	}
	return nil
}

// sendAgain sends p's numbered batch of unknown fate once more. The broker drops it if
// it has it, and answers the same in both cases. Without numbers, or after the broker
// has forgotten them, sendAgain reads the partition's tail.
func (s *sink) sendAgain(ctx context.Context, p *partition) error {
	if p.doubt.settled {
		return nil
	}
	if p.doubt.lost || p.producer.id < 0 {
		return s.lookUp(ctx, p)
	}
	res, err := s.roundTrip(ctx, []rawproduce.RequestTopic{{Topic: p.topic.name, Partitions: []rawproduce.RequestPartition{{
		Partition: int32(p.id), RecordSet: protocol.RawRecordSet{Reader: bytes.NewReader(p.doubt.bytes)},
	}}}})
	if err == nil {
		a := answer(res, p)
		if a.ErrorCode != 0 {
			err = kafka.Error(a.ErrorCode)
		} else if a.BaseOffset >= 0 {
			p.end = max(p.end, a.BaseOffset+int64(len(p.doubt.ids)))
		}
	}

	var code kafka.Error
	switch {
	case err == nil || errors.Is(err, kafka.DuplicateSequenceNumber):
		p.advance(len(p.doubt.ids))
		p.doubt.found = p.doubt.ids
		return nil
	case errors.As(err, &code) && (slices.Contains(sequenceLost, code) || relay.IsPermanent(classify(code))):
		return s.lookUp(ctx, p)
	}
	s.stale = true
	s.cluster.reset()
	return classify(fmt.Errorf("send a batch again to partition %d of topic %q: %w", p.id, p.topic.name, err))
}

// lookUp reads p's tail for its batch of unknown fate, and gets new numbers.
func (s *sink) lookUp(ctx context.Context, p *partition) error {
	err := s.readTails(ctx, []*partition{p}, nil, func(id string) {
		if slices.Contains(p.doubt.ids, id) {
			p.doubt.found = append(p.doubt.found, id)
		}
	})
	if err == nil && p.producer.id >= 0 {
		p.producer, err = s.newProducer(ctx)
	}
	return err
}
