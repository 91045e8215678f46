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

// A broker gets requests over this many connections at a time. Partitions share
// them, so that a topic of many partitions does not cost as many requests.
const lanesPerBroker = 4

// maxRequest bounds what a lane encodes before it sends; a batch that is larger
// still goes out, by itself.
const maxRequest = 2 << 20

// lane sends to some partitions of one broker: requests one after the other,
// each with at most one batch of a partition, so that a partition's order is kept.
type lane struct {
	sink       *sink
	leader     int
	partitions []*partition
	writer     batchWriter
	buf        bytes.Buffer
	sent       []sent
	readers    []bytes.Reader
	keys       map[string]struct{} // of messages that failed
	failed     []failure
	err        error // nothing more may be sent
}

// sent is one batch in a request.
type sent struct {
	p          *partition
	to         int     // in p.queue
	start, end int     // in buf
	indexes    []int32 // of its messages, which are fewer when some were held back
}

type failure struct {
	index int32
	err   error
}

// spreadOver puts the active partitions on lanes. There is at least one.
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
				s.lanes = append(s.lanes, &lane{sink: s, writer: batchWriter{attributes: s.attributes}, keys: make(map[string]struct{})})
			}
			l = s.lanes[used]
			used++
			l.begin(p.leader)
		}
		l.partitions = append(l.partitions, p)
	}
	if used == 0 {
		return []*lane{{sink: s}}
	}
	return s.lanes[:used]
}

func (l *lane) begin(leader int) {
	l.leader, l.partitions, l.failed, l.err = leader, l.partitions[:0], l.failed[:0], nil
	clear(l.keys)
}

func (l *lane) fail(i int32, batch []relay.Message, err error) {
	l.failed = append(l.failed, failure{i, err})
	if key := batch[i].Key; key != "" {
		l.keys[key] = struct{}{}
	}
}

// run sends everything that is queued at the lane's partitions, or fails it.
func (l *lane) run(ctx context.Context, batch []relay.Message) {
	for l.err == nil {
		if err := l.encode(batch); err != nil {
			l.err = err
			break
		}
		if len(l.sent) == 0 {
			return
		}
		res, err := l.roundTrip(ctx)
		if err != nil {
			for i := range l.sent {
				l.doubt(&l.sent[i], batch)
			}
			l.err = classify(fmt.Errorf("send to broker %d: %w", l.leader, err))
			l.buf = bytes.Buffer{} // the transport may still be reading the old one
			break
		}
		for i := range l.sent {
			l.settle(&l.sent[i], answer(res, l.sent[i].p), batch)
		}
	}
	for _, p := range l.partitions {
		for _, i := range p.queue[p.next:] {
			l.failed = append(l.failed, failure{i, l.err})
		}
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
		m := &batch[i]
		if _, held := l.keys[m.Key]; held {
			l.failed = append(l.failed, failure{i, relay.ErrHeldBack})
			continue
		}
		size += maxRecordSize(m)
		if n := len(b.indexes); n > 0 && (size > min(p.limit, maxRequest) || n == p.maxRecords) {
			break
		}
		b.indexes = append(b.indexes, i)
	}
	return b
}

func (l *lane) roundTrip(ctx context.Context) (*produce.Response, error) {
	l.readers = slices.Grow(l.readers[:0], len(l.sent))[:len(l.sent)]
	req := &rawproduce.Request{Acks: int16(l.sink.acks), Timeout: int32(l.sink.cfg.ConfirmTimeout.D() / time.Millisecond)}
	for i := range l.sent {
		b := &l.sent[i]
		l.readers[i].Reset(l.buf.Bytes()[b.start:b.end])
		part := rawproduce.RequestPartition{Partition: int32(b.p.id), RecordSet: protocol.RawRecordSet{Reader: &l.readers[i]}}
		at := slices.IndexFunc(req.Topics, func(t rawproduce.RequestTopic) bool { return t.Topic == b.p.topic.name })
		if at < 0 {
			at = len(req.Topics)
			req.Topics = append(req.Topics, rawproduce.RequestTopic{Topic: b.p.topic.name})
		}
		req.Topics[at].Partitions = append(req.Topics[at].Partitions, part)
	}
	res, err := l.sink.roundTrip(ctx, req)
	if err != nil {
		l.readers = nil // see buf
	}
	return res, err
}

func (s *sink) roundTrip(ctx context.Context, req *rawproduce.Request) (*produce.Response, error) {
	// The broker gives up first, so that its answer tells what has happened.
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConfirmTimeout.D()+dialTimeout)
	defer cancel()
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

// settle notes the broker's answer to b.
func (l *lane) settle(b *sent, a *produce.ResponsePartition, batch []relay.Message) {
	p, code := b.p, kafka.Error(a.ErrorCode)
	if a.ErrorCode == 0 || code == kafka.DuplicateSequenceNumber {
		if a.ErrorCode == 0 && a.BaseOffset >= 0 {
			p.end = a.BaseOffset + int64(len(b.indexes))
		}
		p.advance(len(b.indexes))
		p.next, p.maxRecords = b.to, 0
		return
	}
	var err error = code
	if a.ErrorMessage != "" {
		err = fmt.Errorf("%w: %s", code, a.ErrorMessage)
	}
	err = classify(fmt.Errorf("write to partition %d of topic %q: %w", p.id, p.topic.name, err))
	switch {
	case refusedBeforeAppend(code) && !relay.IsPermanent(err):
		l.err = err
	case !refusedBeforeAppend(code):
		l.doubt(b, batch)
		p.unsettled.lost = sequenceLost(code)
		l.err = err
	case len(a.RecordErrors) > 0:
		// The broker has named the culprits and refused the rest with them.
		bad := make(map[int32]error, len(a.RecordErrors))
		for _, r := range a.RecordErrors {
			if int(r.BatchIndex) < len(b.indexes) {
				bad[b.indexes[r.BatchIndex]] = relay.Permanent(fmt.Errorf("%w: %s", code, r.BatchIndexErrorMessage))
			}
		}
		l.drop(b, bad, batch)
	case len(b.indexes) > 1:
		// One of them is to blame. Halves find it.
		p.maxRecords = len(b.indexes) / 2
		if code == kafka.MessageSizeTooLarge {
			p.limit = max(headSize, min(p.limit, b.end-b.start)/2)
		}
		l.requeue(b)
	default:
		l.drop(b, map[int32]error{b.indexes[0]: err}, batch)
	}
}

// drop fails messages of b for good and leaves the rest of it to the next request.
func (l *lane) drop(b *sent, bad map[int32]error, batch []relay.Message) {
	for _, i := range b.indexes {
		if err, ok := bad[i]; ok {
			l.fail(i, batch, err)
		}
	}
	b.indexes = slices.DeleteFunc(b.indexes, func(i int32) bool { _, ok := bad[i]; return ok })
	l.requeue(b)
}

// requeue puts the messages of b, without those that encode has held back, where
// the next request takes them from.
func (*lane) requeue(b *sent) {
	at := b.to - len(b.indexes)
	copy(b.p.queue[at:], b.indexes)
	b.p.next = at
}

// doubt keeps b until it is known whether the broker has it, and fails its
// messages until then.
func (l *lane) doubt(b *sent, batch []relay.Message) {
	u := &unsettled{bytes: bytes.Clone(l.buf.Bytes()[b.start:b.end]), ids: make([]string, len(b.indexes))}
	for n, i := range b.indexes {
		u.ids[n] = strings.Clone(batch[i].ID)
	}
	b.p.unsettled = u
	l.requeue(b)
}
