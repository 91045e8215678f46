package rabbitmqrelay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// shortString is the longest that AMQP's short strings may be: routing keys,
	// message ids, types, content types and names of headers.
	shortString = 255
	// batchMessages and batchBytes are what a Publish would like to have: enough
	// that the wait for the last confirm weighs little.
	batchMessages = 5000
	batchBytes    = 8 << 20
	// knownKeys bounds the memory of routing keys that have worked.
	knownKeys = 10_000
	// cancelGrace is what a cancelled Publish leaves the broker to confirm.
	cancelGrace = time.Second
)

// sink publishes to one exchange over one channel in confirm mode, up to
// MaxInFlight messages ahead of their confirms.
//
// Order: a message can be returned, or rejected, while later ones of its key are
// on their way. So the first message of a routing key that has not worked on
// this connection yet is a probe: until it is confirmed, no other message of its
// key is sent. With StrictOrder every message is a probe.
type sink struct {
	cfg sinkConfig
	env relay.Env

	link     *link // nil when not connected
	url      int   // of cfg.urls() that worked last
	channel  *amqp.Channel
	closed   <-chan *amqp.Error
	returns  <-chan amqp.Return
	routable map[string]bool // routing keys that have worked on this connection
	maxBody  int             // learnt from the broker's refusal
	finished bool

	headers   []relay.Header // reused, as is what follows
	table     amqp.Table
	inFlight  []flight
	confirmed []bool // by index in the batch
	key       []byte
	routing   map[string]string // routing keys, so that each is allocated once
}

// flight is a message that is published and not settled.
type flight struct {
	index   int
	routing string
	confirm *amqp.DeferredConfirmation
}

func openSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{cfg: cfg, env: env, maxBody: math.MaxInt, table: make(amqp.Table), routing: make(map[string]string)}
	if err := s.connect(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// connect makes sure that there is an open channel and that the exchange exists.
func (s *sink) connect(ctx context.Context) error {
	if s.channel != nil && !s.channel.IsClosed() {
		return nil
	}
	s.disconnect()
	link, err := dial(ctx, s.env, &s.cfg.connConfig, &s.url)
	if err != nil {
		return err
	}
	s.link = link
	stop := s.breakOff(ctx)
	defer stop()
	if err := s.open(); err != nil {
		s.disconnect()
		return classify(err)
	}
	return nil
}

func (s *sink) open() error {
	channel, err := s.link.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	switch {
	case s.cfg.Exchange == "":
	case s.cfg.DeclareExchange:
		if err := channel.ExchangeDeclare(s.cfg.Exchange, s.cfg.ExchangeType, true, false, false, false, nil); err != nil {
			return fmt.Errorf("declare exchange %q: %w", s.cfg.Exchange, err)
		}
	default:
		if err := channel.ExchangeDeclarePassive(s.cfg.Exchange, s.cfg.ExchangeType, true, false, false, false, nil); err != nil {
			return fmt.Errorf("check exchange %q: %w", s.cfg.Exchange, err)
		}
	}
	if err := channel.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", err)
	}
	s.channel = channel
	s.closed = channel.NotifyClose(make(chan *amqp.Error, 1))
	s.returns = channel.NotifyReturn(make(chan amqp.Return, s.cfg.MaxInFlight))
	s.routable = make(map[string]bool)
	return nil
}

func (s *sink) disconnect() {
	if s.link != nil {
		_ = s.link.hangUp()
		s.link, s.channel = nil, nil
	}
}

// breakOff cuts the connection when ctx has ended and the grace is over.
func (s *sink) breakOff(ctx context.Context) (stop func()) {
	wire, done := s.link.wire, make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(cancelGrace)
		defer timer.Stop()
		select {
		case <-done:
		case <-timer.C:
			_ = wire.Close()
		}
	})
	return func() {
		cancel()
		close(done)
	}
}

// Publish implements relay.Sink.
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.finished {
		return errors.New("the sink is closed")
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	if reason := s.link.isBlocked(); reason != "" {
		return fmt.Errorf("the broker has blocked publishers: %s", reason)
	}
	stop := s.breakOff(ctx)
	defer stop()
	s.confirmed = slices.Grow(s.confirmed[:0], len(batch))[:len(batch)]
	clear(s.confirmed)
	b := &publishing{sink: s, batch: batch, held: make(map[string]bool)}
	if err := b.run(); err != nil {
		s.disconnect() // whatever is still on its way is nobody's business any more
		b.failRest(err)
	}
	if len(b.failed.Failed) > 0 {
		b.failed.HoldBack(batch)
	}
	clear(s.table)
	clear(s.headers)
	clear(s.inFlight[:cap(s.inFlight)])
	return b.failed.Err()
}

// publishing is one call of Publish.
type publishing struct {
	*sink
	batch  []relay.Message
	failed relay.BatchError
	held   map[string]bool // keys with a failed message
}

