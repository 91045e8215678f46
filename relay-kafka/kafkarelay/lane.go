package kafkarelay

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"
	"github.com/segmentio/kafka-go/protocol/rawproduce"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// lanesPerBroker is the number of requests in flight to a broker. Partitions share
// lanes, so that a topic of many partitions needs few requests.
const lanesPerBroker = 4

// maxRequest bounds the bytes of a request. A larger batch is sent alone.
const maxRequest = 2 << 20

// lane sends to some partitions of one broker. It sends requests one after the other,
// each with at most one batch for a partition, so that the partition's order is kept.
type lane struct {
	sink       *sink
	leader     int
	partitions []*partition
	writer     batchWriter
	buf        bytes.Buffer
	sent       []sent
	readers    []bytes.Reader
	err        error // nothing more may be sent
}

// sent is one batch in a request.
type sent struct {
	p          *partition
	to         int     // in p.queue
	start, end int     // in buf
	indexes    []int32 // of its messages, which are fewer when some were held back
}

// spreadOver puts the active partitions on lanes and returns at least one lane.
func (s *sink) spreadOver() []*lane {
	used := 0
	for i, p := range s.active {
		var l *lane
		have := 0
		for _, c := range s.lanes[:used] {
			if c.leader == p.leader {
				if have++; have > i%lanesPerBroker {
					l = c
					break
				}
			}
		}
		if l == nil {
			if used == len(s.lanes) {
				s.lanes = append(s.lanes, &lane{sink: s, writer: batchWriter{attributes: s.attributes, pipeline: s.env.Identity}})
			}
			l = s.lanes[used]
			used++
			l.leader, l.partitions, l.err = p.leader, l.partitions[:0], nil
		}
		l.partitions = append(l.partitions, p)
	}
	if used == 0 {
		return []*lane{{sink: s}}
	}
	return s.lanes[:used]
}

// run sends the queued messages of the lane's partitions, and confirms or fails them.
// After an error it leaves the rest of them open.
func (l *lane) run(ctx context.Context, batch []relay.Message) {
	defer l.forget()
	for l.err == nil {
		if l.err = l.encode(batch); l.err != nil || len(l.sent) == 0 {
			return
		}
		res, err := l.roundTrip(ctx)
		if err != nil {
			l.err = classify(fmt.Errorf("send to broker %d: %w", l.leader, err))
			for i := range l.sent {
				l.doubt(&l.sent[i], batch, l.err)
			}
			l.buf = bytes.Buffer{} // the transport may still be reading the old one
			return
		}
		for i := range l.sent {
			l.settle(&l.sent[i], answer(res, l.sent[i].p), batch)
		}
	}
}

// maxKept is the largest buffer that a lane keeps for its next request.
const maxKept = 2 * maxRequest

// forget gives up a buffer that a large message needed.
func (l *lane) forget() {
	if l.buf.Cap() > maxKept {
		l.buf = bytes.Buffer{}
		clear(l.readers[:cap(l.readers)])
	}
}

// encode fills buf and sent with the next batch of each partition.
func (l *lane) encode(batch []relay.Message) error {
	l.buf.Reset()
	l.sent = l.sent[:0]
	now := time.Now()
	for _, p := range l.partitions {
		if l.buf.Len() >= maxRequest {
			return nil
		}
		b := l.pick(p, batch)
		if len(b.indexes) == 0 {
			p.next = b.to
			l.sent = l.sent[:len(l.sent)-1]
			continue
		}
		if err := l.writer.write(&l.buf, batch, b.indexes, p, now); err != nil {
			return fmt.Errorf("encode a batch: %w", err)
		}
		b.end = l.buf.Len()
	}
	return nil
}

// pick appends the next batch of p to sent: as many messages as p may have in one.
func (l *lane) pick(p *partition, batch []relay.Message) *sent {
	l.sent = slices.Grow(l.sent, 1)[:len(l.sent)+1] // with the indexes of an earlier batch
	b := &l.sent[len(l.sent)-1]
	*b = sent{p: p, start: l.buf.Len(), to: p.next, indexes: b.indexes[:0]}
	size := headSize
	for ; b.to < len(p.queue); b.to++ {
		i := p.queue[b.to]
		if l.sink.outcome.Held(int(i)) {
			continue
		}
		size += maxRecordSize(&batch[i])
		if n := len(b.indexes); n > 0 && (size > min(p.limit, maxRequest) || n == p.maxRecords) {
			break
		}
		b.indexes = append(b.indexes, i)
	}
	return b
}

func (l *lane) roundTrip(ctx context.Context) (*produce.Response, error) {
	l.readers = slices.Grow(l.readers[:0], len(l.sent))[:len(l.sent)]
	var topics []rawproduce.RequestTopic
	for i := range l.sent {
		b := &l.sent[i]
		l.readers[i].Reset(l.buf.Bytes()[b.start:b.end])
		part := rawproduce.RequestPartition{Partition: int32(b.p.id), RecordSet: protocol.RawRecordSet{Reader: &l.readers[i]}}
		at := slices.IndexFunc(topics, func(t rawproduce.RequestTopic) bool { return t.Topic == b.p.topic.name })
		if at < 0 {
			at = len(topics)
			topics = append(topics, rawproduce.RequestTopic{Topic: b.p.topic.name})
		}
		topics[at].Partitions = append(topics[at].Partitions, part)
	}
	res, err := l.sink.roundTrip(ctx, topics)
	if err != nil {
		l.readers = nil // the transport may still be reading them
	}
	return res, err
}

