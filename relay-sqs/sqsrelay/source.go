package sqsrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

type source struct {
	cfg    sourceConfig
	env    relay.Env
	queue  *queue
	origin string

	chunks chan []relay.Message
	errs   chan error
	rest   []relay.Message

	stop    context.CancelFunc // ends the polls after their present request
	abandon context.CancelFunc // ends all requests
	polls   sync.WaitGroup
	keeper  sync.WaitGroup

	mu   sync.Mutex
	held map[*receipt]struct{} // received and not settled
}

// receipt is what SQS wants back to delete a message or to keep it hidden.
type receipt struct {
	handle  string
	until   time.Time // hidden until then
	deleted bool
}

var (
	_ relay.Pinger    = (*source)(nil)
	_ relay.Guarantor = (*source)(nil)
)

func newSource(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
	s := &source{
		cfg: cfg, env: env, origin: "sqs:" + cfg.queueName(),
		chunks: make(chan []relay.Message), errs: make(chan error), held: make(map[*receipt]struct{}),
	}
	var err error
	if s.queue, err = openQueue(ctx, env, &s.cfg.connConfig); err != nil {
		return nil, err
	}
	ctx, s.abandon = context.WithCancel(context.WithoutCancel(ctx))
	polling, stop := context.WithCancel(ctx)
	s.stop = stop
	for range cfg.Concurrency {
		s.polls.Go(func() { s.poll(ctx, polling) })
	}
	s.keeper.Go(func() { s.keepHidden(ctx) })
	return s, nil
}

// Ping implements [relay.Pinger].
func (s *source) Ping(ctx context.Context) error { return s.queue.check(ctx) }

// Guarantee implements [relay.Guarantor]. It depends on the kind of queue.
func (s *source) Guarantee() relay.Guarantee {
	g := Backend().SourceGuarantee
	g.Dedup, g.Order = "attribute dedup_key, else MessageId", "none"
	if s.cfg.fifo() {
		g.Dedup, g.Order = "attribute dedup_key, else message group and MessageDeduplicationId", "per message group"
	}
	return g
}

// Receive implements [relay.Source], with what all answered requests have brought.
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	if len(s.rest) == 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case err := <-s.errs:
			return nil, err
		case s.rest = <-s.chunks:
		}
	}
	for more := true; more && len(s.rest) < limit; {
		select {
		case chunk := <-s.chunks:
			s.rest = append(s.rest, chunk...)
		default:
			more = false
		}
	}
	n := min(limit, len(s.rest))
	out := s.rest[:n:n]
	s.rest = s.rest[n:]
	return out, nil
}

// poll receives until polling ends, and then waits for its last answer. A FIFO queue
// delivers nothing of a group while messages of it are hidden, so several polls
// keep the order of a group.
func (s *source) poll(ctx, polling context.Context) {
	for polling.Err() == nil {
		chunk, err := s.receive(ctx)
		switch {
		case polling.Err() != nil: // Close makes what came visible again
			return
		case err != nil:
			select {
			case s.errs <- err:
			case <-polling.Done():
			}
		case len(chunk) > 0:
			select {
			case s.chunks <- chunk:
			case <-polling.Done():
			}
		}
	}
}

func (s *source) receive(ctx context.Context) ([]relay.Message, error) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTime.D()+s.cfg.ConfirmTimeout.D())
	defer cancel()
	res, err := s.queue.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl:                    &s.cfg.QueueURL,
		MaxNumberOfMessages:         int32(s.cfg.MaxMessages),
		WaitTimeSeconds:             int32(s.cfg.WaitTime.D() / time.Second),
		VisibilityTimeout:           s.visibility(),
		MessageAttributeNames:       []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll},
	})
	if err != nil {
		return nil, s.queue.classify(fmt.Errorf("receive from %s: %w", s.cfg.QueueURL, err))
	}
	// The queue hid them some time between the request and its answer. The earlier
	// time is safe, but a long poll may have waited for most of it.
	until := time.Now().Add(s.cfg.VisibilityTimeout.D())
	if len(res.Messages) > 0 && time.Since(asked) < s.cfg.VisibilityTimeout.D()/4 {
		until = asked.Add(s.cfg.VisibilityTimeout.D())
	}
	chunk := make([]relay.Message, len(res.Messages))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range res.Messages {
		r := &receipt{handle: aws.ToString(res.Messages[i].ReceiptHandle), until: until}
		s.held[r] = struct{}{}
		chunk[i] = s.message(&res.Messages[i])
		chunk[i].Token = r
	}
	return chunk, nil
}

