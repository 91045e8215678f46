package rabbitmqrelay

import (
	"cmp"
	"context"
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

// source consumes one queue. Each connection is a session.
type source struct {
	cfg sourceConfig
	env relay.Env
	url int // the node that answered last

	mu       sync.Mutex
	session  *session
	closed   bool
	progress progress // in a stream
}

var (
	_ relay.Lagger = (*source)(nil)
	_ relay.Pinger = (*source)(nil)
)

// token is what Ack needs of a message.
type token struct {
	session *session
	tag     uint64
	refused bool // Err is set
	message *amqp.Delivery
}

func newSource(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
	cfg.ConsumerTag = cmp.Or(cfg.ConsumerTag, "pgtrickle-relay "+env.Pipeline)
	cfg.Marker = cmp.Or(cfg.Marker, cfg.Queue+".life."+env.Group+"."+env.Pipeline)
	if env.KeepFarEnds == nil || cfg.QueueType == amqp.QueueTypeStream { // only looks, or has a witness
		cfg.MarkQueue = false
	}
	cfg.OffsetQueue = cmp.Or(cfg.OffsetQueue, cfg.Queue+".offset."+env.Group+"."+env.Pipeline)
	farEnds, err := relay.RecallFarEnds(env, cfg.OnRecreated)
	if err != nil {
		return nil, err
	}
	s := &source{cfg: cfg, env: env, progress: progress{log: env.Logger, farEnds: farEnds}}
	// This source must outlive a held offset, to know for how long it is held.
	if _, err := s.connect(ctx); err != nil && !errors.Is(err, errHeld) {
		return nil, err
	}
	return s, nil
}

// connect returns the session, a new one if the last has ended.
func (s *source) connect(ctx context.Context) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, relay.ErrClosed
	}
	if s.session != nil {
		if !s.session.ended() {
			return s.session, nil
		}
		_ = s.session.conn.close()
		s.session = nil
	}
	conn, err := s.cfg.dial(ctx, s.env, &s.url)
	if err != nil {
		return nil, err
	}
	stop := conn.dialer.CutAfter(ctx, 0)
	defer stop()
	n, err := newSession(ctx, conn, &s.cfg, &s.progress)
	if err != nil {
		_ = conn.close()
		return nil, classify(err)
	}
	s.session = n
	return n, nil
}

// Receive implements [relay.Source].
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		batch, err := s.receive(ctx, limit)
		if err != nil && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if len(batch) > 0 || err != nil {
			return batch, err
		}
	}
}

func (s *source) receive(ctx context.Context, limit int) ([]relay.Message, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.keepStart(ctx, s.cfg.Queue); err != nil {
		n.conn.dialer.Cut() // nothing was handed out: the next session begins again
		return nil, classify(err)
	}
	deliveries, err := n.take(ctx, limit)
	if err != nil {
		return nil, err
	}
	if err := n.keepFirst(ctx, &deliveries[0]); err != nil {
		n.conn.dialer.Cut()
		return nil, classify(err)
	}
	return s.translate(n, deliveries), nil
}

func (s *source) translate(n *session, deliveries []amqp.Delivery) []relay.Message {
	batch := make([]relay.Message, 0, len(deliveries))
	tokens := make([]token, len(deliveries))
	for i := range deliveries {
		d := &deliveries[i]
		m := s.message(d, n.scope())
		tokens[i] = token{session: n, tag: d.DeliveryTag, refused: m.Err != nil, message: d}
		if m.Err != nil && s.cfg.OnReject == "requeue" && s.cfg.QueueType != amqp.QueueTypeStream && !d.Redelivered {
			// Perhaps another consumer accepts it. If it comes back, it is a dead letter.
			s.env.Logger.Warn("refused message requeued", "queue", s.cfg.Queue, "id", m.ID, "err", m.Err)
			n.putBack(d.DeliveryTag)
			continue
		}
		m.Token = &tokens[i]
		batch = append(batch, m)
	}
	return batch
}

// message translates a delivery. scope is that of its stream, for an id of its offset.
func (s *source) message(d *amqp.Delivery, scope string) relay.Message {
	m := relay.Message{
		Op:          relay.OpEvent,
		Body:        d.Body,
		ContentType: d.ContentType,
		Time:        d.Timestamp,
		Origin:      "rabbitmq:" + s.cfg.Queue,
	}
	var deliveries int64
	global := !s.env.ScopeIDs
	for name, value := range d.Headers {
		global = global || relay.WroteRelay(name)
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
	switch m.ID = cmp.Or(d.MessageId, m.ID); {
	case m.ID == "":
		s.identify(&m, d, scope)
	case !global:
		m.AddWireHeader("message-id", m.ID) // for event_id_from
		m.ID = m.Origin + ":" + m.ID
		if streamOffset(d) >= 0 {
			s.identify(&m, d, scope)
		}
	}
	if limit := int64(s.cfg.MaxDeliveries); limit > 0 && deliveries >= limit {
		m.Err = fmt.Errorf("delivered %d times before, max_deliveries is %d", deliveries, limit)
	}
	return m
}

// identify gives m an id if its publisher has not.
func (s *source) identify(m *relay.Message, d *amqp.Delivery, scope string) {
	if offset := streamOffset(d); offset >= 0 {
		m.ID = "rabbitmq:" + s.cfg.Queue + scope + ":" + strconv.FormatInt(offset, 10)
		return
	}
	m.ID = "rabbitmq:" + s.cfg.Queue + ":sha256:" + relay.Hash(d.Body)
	if s.cfg.ID == "refuse" {
		m.Err = errors.New(`no message-id: have the publisher set one, or set rabbitmq_id to "hash"`)
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

// Ack implements [relay.Source]. Messages of an earlier session are delivered
// again, and known by their ids.
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	for len(batch) > 0 {
		n := batch[0].Token.(*token).session
		end := 1
		for end < len(batch) && batch[end].Token.(*token).session == n {
			end++
		}
		if err := n.settle(ctx, batch[:end], s.cfg.OnReject == "dead-letter"); err != nil && !n.ended() {
			return classify(fmt.Errorf("acknowledge %d messages of queue %q: %w", end, s.cfg.Queue, err))
		}
		batch = batch[end:]
	}
	return nil
}

// Lag implements [relay.Lagger] with the queue's ready messages. AMQP does not know
// their age; a publisher may have set it.
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

// Ping implements [relay.Pinger].
func (s *source) Ping(ctx context.Context) error {
	_, err := s.connect(ctx)
	return err
}

// Close implements [relay.Source].
func (s *source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.session == nil {
		return nil
	}
	err := s.session.conn.close()
	<-s.session.done
	s.session = nil
	return err
}

func offsetArg(offset string) any {
	if n, err := strconv.ParseInt(offset, 10, 64); err == nil {
		return n
	}
	return strings.TrimSpace(offset)
}
