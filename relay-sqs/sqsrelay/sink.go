package sqsrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

var errClosed = errors.New("sink is closed")

type sink struct {
	cfg    sinkConfig
	queue  *queue
	fifo   bool
	closed bool
	free   []*request // requests whose memory can be used again

	// Of one Publish, kept for the next.
	groups  map[string]int32 // the last message of a group
	next    []int32          // the message of the same group that follows, or -1
	ready   []int32          // messages that may be sent now
	held    map[string]struct{}
	scratch []byte
}

// request is one SendMessageBatch.
type request struct {
	writer  entries
	entries [maxEntries]types.SendMessageBatchRequestEntry
	indexes []int32
	size    int
	failed  [maxEntries]error
	stop    error // the request itself failed: nothing more may be sent
}

func newSink(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Sink, error) {
	cfg := defaultSinkConfig()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	s := &sink{cfg: cfg, fifo: cfg.fifo(), groups: make(map[string]int32), held: make(map[string]struct{})}
	var err error
	s.queue, err = openQueue(ctx, &s.cfg.connection)
	if err != nil {
		return nil, err
	}
	env.Logger.DebugContext(ctx, "queue found", "queue", cfg.QueueURL, "message_limit_bytes", s.queue.limit)
	return s, nil
}

// Limits asks for batches that keep all requests full.
func (s *sink) Limits() (messages, bytes int) { return 0, 8 << 20 }

// Ping looks the queue up.
func (s *sink) Ping(ctx context.Context) error { return s.queue.look(ctx) }

// Destination returns the queue.
func (s *sink) Destination(*relay.Message) (string, error) { return s.cfg.QueueURL, nil }

