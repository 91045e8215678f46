package sqsrelay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// sink sends batches with several requests at a time. SQS may refuse any entry of a
// request and accept the rest. So a message group is a lane, and the next message of
// a lane is ready only when the one before is settled.
type sink struct {
	cfg   sinkConfig
	queue *queue
	free  []*request // requests whose memory can be used again

	// Of one Publish, reused by the next.
	batch   []relay.Message
	outcome relay.Outcome
	lanes   relay.Lanes
	ready   []int // messages that may be sent now
	scratch []byte
}

// request is one SendMessageBatch.
type request struct {
	writer  entries
	entries [maxEntries]types.SendMessageBatchRequestEntry
	values  [maxEntries][maxAttributes]string // of the entries' attributes
	indexes []int                             // of its messages in the batch
	size    int
	failed  [maxEntries]error
	stop    error // the request itself failed: nothing more may be sent
}

var (
	_ relay.Limiter   = (*sink)(nil)
	_ relay.Pinger    = (*sink)(nil)
	_ relay.Router    = (*sink)(nil)
	_ relay.Guarantor = (*sink)(nil)
)

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{cfg: cfg}
	var err error
	if s.queue, err = openQueue(ctx, env, &s.cfg.connConfig); err != nil {
		return nil, err
	}
	env.Logger.DebugContext(ctx, "queue found", "queue", cfg.QueueURL, "message_limit_bytes", s.queue.limit)
	return s, nil
}

// Limits implements [relay.Limiter]: batches of a hundred requests. With 4,096 messages a
// drain was no faster, and took 57 MiB in place of 51.
func (s *sink) Limits() (messages, bytes int) { return 1024, 8 << 20 }

// Ping implements [relay.Pinger].
func (s *sink) Ping(ctx context.Context) error { return s.queue.check(ctx) }

// Destination implements [relay.Router].
func (s *sink) Destination(*relay.Message) (string, error) { return s.cfg.QueueURL, nil }

// Guarantee implements [relay.Guarantor]. It depends on the kind of queue.
func (s *sink) Guarantee() relay.Guarantee {
	if s.cfg.fifo() {
		return relay.Guarantee{
			Delivery: "effectively once", Dedup: "MessageDeduplicationId, for 5 minutes", Order: "per message group",
			Weakest: "a retry more than 5 minutes after the first attempt",
		}
	}
	return relay.Guarantee{
		Delivery: "at least once", Dedup: "none; attribute dedup_key lets the receiver drop duplicates", Order: "none",
		Weakest: "a standard queue neither orders nor deduplicates",
	}
}

// Close implements [relay.Sink]. Idle connections close by themselves.
func (s *sink) Close() error {
	s.outcome.Close()
	return nil
}

// Publish implements [relay.Sink]. It keeps concurrency requests in flight.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	s.begin(batch)
	loaded, results := make(chan *request, s.cfg.Concurrency), make(chan *request, s.cfg.Concurrency)
	var workers sync.WaitGroup
	started, inFlight := 0, 0
	var stop error
	for inFlight > 0 || len(s.ready) > 0 && stop == nil {
		for stop == nil && inFlight < s.cfg.Concurrency && len(s.ready) > 0 {
			r := s.load()
			if len(r.indexes) == 0 {
				s.free = append(s.free, r)
				continue
			}
			loaded <- r
			if inFlight++; inFlight > started {
				started++
				// One goroutine for many requests: the client needs a deep stack, which is
				// costly to grow.
				workers.Go(func() {
					for r := range loaded {
						s.send(ctx, r)
						results <- r
					}
				})
			}
		}
		if inFlight > 0 {
			r := <-results
			inFlight--
			if stop == nil {
				stop = r.stop
			}
			s.settle(r)
		}
	}
	close(loaded)
	workers.Wait()
	if stop != nil {
		s.outcome.FailRest(stop)
	}
	err := s.outcome.Err()
	s.outcome.Reset(nil)
	s.lanes.Reset(0)
	s.batch = nil
	return err
}

// begin splits the batch into lanes and makes the first message of each ready.
func (s *sink) begin(batch []relay.Message) {
	s.batch, s.ready = batch, s.ready[:0]
	s.lanes.Reset(len(batch))
	for i := range batch {
		group, err := s.group(&batch[i])
		if err != nil {
			s.outcome.Fail(i, err)
			continue
		}
		s.lanes.AddBytes(i, group)
	}
	for lane := range s.lanes.Len() {
		s.ready = append(s.ready, s.lanes.First(lane))
	}
}

