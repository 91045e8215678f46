package rabbitmqrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// maxShortString bounds AMQP's short strings: routing keys, message ids, types,
	// content types and names of headers.
	maxShortString = 255
	// batchMessages and batchBytes are the preferred size of a Publish: enough that
	// the wait for the last confirm costs little.
	batchMessages = 5000
	batchBytes    = 8 << 20
	// limitHolds is how long the sink trusts the limit that the broker stated. The broker
	// answers to a larger message by closing the channel, so the sink seldom tries one.
	limitHolds = 10 * time.Second
	// maxKnownKeys bounds the memory of routing keys that have worked.
	maxKnownKeys = 10_000
	// cancelGrace is how long the broker may take to confirm what a cancelled call sent.
	cancelGrace = time.Second
)

// sink publishes to one exchange over one channel in confirm mode, up to
// MaxInFlight messages ahead of their confirms.
//
// Order: a message can be returned, or rejected, while later ones of its key are in
// flight. So the first message of a routing key on a connection is a probe. No other
// message of its key is sent until it is confirmed. With StrictOrder every message is a
// probe.
type sink struct {
	cfg sinkConfig
	env relay.Env

	conn     *conn // nil when not connected
	url      int   // the node that answered last
	channel  *amqp.Channel
	lost     <-chan *amqp.Error
	returns  <-chan amqp.Return
	routable map[string]bool  // routing keys that have worked on this connection
	maxBody  int              // learnt from the broker's refusal
	denied   map[string]error // routing keys, from the broker's refusals
	learnt   time.Time        // when

	// Reused by each Publish.
	encoder encoder
	flights []flight
	outcome relay.Outcome
}

// flight is a message that is published and not settled.
type flight struct {
	index   int
	routing string
	confirm *amqp.DeferredConfirmation
}

var (
	_ relay.Limiter = (*sink)(nil)
	_ relay.Router  = (*sink)(nil)
	_ relay.Pinger  = (*sink)(nil)
)

func newSink(ctx context.Context, env relay.Env, cfg sinkConfig) (*sink, error) {
	s := &sink{cfg: cfg, env: env, maxBody: math.MaxInt}
	s.encoder = encoder{cfg: &s.cfg, table: make(amqp.Table), known: make(map[string]string)}
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
	_ = s.disconnect()
	conn, err := s.cfg.dial(ctx, s.env, &s.url)
	if err != nil {
		return err
	}
	s.conn = conn
	stop := conn.dialer.CutAfter(ctx, cancelGrace)
	defer stop()
	if err := s.open(); err != nil {
		_ = s.disconnect()
		return classify(err)
	}
	return nil
}

func (s *sink) open() error {
	channel, err := s.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	declare := channel.ExchangeDeclarePassive
	if s.cfg.CreateIfMissing {
		declare = channel.ExchangeDeclare
	}
	if s.cfg.Exchange != "" {
		if err := declare(s.cfg.Exchange, s.cfg.ExchangeType, true, false, false, false, nil); err != nil {
			return fmt.Errorf("declare or check exchange %q: %w", s.cfg.Exchange, explainMissing(err))
		}
	}
	if err := channel.Confirm(false); err != nil {
		return fmt.Errorf("ask for confirms: %w", err)
	}
	s.channel = channel
	s.lost = channel.NotifyClose(make(chan *amqp.Error, 1))
	s.returns = channel.NotifyReturn(make(chan amqp.Return, s.cfg.MaxInFlight))
	s.routable = make(map[string]bool)
	return nil
}

func (s *sink) disconnect() error {
	if s.conn == nil {
		return nil
	}
	err := s.conn.close()
	s.conn, s.channel = nil, nil
	return err
}