func (s *sink) roundTrip(ctx context.Context, topics []rawproduce.RequestTopic) (*produce.Response, error) {
	timeout := s.cfg.ConfirmTimeout.D()
	// The broker's timeout is the shorter one, so that its answer has the outcome.
	ctx, cancel := context.WithTimeout(ctx, timeout+dialTimeout)
	defer cancel()
	req := &rawproduce.Request{Acks: int16(s.acks), Timeout: int32(timeout / time.Millisecond), Topics: topics}
	res, err := s.cluster.transport.RoundTrip(ctx, s.cluster.client.Addr, req)
	if err != nil {
		return nil, err
	}
	return res.(*produce.Response), nil
}

func answer(res *produce.Response, p *partition) *produce.ResponsePartition {
	for i := range res.Topics {
		if res.Topics[i].Topic != p.topic.name {
			continue
		}
		for j := range res.Topics[i].Partitions {
			if a := &res.Topics[i].Partitions[j]; int(a.Partition) == p.id {
				return a
			}
		}
	}
	return &produce.ResponsePartition{ErrorCode: int16(kafka.Unknown), ErrorMessage: "the broker's answer leaves the partition out"}
}

// settle applies the broker's answer to b.
func (l *lane) settle(b *sent, a *produce.ResponsePartition, batch []relay.Message) {
	p, code := b.p, kafka.Error(a.ErrorCode)
	if a.ErrorCode == 0 || code == kafka.DuplicateSequenceNumber {
		if a.ErrorCode == 0 && a.BaseOffset >= 0 {
			p.end = a.BaseOffset + int64(len(b.indexes))
		}
		p.advance(len(b.indexes))
		p.next, p.maxRecords = b.to, 0
		for _, i := range b.indexes {
			l.sink.outcome.Confirm(int(i))
		}
		return
	}

	var err error = code
	if a.ErrorMessage != "" {
		err = fmt.Errorf("%w: %s", code, a.ErrorMessage)
	}
	err = classifyFor(fmt.Errorf("write to partition %d of topic %q: %w", p.id, p.topic.name, err), l.sink.ofRow())
	switch {
	case !slices.Contains(refusedBeforeAppend, code):
		l.err = err
		l.doubt(b, batch, err)
		p.doubt.lost = slices.Contains(sequenceLost, code)
	case code == kafka.TopicAuthorizationFailed && l.sink.ofRow():
		bad := make(map[int32]error, len(b.indexes))
		for _, i := range b.indexes {
			bad[i] = err
		}
		l.drop(b, bad)
	case !relay.IsPermanent(err):
		l.err = err
	case len(a.RecordErrors) > 0:
		// The broker names the records that it refuses, and refuses the others with them.
		bad := make(map[int32]error, len(a.RecordErrors))
		for _, r := range a.RecordErrors {
			if int(r.BatchIndex) < len(b.indexes) {
				bad[b.indexes[r.BatchIndex]] = relay.Permanent(fmt.Errorf("%w: %s", code, r.BatchIndexErrorMessage))
			}
		}
		l.drop(b, bad)
	case len(b.indexes) > 1:
		// One of the records is the cause. Sending halves finds it.
		p.maxRecords = len(b.indexes) / 2
		if code == kafka.MessageSizeTooLarge {
			p.limit = max(headSize, min(p.limit, b.end-b.start)/2)
		}
		b.requeue()
	default:
		l.drop(b, map[int32]error{b.indexes[0]: err})
	}
}

// drop fails the bad messages of b and leaves the others to the next request.
func (l *lane) drop(b *sent, bad map[int32]error) {
	b.indexes = slices.DeleteFunc(b.indexes, func(i int32) bool {
		err, ok := bad[i]
		if ok {
			l.sink.outcome.Fail(int(i), err)
		}
		return ok
	})
	b.requeue()
}

// requeue puts the messages of b, without those that were held back, in front of the
// partition's queue.
func (b *sent) requeue() {
	at := b.to - len(b.indexes)
	copy(b.p.queue[at:], b.indexes)
	b.p.next = at
}

// doubt keeps b until it is known whether the broker has it, and fails its messages.
func (l *lane) doubt(b *sent, batch []relay.Message, err error) {
	err = relay.Unknown(err)
	b.p.doubt = &doubt{bytes: bytes.Clone(l.buf.Bytes()[b.start:b.end]), ids: make([]string, len(b.indexes))}
	for n, i := range b.indexes {
		b.p.doubt.ids[n] = strings.Clone(batch[i].ID)
		l.sink.outcome.Fail(int(i), err)
	}
}