// run publishes the batch in rounds: the second has what waited for probes of
// the first. Its error means that the connection is of no more use.
func (b *publishing) run() error {
	later, err := b.round(len(b.batch), func(i int) int { return i })
	for err == nil && len(later) > 0 {
		now := later
		later, err = b.round(len(now), func(i int) int { return now[i] })
	}
	return err
}

// round sends n messages and waits until all are settled. It returns those that
// it has left for the next round.
func (b *publishing) round(n int, at func(int) int) (later []int, err error) {
	b.link.wire.cork()
	defer func() {
		if b.link != nil {
			err = errors.Join(err, b.link.wire.send(false))
		}
	}()
	probing := make(map[string]bool)
	b.inFlight = b.inFlight[:0]
	head := 0 // of inFlight, the oldest that is not settled
	for k := range n {
		i := at(k)
		m := &b.batch[i]
		if m.Key != "" && len(probing) > 0 && probing[m.Key] {
			later = append(later, i)
			continue
		}
		routing, refusal := b.prepare(m)
		if refusal != nil {
			b.fail(i, refusal)
			continue
		}
		if m.Key != "" && (b.cfg.StrictOrder || (b.cfg.Mandatory && !b.routable[routing])) {
			probing[m.Key] = true
		}
		confirm, err := b.channel.PublishWithDeferredConfirm(b.cfg.Exchange, routing, b.cfg.Mandatory, false, b.message(m))
		if err != nil {
			return nil, b.cause(fmt.Errorf("publish %s: %w", m.ID, err))
		}
		b.inFlight = append(b.inFlight, flight{i, routing, confirm})
		if len(b.inFlight)-head >= b.cfg.MaxInFlight {
			// Half of the window: the broker confirms many at once.
			if head, err = b.settle(head, head+(b.cfg.MaxInFlight+1)/2); err != nil {
				return nil, err
			}
		}
	}
	_, err = b.settle(head, len(b.inFlight))
	return later, err
}

// prepare returns the routing key of m, or why m cannot be sent.
func (b *publishing) prepare(m *relay.Message) (routing string, err error) {
	if m.Key != "" && len(b.held) > 0 && b.held[m.Key] {
		return "", relay.ErrHeldBack
	}
	if b.key, err = b.cfg.RoutingKey.Append(b.key[:0], m); err != nil {
		return "", err
	}
	routing, ok := b.routing[string(b.key)]
	if !ok {
		if len(b.routing) >= knownKeys {
			clear(b.routing)
		}
		routing = string(b.key)
		b.routing[routing] = routing
	}
	switch {
	case len(m.Body) > b.maxBody:
		return "", relay.Permanent(fmt.Errorf("body of %s has %d bytes, the broker's max_message_size is %d", m.ID, len(m.Body), b.maxBody))
	case len(routing) > shortString:
		return "", relay.Permanent(fmt.Errorf("routing key of %s has %d bytes, AMQP allows %d", m.ID, len(routing), shortString))
	case len(m.ID) > shortString || len(m.Op) > shortString || len(m.ContentType) > shortString:
		return "", relay.Permanent(fmt.Errorf("id, op or content type of %.300s is longer than the %d bytes that AMQP allows", m.ID, shortString))
	}
	b.headers = m.WireHeaders(b.headers[:0])
	b.headers = slices.DeleteFunc(b.headers, isContentType) // a property of its own
	if m.Subject != "" {
		b.headers = append(b.headers, relay.Header{Name: relay.HeaderSubject, Value: m.Subject})
	}
	size := 0
	for _, h := range b.headers {
		if len(h.Name) > shortString {
			return "", relay.Permanent(fmt.Errorf("a header's name in %s has %d bytes, AMQP allows %d", m.ID, len(h.Name), shortString))
		}
		size += len(h.Name) + len(h.Value) + 8
	}
	if frame := b.link.Config.FrameSize; frame > 0 && size > frame-2048 {
		return "", relay.Permanent(fmt.Errorf("headers of %s have %d bytes, the broker's frame_max is %d", m.ID, size, frame))
	}
	return routing, nil
}

func isContentType(h relay.Header) bool { return h.Name == relay.HeaderContentType }

// message makes the AMQP message. The table is the sink's own and is changed
// only where it differs from the message before: the client has written it out
// when it returns, and a string in an interface costs an allocation.
func (b *publishing) message(m *relay.Message) amqp.Publishing {
	for _, h := range b.headers {
		if old, ok := b.table[h.Name].(string); !ok || old != h.Value {
			b.table[h.Name] = h.Value
		}
	}
	if len(b.table) != len(b.headers) { // the message before had others
		clear(b.table)
		for _, h := range b.headers {
			b.table[h.Name] = h.Value
		}
	}
	p := amqp.Publishing{
		Headers: b.table, ContentType: m.ContentType, MessageId: m.ID, Type: m.Op, Timestamp: m.Time, Body: m.Body,
		DeliveryMode: amqp.Transient,
	}
	if b.cfg.Persistent {
		p.DeliveryMode = amqp.Persistent
	}
	return p
}