// Publish implements [relay.Sink].
func (s *sink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	defer s.outcome.Reset(nil)
	if err := s.connect(ctx); err != nil {
		return err
	}
	if reason := s.conn.isBlocked(); reason != "" {
		return fmt.Errorf("the broker has blocked publishers: %s", reason)
	}
	stop := s.conn.dialer.CutAfter(ctx, cancelGrace)
	defer stop()

	if time.Since(s.learnt) > limitHolds {
		s.maxBody, s.denied = math.MaxInt, make(map[string]error)
	}
	p := &publishing{sink: s, batch: batch}
	if err := p.run(); err != nil {
		p.failRest(err)
		_ = s.disconnect() // later confirms would have no message to confirm
	}
	s.encoder.reset()
	clear(s.flights[:cap(s.flights)])
	return s.outcome.Err()
}

// publishing is one call of Publish.
type publishing struct {
	*sink
	batch []relay.Message
}

// run publishes the batch in rounds: the second has what waited for probes of the
// first, and so on. With an error the connection cannot be used any longer.
func (p *publishing) run() error {
	todo := make([]int, len(p.batch))
	for i := range todo {
		todo[i] = i
	}
	var err error
	for err == nil && len(todo) > 0 {
		todo, err = p.round(todo)
	}
	return err
}

// round sends messages and waits until all are settled. It returns those that it
// has left for the next round.
func (p *publishing) round(todo []int) (later []int, err error) {
	cork := p.conn.cork
	if err := cork.flush(true); err != nil {
		return nil, p.cause(err)
	}
	defer func() { err = errors.Join(err, cork.flush(false)) }()

	probing := make(map[string]bool) // keys
	p.flights = p.flights[:0]
	head := 0 // the oldest flight that is not settled
	for _, i := range todo {
		m := &p.batch[i]
		if m.Key != "" && probing[m.Key] {
			later = append(later, i)
			continue
		}
		if p.outcome.Held(i) {
			continue
		}
		routing, message, refusal := p.encoder.encode(m, p.maxBody, p.conn.Config.FrameSize)
		if refusal = cmp.Or(refusal, p.denied[routing]); refusal != nil {
			p.outcome.Fail(i, refusal)
			continue
		}
		if p.cfg.StrictOrder || (p.cfg.Mandatory && !p.routable[routing]) {
			probing[m.Key] = true
		}
		confirm, err := p.channel.PublishWithDeferredConfirm(p.cfg.Exchange, routing, p.cfg.Mandatory, false, message)
		if err != nil {
			return nil, p.cause(fmt.Errorf("publish %s: %w", m.ID, err))
		}
		p.flights = append(p.flights, flight{i, routing, confirm})
		if len(p.flights)-head >= p.cfg.MaxInFlight {
			// Half of the window: the broker confirms many at once.
			if head, err = p.settle(head, head+(p.cfg.MaxInFlight+1)/2); err != nil {
				return nil, err
			}
		}
	}
	_, err = p.settle(head, len(p.flights))
	return later, err
}

// settle waits until the flights up to end are confirmed, rejected or returned.
// With an error the connection is lost.
func (p *publishing) settle(head, end int) (int, error) {
	if err := p.conn.cork.flush(true); err != nil {
		return head, p.cause(err)
	}
	for ; head < end; head++ {
		f := &p.flights[head]
		if err := p.await(f); err != nil {
			return head, err
		}
		p.takeReturns() // a return comes before the confirm of its message
		switch {
		case p.outcome.Failed(f.index):
		case f.confirm.Acked():
			p.outcome.Confirm(f.index)
			if !p.routable[f.routing] {
				if len(p.routable) >= maxKnownKeys {
					clear(p.routable)
				}
				p.routable[f.routing] = true
			}
		case p.channel.IsClosed():
			return head, p.cause(amqp.ErrClosed)
		default:
			p.outcome.Fail(f.index, refusals.Classify(fmt.Errorf("the broker rejected %s (basic.nack)", p.batch[f.index].ID), rejected, p.ofRow()))
		}
	}
	return head, nil
}