func (s *source) visibility() int32 {
	return int32(s.cfg.VisibilityTimeout.D() / time.Second)
}

func (s *source) message(in *types.Message) relay.Message {
	m := relay.Message{Subject: s.cfg.queueName(), Op: relay.OpEvent, Body: []byte(aws.ToString(in.Body)), Origin: s.origin}
	for name, a := range in.MessageAttributes {
		value := aws.ToString(a.StringValue)
		if a.StringValue == nil {
			value = string(a.BinaryValue)
		}
		switch name {
		case attrDedupKey:
			m.ID = value
		case attrHeaders:
			addPacked(&m, value)
		default:
			m.AddWireHeader(name, value)
		}
	}
	if millis, err := strconv.ParseInt(in.Attributes["SentTimestamp"], 10, 64); err == nil {
		m.Time = time.UnixMilli(millis)
	}
	if m.ID == "" { // from another publisher
		m.ID = aws.ToString(in.MessageId)
		if !s.env.ScopeIDs {
			m.ID = foreignID(in, m.Body)
		}
		if m.Key == "" {
			m.Key = in.Attributes["MessageGroupId"]
		}
	}
	return m
}

// foreignID identifies a message of another publisher. If the queue deduplicates by
// group, two groups may use the same id; neither contains a space.
func foreignID(in *types.Message, body []byte) string {
	id := in.Attributes["MessageDeduplicationId"]
	// A queue with content-based deduplication uses the body's hash, and the same
	// body may come again after the five minutes of deduplication.
	if id == "" || id == relay.Hash(body) {
		return aws.ToString(in.MessageId)
	}
	return in.Attributes["MessageGroupId"] + " " + id
}

func addPacked(m *relay.Message, packed string) {
	var pairs [][2]string
	if json.Unmarshal([]byte(packed), &pairs) != nil {
		m.AddWireHeader(attrHeaders, packed) // of another publisher
		return
	}
	for _, p := range pairs {
		if strings.EqualFold(p[0], attrDedupKey) {
			m.ID = p[1]
			continue
		}
		m.AddWireHeader(p[0], p[1])
	}
}

// Ack implements [relay.Source]. It deletes the messages, several requests at a time.
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	open := make([]*receipt, 0, len(batch))
	s.mu.Lock()
	for i := range batch {
		r := batch[i].Token.(*receipt)
		if !r.deleted { // by an Ack that failed for others
			open = append(open, r)
			// It is settled. If no Ack ever deletes it, it must become visible again, or
			// it would block its group without end.
			delete(s.held, r)
		}
	}
	s.mu.Unlock()
	parts := slices.Collect(slices.Chunk(open, maxEntries))
	errs := make([]error, len(parts))
	var next atomic.Int32
	var workers sync.WaitGroup
	for range min(s.cfg.Concurrency, len(parts)) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(parts); i = int(next.Add(1)) - 1 {
				if errs[i] = s.delete(ctx, parts[i]); errs[i] != nil {
					return
				}
			}
		})
	}
	workers.Wait()
	return errors.Join(errs...)
}