// settle waits until the messages in flight up to end are confirmed, rejected or
// returned. Its error means that the connection is lost.
func (b *publishing) settle(head, end int) (int, error) {
	if err := b.link.wire.send(true); err != nil {
		return head, b.cause(err)
	}
	for ; head < end; head++ {
		f := &b.inFlight[head]
		if err := b.await(f); err != nil {
			return head, err
		}
		b.takeReturns() // a return comes before the confirm of its message
		switch {
		case f.confirm.Acked():
			if b.failed.Failed[f.index] == nil {
				b.confirmed[f.index] = true
				b.works(f.routing)
			}
		case b.channel.IsClosed():
			return head, b.cause(amqp.ErrClosed)
		default:
			b.fail(f.index, fmt.Errorf("the broker rejected %s (basic.nack)", b.batch[f.index].ID))
		}
	}
	return head, nil
}

func (b *publishing) works(routing string) {
	if b.routable[routing] {
		return
	}
	if len(b.routable) >= knownKeys {
		clear(b.routable)
	}
	b.routable[routing] = true
}

// await waits for f to be settled, for as long as the broker is alive.
func (b *publishing) await(f *flight) error {
	select {
	case <-f.confirm.Done():
		return nil
	default:
	}
	timer := time.NewTimer(b.cfg.ConfirmTimeout.D())
	defer timer.Stop()
	for {
		select {
		case <-f.confirm.Done():
			return nil
		case r, ok := <-b.returns:
			if ok {
				b.returned(&r)
			} else {
				b.returns = nil
			}
		case <-timer.C:
			if b.link.isBlocked() == "" {
				return fmt.Errorf("the broker has confirmed nothing for %s", b.cfg.ConfirmTimeout)
			}
			timer.Reset(b.cfg.ConfirmTimeout.D())
		}
	}
}

func (b *publishing) takeReturns() {
	for {
		select {
		case r, ok := <-b.returns:
			if !ok {
				b.returns = nil
				return
			}
			b.returned(&r)
		default:
			return
		}
	}
}

// returned fails the messages in flight that r can mean.
func (b *publishing) returned(r *amqp.Return) {
	delete(b.routable, r.RoutingKey)
	for _, f := range b.inFlight {
		if m := &b.batch[f.index]; m.ID == r.MessageId && f.routing == r.RoutingKey {
			b.fail(f.index, relay.Permanent(fmt.Errorf("no queue gets %s from exchange %q with routing key %q: %s", m.ID, r.Exchange, r.RoutingKey, r.ReplyText)))
		}
	}
}

func (b *publishing) fail(i int, err error) {
	b.failed.Fail(i, err)
	if key := b.batch[i].Key; key != "" {
		b.held[key] = true
	}
}

// cause returns why the channel is closed, where the broker has said so. From a
// message that was too large for the broker the sink learns its limit.
func (b *publishing) cause(err error) error {
	if b.channel.IsClosed() {
		if reply := <-b.closed; reply != nil {
			err = fmt.Errorf("publish to exchange %q: %w", b.cfg.Exchange, reply)
		}
	}
	if limit := tooLarge(err); limit > 0 {
		b.maxBody = limit
	}
	return classify(err)
}

// failRest fails what is not confirmed with err, but a message that the broker
// found too large as permanent.
func (b *publishing) failRest(err error) {
	b.takeReturns()
	for _, f := range b.inFlight {
		b.confirmed[f.index] = b.confirmed[f.index] || f.confirm.Acked()
	}
	for i := range b.batch {
		if b.failed.Failed[i] != nil || b.confirmed[i] {
			continue
		}
		if n := len(b.batch[i].Body); n > b.maxBody {
			b.failed.Fail(i, relay.Permanent(fmt.Errorf("body of %s has %d bytes, the broker's max_message_size is %d", b.batch[i].ID, n, b.maxBody)))
		} else {
			b.failed.Fail(i, err)
		}
	}
}

// Limits implements relay.Limiter.
func (s *sink) Limits() (messages, bytes int) { return batchMessages, batchBytes }

// Destination implements relay.Router.
func (s *sink) Destination(m *relay.Message) (string, error) {
	key, err := s.cfg.RoutingKey.Render(m)
	if s.cfg.Exchange == "" {
		return key, err
	}
	return s.cfg.Exchange + "/" + key, err
}

// Ping implements relay.Pinger.
func (s *sink) Ping(ctx context.Context) error { return s.connect(ctx) }

// Close implements relay.Sink.
func (s *sink) Close() error {
	s.finished = true
	if s.link == nil {
		return nil
	}
	err := s.link.hangUp()
	s.link, s.channel = nil, nil
	return err
}