// await waits until f is settled, while the broker is alive.
func (p *publishing) await(f *flight) error {
	select {
	case <-f.confirm.Done():
		return nil
	default:
	}
	timer := time.NewTimer(p.cfg.ConfirmTimeout.D())
	defer timer.Stop()
	for {
		select {
		case <-f.confirm.Done():
			return nil
		case r, ok := <-p.returns:
			p.returned(r, ok)
		case <-timer.C:
			if p.conn.isBlocked() == "" {
				return fmt.Errorf("the broker has confirmed nothing for %s", p.cfg.ConfirmTimeout)
			}
			timer.Reset(p.cfg.ConfirmTimeout.D())
		}
	}
}

func (p *publishing) takeReturns() {
	for len(p.returns) > 0 {
		r, ok := <-p.returns
		p.returned(r, ok)
	}
}

// returned fails the flights that r can mean.
func (p *publishing) returned(r amqp.Return, ok bool) {
	if !ok {
		p.returns = nil // the channel is closed
		return
	}
	delete(p.routable, r.RoutingKey)
	for _, f := range p.flights {
		if m := &p.batch[f.index]; m.ID == r.MessageId && f.routing == r.RoutingKey {
			err := fmt.Errorf("no queue gets %s from exchange %q with routing key %q: %s; "+
				"bind a queue with it, or correct rabbitmq_routing_key", m.ID, r.Exchange, r.RoutingKey, r.ReplyText)
			p.outcome.Fail(f.index, refusals.Classify(err, unroutable, p.ofRow()))
		}
	}
}

// ofRow reports whether messages can differ in their routing key.
// Then the refusal of one key is about the messages with it.
func (s *sink) ofRow() bool { return !s.cfg.RoutingKey.Fixed() }

// cause returns why the channel is closed, if the broker has reported it. From a
// message that was too large for the broker the sink learns its limit. From one that the
// user may not publish it learns the routing key.
func (p *publishing) cause(err error) error {
	if p.channel.IsClosed() {
		if reply := <-p.lost; reply != nil {
			err = fmt.Errorf("publish to exchange %q: %w", p.cfg.Exchange, reply)
		}
	}
	if limit := tooLarge(err); limit > 0 {
		p.maxBody, p.learnt = limit, time.Now()
	}
	if key, ok := deniedKey(err); ok && p.ofRow() {
		p.denied[key], p.learnt = classifyFor(err, true), time.Now()
		return fmt.Errorf("channel closed for another message: %w", err)
	}
	return classify(err)
}

// failRest fails what is not confirmed with err, but a message that is too large
// for the broker as permanent.
func (p *publishing) failRest(err error) {
	p.takeReturns()
	for _, f := range p.flights {
		switch refusal := p.denied[f.routing]; {
		case f.confirm.Acked():
			p.outcome.Confirm(f.index)
		case refusal != nil && !p.outcome.Failed(f.index):
			p.outcome.Fail(f.index, refusal)
		}
	}
	for i := range p.batch {
		if !p.outcome.Confirmed(i) && !p.outcome.Failed(i) && len(p.batch[i].Body) > p.maxBody {
			p.outcome.Fail(i, errTooLarge(&p.batch[i], p.maxBody))
		}
	}
	p.outcome.FailRest(err)
}

// Limits implements [relay.Limiter].
func (s *sink) Limits() (messages, bytes int) { return batchMessages, batchBytes }

// Destination implements [relay.Router].
func (s *sink) Destination(m *relay.Message) (string, error) {
	key, err := s.cfg.RoutingKey.Render(m)
	if s.cfg.Exchange == "" {
		return key, err
	}
	return s.cfg.Exchange + "/" + key, err
}

// Ping implements [relay.Pinger].
func (s *sink) Ping(ctx context.Context) error { return s.connect(ctx) }

// Close implements [relay.Sink].
func (s *sink) Close() error {
	s.outcome.Close()
	return s.disconnect()
}
