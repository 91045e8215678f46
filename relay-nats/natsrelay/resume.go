package natsrelay

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Position implements [relay.Resumer]: the stream, when it was created, and the
// last sequence that may hold a message of ours.
func (s *sink) Position(ctx context.Context) (string, error) {
	if s.stream == "" {
		if err := s.connect(ctx, ""); err != nil {
			return "", err
		}
		if s.stream == "" {
			return "", nil // not known before the first message
		}
	}
	return fmt.Sprintf("%s %d %d", s.stream, s.created.UnixNano(), s.lastSeq), nil
}

// Resume implements [relay.Resumer].
func (s *sink) Resume(ctx context.Context, position string, seen func(id string)) error {
	name, created, seq, err := parsePosition(position)
	if err != nil {
		return err
	}
	if err := s.connect(ctx, ""); err != nil {
		return err
	}
	if s.stream != "" && s.stream != name {
		return nil // another stream is configured now, and holds nothing of the pipeline
	}
	if s.stream == "" {
		if s.stream = name; s.cfg.Stream == "" {
			s.created = created
		}
	}
	if created.UnixNano() != s.created.UnixNano() {
		seq = 0 // deleted and created again since
	}
	last, err := s.readBack(ctx, seq+1, seen)
	if err != nil {
		return s.conn.apiError(ctx, fmt.Errorf("read back stream %q from sequence %d: %w", s.stream, seq+1, err))
	}
	s.lastSeq = max(s.lastSeq, last)
	return nil
}

func parsePosition(position string) (stream string, created time.Time, seq uint64, err error) {
	var nanos int64
	if _, err := fmt.Sscan(position, &stream, &nanos, &seq); err != nil {
		return "", time.Time{}, 0, fmt.Errorf("position %q is not one of a NATS stream: %w", position, err)
	}
	return stream, time.Unix(0, nanos), seq, nil
}

// readBack calls seen with the ID of each message in the stream that the pipeline may have
// written, from sequence start to the present end. It reads headers only.
func (s *sink) readBack(ctx context.Context, start uint64, seen func(id string)) (last uint64, err error) {
	stream, err := s.conn.js.Stream(ctx, s.stream)
	if err != nil {
		return 0, err
	}
	info := stream.CachedInfo()
	if last = info.State.LastSeq; last < start {
		return last, nil
	}
	if info.Config.Retention == jetstream.WorkQueuePolicy {
		// Reading a work queue removes its messages. Only its duplicate window
		// recognises them; see Guarantee.
		return last, nil
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: start, HeadersOnly: true,
	})
	if err != nil {
		return last, err
	}
	if info := consumer.CachedInfo(); info != nil && info.NumPending == 0 {
		return last, nil
	}
	messages, err := consumer.Messages(jetstream.PullMaxMessages(4096))
	if err != nil {
		return last, err
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return last, err
		}
		meta, err := m.Metadata()
		if err != nil {
			return last, err
		}
		if id, ok := s.wrote(m.Headers()); ok {
			seen(id)
		}
		if meta.Sequence.Stream >= last || meta.NumPending == 0 {
			return max(last, meta.Sequence.Stream), nil
		}
	}
}

// wrote returns the id of the event of a message that the pipeline may have written.
// Without an id of its own beside that of the delivery it may be of an older relay.
func (s *sink) wrote(h nats.Header) (id string, ok bool) {
	delivery := h.Get(nats.MsgIdHdr)
	if delivery == "" || h.Get(relay.HeaderOp) == "" {
		return "", false
	}
	if id = h.Get(relay.HeaderDedupKey); id == "" {
		return delivery, true
	}
	return id, delivery == relay.DeliveryID(s.env.Identity, id)
}
