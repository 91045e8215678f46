package rabbitmqrelay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	headerDeliveryCount = "x-delivery-count"
	headerStreamOffset  = "x-stream-offset"
)

// source consumes one queue. Each connection is a session; what a session left
// unacknowledged, the broker delivers again in the next.
type source struct {
	cfg sourceConfig
	env relay.Env
	url int // of cfg.urls() that worked last

	mu       sync.Mutex
	session  *session
	finished bool
	progress progress // in a stream
}

// token is what Ack needs of a message.
type token struct {
	session *session
	tag     uint64
	offset  int64 // in a stream
	refused bool  // Err is set
}

func openSource(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
	cfg.ConsumerTag = cmp.Or(cfg.ConsumerTag, "pgtrickle-relay "+env.Pipeline)
	cfg.OffsetQueue = cmp.Or(cfg.OffsetQueue, cfg.Queue+".offset."+env.Group+"."+env.Pipeline)
	s := &source{cfg: cfg, env: env, progress: progress{log: env.Logger}}
	// How long an offset cannot be seen is for this source to remember.
	if _, err := s.connect(ctx); err != nil && !errors.Is(err, errHeld) {
		return nil, err
	}
	return s, nil
}

// connect returns the session, a new one when the last has ended.
func (s *source) connect(ctx context.Context) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return nil, errors.New("the source is closed")
	}
	if s.session != nil {
		if !s.session.ended() {
			return s.session, nil
		}
		_ = s.session.link.hangUp()
		s.session = nil
	}
	link, err := dial(ctx, s.env, &s.cfg.connConfig, &s.url)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = link.wire.Close() })
	defer stop()
	n, err := newSession(ctx, link, &s.cfg, &s.progress)
	if err != nil {
		_ = link.hangUp()
		return nil, classify(err)
	}
	s.session = n
	return n, nil
}

// Receive implements relay.Source.
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := s.connect(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, err
		}
		if err := n.keepStart(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			_ = n.link.wire.Close() // nothing was handed out: begin anew
			return nil, classify(err)
		}
		deliveries, err := n.take(ctx, limit)
		if err != nil {
			return nil, err
		}
		if batch := s.translate(n, deliveries); len(batch) > 0 {
			return batch, nil
		}
	}
}

func (s *source) translate(n *session, deliveries []amqp.Delivery) []relay.Message {
	batch := make([]relay.Message, 0, len(deliveries))
	tokens := make([]token, len(deliveries))
	for i := range deliveries {
		d := &deliveries[i]
		m := s.message(d)
		tokens[i] = token{session: n, tag: d.DeliveryTag, refused: m.Err != nil}
		tokens[i].offset, _ = d.Headers[headerStreamOffset].(int64)
		if m.Err != nil && s.cfg.OnReject == "requeue" && s.cfg.QueueType != amqp.QueueTypeStream && !d.Redelivered {
			// Once more, perhaps to another consumer. The second time it is taken
			// as what it is: a message that cannot be used.
			s.env.Logger.Warn("message put back into its queue", "queue", s.cfg.Queue, "id", m.ID, "err", m.Err)
			n.putBack(d.DeliveryTag)
			continue
		}
		m.Token = &tokens[i]
		batch = append(batch, m)
	}
	return batch
}

// message translates a delivery.
func (s *source) message(d *amqp.Delivery) relay.Message {
	m := relay.Message{
		Op:          relay.OpEvent,
		Body:        d.Body,
		ContentType: d.ContentType,
		Time:        d.Timestamp,
		Origin:      "rabbitmq:" + s.cfg.Queue,
	}
	var deliveries int64
	for name, value := range d.Headers {
		switch name {
		case headerStreamOffset:
		case headerDeliveryCount:
			deliveries, _ = value.(int64)
		default:
			m.AddWireHeader(name, text(value))
		}
	}
	if m.Op == relay.OpEvent && (d.Type == relay.OpInsert || d.Type == relay.OpUpdate || d.Type == relay.OpDelete) {
		m.Op = d.Type
	}
	m.Subject = cmp.Or(m.Subject, d.RoutingKey)
	m.ID = cmp.Or(d.MessageId, m.ID)
	if m.ID == "" {
		s.identify(&m, d)
	}
	if limit := int64(s.cfg.MaxDeliveries); limit > 0 && deliveries >= limit {
		m.Err = fmt.Errorf("delivered %d times before, max_deliveries is %d", deliveries, limit)
	}
	return m
}

// identify gives m an id where the publisher has not.
func (s *source) identify(m *relay.Message, d *amqp.Delivery) {
	if offset, ok := d.Headers[headerStreamOffset].(int64); ok {
		m.ID = "rabbitmq:" + s.cfg.Queue + ":" + strconv.FormatInt(offset, 10)
		return
	}
	sum := sha256.Sum256(d.Body)
	m.ID = "rabbitmq:" + s.cfg.Queue + ":sha256:" + hex.EncodeToString(sum[:])
	if s.cfg.ID == "refuse" {
		m.Err = errors.New(`no message-id: have the publisher set one, or set the key id to "hash"`)
	}
}

// text renders a header's value.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case []byte:
		return string(v)
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	case nil:
		return ""
	}
	return fmt.Sprint(value)
}

// Ack implements relay.Source. What came over a connection that is gone is
// delivered again in any case, and known by its id.
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	for len(batch) > 0 {
		n := batch[0].Token.(*token).session //nolint:forcetypeassert // our own
		end := 1
		for end < len(batch) && batch[end].Token.(*token).session == n { //nolint:forcetypeassert // our own
			end++
		}
		if err := n.settle(ctx, batch[:end], s.cfg.OnReject == "dead-letter"); err != nil && !n.ended() {
			return classify(fmt.Errorf("acknowledge %d messages of queue %q: %w", end, s.cfg.Queue, err))
		}
		batch = batch[end:]
	}
	return nil
}

// Lag implements relay.Lagger: the queue's ready messages; their age is unknown
// to AMQP.
func (s *source) Lag(ctx context.Context) (rows int64, seconds float64, err error) {
	n, err := s.connect(ctx)
	if err != nil {
		return 0, 0, err
	}
	ready, oldest, err := n.backlog(s.cfg.Queue)
	if err != nil {
		return 0, 0, classify(err)
	}
	if !oldest.IsZero() {
		seconds = max(0, time.Since(oldest).Seconds())
	}
	return ready, seconds, nil
}

// Ping implements relay.Pinger.
func (s *source) Ping(ctx context.Context) error {
	_, err := s.connect(ctx)
	return err
}

// Close implements relay.Source.
func (s *source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
	if s.session == nil {
		return nil
	}
	err := s.session.link.hangUp()
	<-s.session.done
	s.session = nil
	return err
}

func queueArgs(queueType string) amqp.Table { return amqp.Table{amqp.QueueTypeArg: queueType} }

func offsetArg(offset string) any {
	if n, err := strconv.ParseInt(offset, 10, 64); err == nil {
		return n
	}
	return strings.TrimSpace(offset)
}