// Guarantee depends on the kind of queue.
func (s *sink) Guarantee() relay.Guarantee {
	if s.fifo {
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

// Close ends the sink. Its idle connections close by themselves.
func (s *sink) Close() error {
	s.closed = true
	return nil
}

// Publish keeps concurrency requests in flight. A group has a message in one of
// them at most, because SQS may refuse any entry of a request and take the rest.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var failed relay.BatchError
	s.line(batch, &failed)
	loaded, results := make(chan *request, s.cfg.Concurrency), make(chan *request, s.cfg.Concurrency)
	var workers sync.WaitGroup
	started, flying := 0, 0
	var stop error
	for flying > 0 || len(s.ready) > 0 {
		for stop == nil && flying < s.cfg.Concurrency && len(s.ready) > 0 {
			r := s.load(batch, &failed)
			if len(r.indexes) == 0 {
				s.free = append(s.free, r)
				continue
			}
			loaded <- r
			if flying++; flying > started {
				started++
				// One for many requests: the client needs a deep stack, which is costly to grow.
				workers.Go(func() {
					for r := range loaded {
						s.send(ctx, r)
						results <- r
					}
				})
			}
		}
		if flying == 0 {
			break
		}
		r := <-results
		flying--
		if r.stop != nil && stop == nil {
			stop = r.stop
		}
		s.take(r, batch, &failed)
	}
	close(loaded)
	workers.Wait()
	if stop != nil {
		return s.unsent(batch, &failed, stop)
	}
	return failed.Err()
}

// line chains the messages of each group and makes the first of each ready.
func (s *sink) line(batch []relay.Message, failed *relay.BatchError) {
	clear(s.groups)
	clear(s.held)
	s.next, s.ready = s.next[:0], s.ready[:0]
	for i := range batch {
		s.next = append(s.next, -1)
		group, err := s.group(&batch[i])
		if err != nil {
			s.fail(failed, batch, int32(i), err) //nolint:gosec // a batch is far smaller
			continue
		}
		if last, ok := s.groups[string(group)]; ok && len(group) > 0 {
			s.next[last] = int32(i) //nolint:gosec // see above
		} else {
			s.ready = append(s.ready, int32(i)) //nolint:gosec // see above
		}
		if len(group) > 0 {
			s.groups[string(group)] = int32(i) //nolint:gosec // see above
		}
	}
}

// group returns what orders m: "" is a group of its own. A standard queue keeps
// no order, so there nothing waits for anything.
func (s *sink) group(m *relay.Message) ([]byte, error) {
	if !s.fifo {
		return nil, nil
	}
	if s.cfg.MessageGroupID.IsZero() {
		s.scratch = append(s.scratch[:0], m.Key...)
		return s.scratch, nil
	}
	var err error
	s.scratch, err = s.cfg.MessageGroupID.Append(s.scratch[:0], m)
	return s.scratch, err
}

func (s *sink) fail(failed *relay.BatchError, batch []relay.Message, i int32, err error) {
	failed.Fail(int(i), err)
	if key := batch[i].Key; key != "" {
		s.held[strings.Clone(key)] = struct{}{}
	}
}

// load fills a request with what is ready.
func (s *sink) load(batch []relay.Message, failed *relay.BatchError) *request {
	var r *request
	if n := len(s.free); n > 0 {
		r, s.free = s.free[n-1], s.free[:n-1]
	} else {
		r = &request{writer: entries{fifo: s.fifo}}
	}
	r.indexes, r.size, r.stop = r.indexes[:0], 0, nil
	clear(r.failed[:])
	taken := 0
	for taken < len(s.ready) && len(r.indexes) < maxEntries {
		i := s.ready[taken]
		added, err := s.add(r, batch, i)
		if !added && err == nil {
			break // no room
		}
		taken++
		if err != nil {
			s.refuse(batch, failed, i, err)
			continue
		}
		for s.cfg.BatchSameGroup && s.next[i] >= 0 && len(r.indexes) < maxEntries {
			following := s.next[i]
			if added, err = s.add(r, batch, following); !added {
				if err != nil {
					s.refuse(batch, failed, following, err)
					s.next[i] = -1
				}
				break
			}
			i = following
		}
	}
	s.ready = append(s.ready[:0], s.ready[taken:]...)
	return r
}

// add puts message i into r. It returns false and no error when r is full.
func (s *sink) add(r *request, batch []relay.Message, i int32) (bool, error) {
	m := &batch[i]
	if m.Key != "" && len(s.held) > 0 {
		if _, held := s.held[m.Key]; held {
			return false, relay.ErrHeldBack
		}
	}
	group, err := s.group(m)
	if err != nil {
		return false, err
	}
	name := string(group)
	if name == "" {
		name = m.ID
	}
	n := len(r.indexes)
	size, err := r.writer.fill(&r.entries[n], m, name)
	if err == nil && size > s.queue.limit {
		err = relay.Permanent(fmt.Errorf("message of %d bytes with its attributes; the queue takes %d", size, s.queue.limit))
	}
	if err != nil {
		return false, err
	}
	if n > 0 && r.size+size > maxRequest {
		return false, nil
	}
	r.entries[n].Id = &entryIDs[n]
	r.indexes = append(r.indexes, i)
	r.size += size
	return true, nil
}

// refuse fails message i and what follows it in its group, unless that is of
// another key, which then moves up.
func (s *sink) refuse(batch []relay.Message, failed *relay.BatchError, i int32, err error) {
	s.fail(failed, batch, i, err)
	for j := s.next[i]; j >= 0; j = s.next[j] {
		if _, held := s.held[batch[j].Key]; !held || batch[j].Key == "" {
			s.ready = append(s.ready, j)
			return
		}
		failed.Fail(int(j), relay.ErrHeldBack)
	}
}

// send sends r and notes what became of its entries.
func (s *sink) send(ctx context.Context, r *request) {
	err := s.sendEntries(ctx, r, 0, len(r.indexes))
	if relay.IsPermanent(err) && len(r.indexes) > 1 {
		// SQS refused the request for one of its entries. One by one they tell.
		for i := range r.indexes {
			if i > 0 && r.stop != nil {
				r.failed[i] = r.stop
				continue
			}
			if err := s.sendEntries(ctx, r, i, i+1); err != nil {
				r.failed[i] = err
				if !relay.IsPermanent(err) {
					r.stop = err
				}
			}
		}
		return
	}
	if err == nil {
		return
	}
	for i := range r.indexes {
		r.failed[i] = err
	}
	if !relay.IsPermanent(err) {
		r.stop = err
	}
}

func (s *sink) sendEntries(ctx context.Context, r *request, from, to int) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout.D())
	defer cancel()
	res, err := s.queue.client.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: &s.cfg.QueueURL, Entries: r.entries[from:to]})
	if err != nil {
		return s.queue.classify(fmt.Errorf("send %d messages to %s: %w", to-from, s.cfg.QueueURL, err))
	}
	// An entry that the answer leaves out is not confirmed.
	for i := from; i < to; i++ {
		r.failed[i] = errUnanswered
	}
	for i := range res.Successful {
		if at := entryIndex(res.Successful[i].Id); at >= from && at < to {
			r.failed[at] = nil
		}
	}
	for i := range res.Failed {
		if at := entryIndex(res.Failed[i].Id); at >= from && at < to {
			r.failed[at] = s.queue.entryError(&res.Failed[i])
		}
	}
	return nil
}

var errUnanswered = errors.New("the answer of SQS leaves the message out")

// take notes r's results and makes ready what waited for them.
func (s *sink) take(r *request, batch []relay.Message, failed *relay.BatchError) {
	for n, i := range r.indexes {
		if r.failed[n] != nil {
			s.refuseSent(r, n, batch, failed)
			continue
		}
		if j := s.next[i]; j >= 0 && !r.has(j) {
			s.ready = append(s.ready, j)
		}
	}
	s.free = append(s.free, r)
}

func (r *request) has(i int32) bool {
	return slices.Contains(r.indexes, i)
}

// refuseSent fails entry n of r. What follows it in its group was sent with it
// where batch_same_group is on, and has an answer of its own.
func (s *sink) refuseSent(r *request, n int, batch []relay.Message, failed *relay.BatchError) {
	i := r.indexes[n]
	if j := s.next[i]; j >= 0 && r.has(j) {
		s.fail(failed, batch, i, r.failed[n])
		return
	}
	s.refuse(batch, failed, i, r.failed[n])
}

// unsent fails everything that has no answer with stop.
func (s *sink) unsent(batch []relay.Message, failed *relay.BatchError, stop error) error {
	for _, i := range s.ready {
		for j := i; j >= 0; j = s.next[j] {
			if _, ok := failed.Failed[int(j)]; !ok {
				failed.Fail(int(j), stop)
			}
		}
	}
	if len(failed.Failed) < len(batch) {
		return failed
	}
	for _, err := range failed.Failed {
		if relay.IsPermanent(err) {
			return failed
		}
	}
	return stop
}
