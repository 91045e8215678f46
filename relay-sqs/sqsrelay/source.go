package sqsrelay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type source struct {
	cfg    sourceConfig
	env    relay.Env
	queue  *queue
	origin string

	chunks chan []relay.Message
	errs   chan error
	rest   []relay.Message

	stop    context.CancelFunc // of asking for more
	abandon context.CancelFunc // of what was asked
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

func newSource(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Source, error) {
	cfg := defaultSourceConfig()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	s := &source{
		cfg: cfg, env: env, origin: "sqs:" + cfg.queueName(),
		chunks: make(chan []relay.Message), errs: make(chan error), held: make(map[*receipt]struct{}),
	}
	var err error
	if s.queue, err = openQueue(ctx, &s.cfg.connection); err != nil {
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

// Ping looks the queue up.
func (s *source) Ping(ctx context.Context) error { return s.queue.look(ctx) }

// Guarantee depends on the kind of queue.
func (s *source) Guarantee() relay.Guarantee {
	g := relay.Guarantee{
		Delivery: "at least once; effectively once into an inbox", Dedup: "attribute dedup_key, else MessageId", Order: "none",
		Weakest: "the queue's retention, or a redrive policy that counts receives",
	}
	if s.cfg.fifo() {
		g.Dedup, g.Order = "attribute dedup_key, else message group and MessageDeduplicationId", "per message group"
	}
	return g
}

// Receive hands out what was received, by as many requests as have an answer.
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
	for len(s.rest) < limit {
		select {
		case more := <-s.chunks:
			s.rest = append(s.rest, more...)
			continue
		default:
		}
		break
	}
	n := min(limit, len(s.rest))
	out := s.rest[:n:n]
	s.rest = s.rest[n:]
	return out, nil
}

// poll receives until polling ends, and lets its last request come to its end. A
// FIFO queue gives nothing of a group while messages of it are out, so that
// several polls do not mix up a group.
func (s *source) poll(ctx, polling context.Context) {
	for polling.Err() == nil {
		chunk, err := s.receive(ctx)
		switch {
		case polling.Err() != nil: // what came is held, and Close gives it back
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
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WaitTime.D()+s.cfg.RequestTimeout.D())
	defer cancel()
	res, err := s.queue.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
		QueueUrl:                    &s.cfg.QueueURL,
		MaxNumberOfMessages:         int32(s.cfg.MaxMessages),                //nolint:gosec // at most 10
		WaitTimeSeconds:             int32(s.cfg.WaitTime.D() / time.Second), //nolint:gosec // at most 20
		VisibilityTimeout:           s.visibility(),
		MessageAttributeNames:       []string{"All"},
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll},
	})
	if err != nil {
		return nil, s.queue.classify(fmt.Errorf("receive from %s: %w", s.cfg.QueueURL, err))
	}
	// The queue has hidden them some time after it was asked; that it was later
	// can only be known up to the wait.
	until := time.Now().Add(s.cfg.VisibilityTimeout.D())
	if len(res.Messages) > 0 && time.Since(asked) < s.cfg.VisibilityTimeout.D()/4 {
		until = asked.Add(s.cfg.VisibilityTimeout.D())
	}
	chunk := make([]relay.Message, len(res.Messages))
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range res.Messages {
		r := &receipt{handle: text(res.Messages[i].ReceiptHandle), until: until}
		s.held[r] = struct{}{}
		chunk[i] = s.message(&res.Messages[i])
		chunk[i].Token = r
	}
	return chunk, nil
}

func (s *source) visibility() int32 {
	return int32(s.cfg.VisibilityTimeout.D() / time.Second) //nolint:gosec // at most 12 hours
}