func (s *source) delete(ctx context.Context, part []*receipt) error {
	entries := make([]types.DeleteMessageBatchRequestEntry, len(part))
	for i, r := range part {
		entries[i] = types.DeleteMessageBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: &r.handle}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.ConfirmTimeout.D())
	defer cancel()
	res, err := s.queue.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &s.cfg.QueueURL, Entries: entries})
	if err != nil {
		return s.queue.classify(fmt.Errorf("delete %d messages from %s: %w", len(part), s.cfg.QueueURL, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range res.Successful {
		if at := entryIndex(res.Successful[i].Id, len(part)); at >= 0 {
			part[at].deleted = true
		}
	}
	var failure error
	for i := range res.Failed {
		f := &res.Failed[i]
		at := entryIndex(f.Id, len(part))
		if at >= 0 && stale(aws.ToString(f.Code)) {
			// The message is visible again and its receipt is of no more use. It will be
			// delivered again, and known by its id.
			s.env.Logger.InfoContext(ctx, "settled message will come again", "code", aws.ToString(f.Code))
			part[at].deleted = true
		} else if at >= 0 {
			failure = fmt.Errorf("delete a message from %s: %s: %s", s.cfg.QueueURL, aws.ToString(f.Code), aws.ToString(f.Message))
		}
	}
	return failure
}

func stale(code string) bool {
	return strings.Contains(code, "ReceiptHandleIsInvalid") || strings.Contains(code, "InvalidParameterValue") ||
		strings.Contains(code, "MessageNotInflight")
}

// keepHidden extends the visibility timeout of what is held, each time that half
// of it has passed.
func (s *source) keepHidden(ctx context.Context) {
	half := s.cfg.VisibilityTimeout.D() / 2
	tick := time.NewTicker(max(half/4, 100*time.Millisecond))
	defer tick.Stop()
	failing := false // logged once
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			err := s.setVisibility(ctx, s.hiddenUntil(now.Add(half)), s.visibility())
			if err != nil && ctx.Err() == nil && !failing {
				s.env.Logger.WarnContext(ctx, "visibility timeout not extended", "err", err)
			}
			failing = err != nil
		}
	}
}

func (s *source) hiddenUntil(t time.Time) []*receipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*receipt
	for r := range s.held {
		if r.until.Before(t) {
			out = append(out, r)
		}
	}
	return out
}

func (s *source) setVisibility(ctx context.Context, receipts []*receipt, seconds int32) error {
	var failure error
	for part := range slices.Chunk(receipts, maxEntries) {
		entries := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(part))
		for i, r := range part {
			entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: &r.handle, VisibilityTimeout: seconds}
		}
		until := time.Now().Add(time.Duration(seconds) * time.Second)
		attempt, cancel := context.WithTimeout(ctx, s.cfg.ConfirmTimeout.D())
		res, err := s.queue.client.ChangeMessageVisibilityBatch(attempt, &sqs.ChangeMessageVisibilityBatchInput{
			QueueUrl: &s.cfg.QueueURL, Entries: entries,
		})
		cancel()
		if err != nil {
			failure = err
			continue
		}
		s.mu.Lock()
		for i := range res.Successful {
			if at := entryIndex(res.Successful[i].Id, len(part)); at >= 0 {
				part[at].until = until
			}
		}
		for i := range res.Failed {
			// It is visible again or deleted.
			if at := entryIndex(res.Failed[i].Id, len(part)); at >= 0 && res.Failed[i].SenderFault {
				delete(s.held, part[at])
			}
		}
		s.mu.Unlock()
	}
	return failure
}

// closeGrace is how long Close waits for an answer that is due, and again for what
// it sends itself.
const closeGrace = 2 * time.Second

// Close implements [relay.Source]. It makes what is not settled visible again, so
// that the next owner need not wait for the visibility timeout. It waits for requests in
// flight, for wait_time_seconds at most. SQS does not notice that a request was abandoned,
// and would hide the messages that it delivers to it.
func (s *source) Close() error {
	s.stop()
	late := time.AfterFunc(s.cfg.WaitTime.D()+closeGrace, s.abandon)
	s.polls.Wait()
	late.Stop()
	s.abandon()
	s.keeper.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace) // ctx of the requests has ended
	defer cancel()
	_ = s.setVisibility(ctx, s.hiddenUntil(time.Now().Add(24*time.Hour)), 0) // else they come after the timeout
	return nil
}