// group returns what orders m; a message without group is a lane of its own. A
// standard queue keeps no order, so none of its messages has one.
func (s *sink) group(m *relay.Message) (group []byte, err error) {
	switch {
	case !s.cfg.fifo():
		return nil, nil
	case s.cfg.MessageGroupID.IsZero():
		s.scratch = append(s.scratch[:0], m.Key...)
	default:
		s.scratch, err = s.cfg.MessageGroupID.Append(s.scratch[:0], m)
	}
	return s.scratch, err
}

// load fills a request with what is ready.
func (s *sink) load() *request {
	var r *request
	if n := len(s.free); n > 0 {
		r, s.free = s.free[n-1], s.free[:n-1]
	} else {
		r = &request{writer: entries{fifo: s.cfg.fifo()}}
	}
	r.indexes, r.size, r.stop = r.indexes[:0], 0, nil
	clear(r.failed[:])
	taken := 0
	for taken < len(s.ready) && len(r.indexes) < maxEntries {
		i := s.ready[taken]
		err := s.add(r, i)
		if errors.Is(err, errFull) {
			break
		}
		taken++
		if err != nil {
			s.outcome.Fail(i, err)
			s.advance(r, i)
			continue
		}
		for j := s.lanes.Next(i); s.cfg.BatchSameGroup && j >= 0 && len(r.indexes) < maxEntries; j = s.lanes.Next(j) {
			if s.add(r, j) != nil {
				break // it is ready again when the messages before it are settled
			}
		}
	}
	s.ready = append(s.ready[:0], s.ready[taken:]...)
	return r
}

// add puts message i into r. It returns errFull if r has no room for it.
func (s *sink) add(r *request, i int) error {
	if s.outcome.Held(i) {
		return relay.ErrHeldBack
	}
	m := &s.batch[i]
	group, err := s.group(m)
	if err != nil {
		return err
	}
	name := string(group)
	if name == "" {
		name = m.ID
	}
	n := len(r.indexes)
	size, err := r.writer.fill(&r.entries[n], &r.values[n], m, name)
	switch {
	case err != nil:
		return err
	case size > s.queue.limit && size > s.queue.askAgain():
		return relay.Permanent(fmt.Errorf("message of %d bytes with its attributes; the queue's limit is %d", size, s.queue.limit))
	case n > 0 && r.size+size > maxRequest:
		return errFull
	}
	r.entries[n].Id = &entryIDs[n]
	r.indexes = append(r.indexes, i)
	r.size += size
	return nil
}

// advance makes the message after message i in its lane ready, unless r has it too.
func (s *sink) advance(r *request, i int) {
	if j := s.lanes.Next(i); j >= 0 && !slices.Contains(r.indexes, j) {
		s.ready = append(s.ready, j)
	}
}

// settle takes over the results of r.
func (s *sink) settle(r *request) {
	for n, i := range r.indexes {
		if err := r.failed[n]; err != nil {
			s.outcome.Fail(i, err)
		} else {
			s.outcome.Confirm(i)
		}
		s.advance(r, i)
	}
	for n := range r.indexes {
		r.entries[n].MessageBody = nil // a large body is not retained
		clear(r.values[n][:])
	}
	s.free = append(s.free, r)
}

// send sends r. If SQS refuses the whole request for one of its entries, it sends
// the entries one by one.
func (s *sink) send(ctx context.Context, r *request) {
	err := s.sendEntries(ctx, r, 0, len(r.indexes))
	if !relay.IsPermanent(err) || len(r.indexes) == 1 {
		return
	}
	for i := range r.indexes {
		if r.stop != nil {
			r.failed[i] = r.stop
			continue
		}
		_ = s.sendEntries(ctx, r, i, i+1) // the entry has the error
	}
}

// sendEntries sends a part of r and records the results. It returns the error of
// the request, which it records too.
func (s *sink) sendEntries(ctx context.Context, r *request, from, to int) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConfirmTimeout.D())
	defer cancel()
	res, err := s.queue.client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &s.cfg.QueueURL, Entries: r.entries[from:to]})
	answer := errUnanswered // of an entry that the answer leaves out
	if err != nil {
		err = s.queue.classify(fmt.Errorf("send %d messages to %s: %w", to-from, s.cfg.QueueURL, err))
		answer = err
		if !relay.IsPermanent(err) {
			r.stop = err
		}
	}
	for i := from; i < to; i++ {
		r.failed[i] = answer
	}
	if err != nil {
		return err
	}
	for i := range res.Successful {
		if at := entryIndex(res.Successful[i].Id, to); at >= from {
			r.failed[at] = nil
		}
	}
	for i := range res.Failed {
		if at := entryIndex(res.Failed[i].Id, to); at >= from {
			r.failed[at] = s.queue.entryError(&res.Failed[i])
		}
	}
	return nil
}