func (s *source) message(in *types.Message) relay.Message {
	m := relay.Message{Subject: s.cfg.queueName(), Op: relay.OpEvent, Body: []byte(text(in.Body)), Origin: s.origin}
	for name, a := range in.MessageAttributes {
		value := text(a.StringValue)
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
	if m.ID == "" { // not one of ours
		m.ID = strangersID(in, m.Body)
		if m.Key == "" {
			m.Key = in.Attributes["MessageGroupId"]
		}
	}
	return m
}

// strangersID identifies a message that the relay has not sent. Where the queue
// deduplicates by group, two groups may use the same id; neither holds a space.
func strangersID(in *types.Message, body []byte) string {
	id := in.Attributes["MessageDeduplicationId"]
	// A queue with content-based deduplication uses the body's hash, and a body
	// may come again when the five minutes of deduplication are over.
	if id == "" || id == bodyHash(body) {
		return text(in.MessageId)
	}
	return in.Attributes["MessageGroupId"] + " " + id
}

func addPacked(m *relay.Message, packed string) {
	var pairs [][2]string
	if json.Unmarshal([]byte(packed), &pairs) != nil {
		m.AddWireHeader(attrHeaders, packed) // somebody else's
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

func bodyHash(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// Ack deletes the messages, several requests at a time.
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	open := make([]*receipt, 0, len(batch))
	s.mu.Lock()
	for i := range batch {
		r, ok := batch[i].Token.(*receipt)
		if !ok {
			s.mu.Unlock()
			return fmt.Errorf("acknowledge %s: not a message of this source", batch[i].ID)
		}
		if !r.deleted { // by an Ack that failed for others
			open = append(open, r)
			// It is stored. Should it never be deleted, because nobody tries again, it has to
			// come again, or it would stay hidden and hold up its group for ever.
			delete(s.held, r)
		}
	}
	s.mu.Unlock()
	parts := make(chan []*receipt)
	errs := make([]error, min(s.cfg.Concurrency, (len(open)+maxEntries-1)/maxEntries))
	var wait sync.WaitGroup
	for w := range errs {
		wait.Go(func() {
			for part := range parts {
				if errs[w] == nil {
					errs[w] = s.delete(ctx, part)
				}
			}
		})
	}
	for len(open) > 0 {
		n := min(maxEntries, len(open))
		parts <- open[:n]
		open = open[n:]
	}
	close(parts)
	wait.Wait()
	return errors.Join(errs...)
}

func (s *source) delete(ctx context.Context, part []*receipt) error {
	entries := make([]types.DeleteMessageBatchRequestEntry, len(part))
	for i, r := range part {
		entries[i] = types.DeleteMessageBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: &r.handle}
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout.D())
	defer cancel()
	res, err := s.queue.client.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: &s.cfg.QueueURL, Entries: entries})
	if err != nil {
		return s.queue.classify(fmt.Errorf("delete %d messages from %s: %w", len(part), s.cfg.QueueURL, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range res.Successful {
		if at := entryIndex(res.Successful[i].Id); at >= 0 && at < len(part) {
			part[at].deleted = true
		}
	}
	var failure error
	for i := range res.Failed {
		f := &res.Failed[i]
		at := entryIndex(f.Id)
		if at < 0 || at >= len(part) {
			continue
		}
		if stale(text(f.Code)) {
			// The message was out for too long and comes again; its id tells that it
			// has been here. No second try will delete it by this receipt.
			s.env.Logger.InfoContext(ctx, "a message could not be deleted as its visibility timeout had passed; it comes again", "code", text(f.Code))
			part[at].deleted = true
			continue
		}
		failure = fmt.Errorf("delete a message from %s: %s: %s", s.cfg.QueueURL, text(f.Code), text(f.Message))
	}
	return failure
}

func stale(code string) bool {
	return strings.Contains(code, "ReceiptHandleIsInvalid") || strings.Contains(code, "InvalidParameterValue") || strings.Contains(code, "MessageNotInflight")
}

// keepHidden extends the visibility timeout of what is held, each time that half
// of it has passed.
func (s *source) keepHidden(ctx context.Context) {
	half := s.cfg.VisibilityTimeout.D() / 2
	tick := time.NewTicker(max(half/4, 100*time.Millisecond))
	defer tick.Stop()
	failing := false // said once
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			err := s.setVisibility(ctx, s.hiddenUntil(now.Add(half)), s.visibility())
			if err != nil && ctx.Err() == nil && !failing {
				s.env.Logger.WarnContext(ctx, "could not extend the visibility timeout of received messages; they may come again", "err", err)
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
	for len(receipts) > 0 {
		part := receipts[:min(maxEntries, len(receipts))]
		receipts = receipts[len(part):]
		entries := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(part))
		for i, r := range part {
			entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: &entryIDs[i], ReceiptHandle: &r.handle, VisibilityTimeout: seconds}
		}
		until := time.Now().Add(time.Duration(seconds) * time.Second)
		attempt, cancel := context.WithTimeout(ctx, s.cfg.RequestTimeout.D())
		res, err := s.queue.client.ChangeMessageVisibilityBatch(attempt, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &s.cfg.QueueURL, Entries: entries})
		cancel()
		if err != nil {
			failure = err
			continue
		}
		s.mu.Lock()
		for i := range res.Successful {
			if at := entryIndex(res.Successful[i].Id); at >= 0 && at < len(part) {
				part[at].until = until
			}
		}
		for i := range res.Failed {
			// It is visible again, or was deleted just now: nothing left to extend.
			if at := entryIndex(res.Failed[i].Id); at >= 0 && at < len(part) && res.Failed[i].SenderFault {
				delete(s.held, part[at])
			}
		}
		s.mu.Unlock()
	}
	return failure
}

// closeGrace is how long Close allows an answer that is due, and what it gives
// back, to take.
const closeGrace = 2 * time.Second

// Close gives back what is not settled, so that the next owner need not wait for
// the visibility timeout. It waits for requests that are out, wait_time_seconds
// at most while the queue is empty: SQS goes on with one that nobody waits for
// any more, and what it gives to that stays hidden for a visibility timeout.
func (s *source) Close() error {
	s.stop()
	late := time.AfterFunc(s.cfg.WaitTime.D()+closeGrace, s.abandon)
	s.polls.Wait()
	late.Stop()
	s.abandon()
	s.keeper.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), closeGrace) // outlives what was abandoned
	defer cancel()
	_ = s.setVisibility(ctx, s.hiddenUntil(time.Now().Add(24*time.Hour)), 0) // else they come when the timeout has passed
	return nil
}
