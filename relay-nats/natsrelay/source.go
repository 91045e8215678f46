package natsrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

var errSourceClosed = errors.New("the source is closed")

// source reads a durable pull consumer. Its order must survive a crash, but a
// consumer delivers what was not acknowledged only after ack_wait, and new
// messages before that. So whoever opens the consumer resets it first: delivery
// begins again right behind the last acknowledgement.
type source struct {
	cfg sourceConfig
	env relay.Env

	mu      sync.Mutex // guards what follows: Receive and Ack overlap
	closed  bool
	link    *link
	pull    *pull
	created time.Time       // of the stream
	floor   uint64          // everything up to it is acknowledged, as far as known
	settled map[uint64]bool // acknowledged here, on a connection that was lost first
}

func newSource(ctx context.Context, env relay.Env, raw json.RawMessage) (*source, error) {
	s := &source{cfg: sourceDefaults(), env: env, settled: make(map[uint64]bool)}
	if err := relaycfg.Decode(raw, &s.cfg); err != nil {
		return nil, err
	}
	if s.cfg.Consumer == "" {
		s.cfg.Consumer = "pgtrickle-relay-" + consumerName(env.Pipeline)
	}
	if _, err := s.connect(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// consumerName replaces what a consumer's name must not hold.
func consumerName(pipeline string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" .*>/\\\t\r\n", r) {
			return '_'
		}
		return r
	}, pipeline)
}

func (s *source) connect(ctx context.Context) (*pull, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errSourceClosed
	}
	if s.pull != nil && s.link.alive() && s.pull.failure() == nil {
		return s.pull, nil
	}
	s.disconnect()
	l, err := dial(ctx, &s.cfg.serverConfig, "pgtrickle-relay "+s.env.Pipeline)
	if err != nil {
		return nil, err
	}
	s.link = l
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	s.pull, err = s.openConsumer(ctx)
	if err != nil {
		s.disconnect()
		return nil, err
	}
	return s.pull, nil
}

// disconnect is called with the lock held.
func (s *source) disconnect() {
	if s.pull != nil {
		s.pull.stop()
		s.floor = max(s.floor, s.pull.floor())
	}
	if s.link != nil {
		s.link.close()
	}
	s.pull, s.link = nil, nil
}

func (s *source) openConsumer(ctx context.Context) (*pull, error) {
	var create *jetstream.StreamConfig
	if s.cfg.CreateStream {
		create = &jetstream.StreamConfig{Name: s.cfg.Stream, Subjects: s.cfg.Subject, Replicas: s.cfg.Replicas, Storage: jetstream.FileStorage}
	}
	subject := ""
	if len(s.cfg.Subject) > 0 {
		subject = s.cfg.Subject[0]
	}
	stream, err := openStream(ctx, s.link, s.cfg.Stream, subject, create)
	if err != nil {
		return nil, err
	}
	info := stream.CachedInfo()
	if s.created.IsZero() {
		s.created = info.Created
	}
	if !s.created.Equal(info.Created) {
		return nil, relay.Fatal(fmt.Errorf("stream %q was deleted and made anew: its sequence numbers begin again, and messages without a Nats-Msg-Id would be taken for those of the old stream; "+
			"restart the pipeline when the inbox may hold both", info.Config.Name))
	}
	consumer, err := s.findConsumer(ctx, stream)
	if err != nil {
		return nil, err
	}
	ci := consumer.CachedInfo()
	if err := s.checkConsumer(ci); err != nil {
		return nil, err
	}
	var begin time.Time
	if ci.NumAckPending > 0 {
		if begin, err = s.rewind(ctx, ci); err != nil {
			return nil, err
		}
	}
	s.floor = max(s.floor, ci.AckFloor.Stream)
	return newPull(s.link, ci, s.floor, begin)
}

// findConsumer returns the consumer, and creates it when there is none.
func (s *source) findConsumer(ctx context.Context, stream jetstream.Stream) (jetstream.Consumer, error) {
	name := stream.CachedInfo().Config.Name
	consumer, err := stream.Consumer(ctx, s.cfg.Consumer)
	if err == nil {
		return consumer, nil
	}
	if !errors.Is(err, jetstream.ErrConsumerNotFound) && !errors.Is(err, jetstream.ErrConsumerDoesNotExist) {
		return nil, s.link.apiError(ctx, fmt.Errorf("look up consumer %q of stream %q: %w", s.cfg.Consumer, name, err))
	}
	cc := jetstream.ConsumerConfig{
		Durable: s.cfg.Consumer, Description: "pgtrickle-relay pipeline " + s.env.Pipeline,
		DeliverPolicy: s.cfg.policy(), AckPolicy: s.cfg.ackPolicy(), AckWait: s.cfg.AckWait.D(),
		MaxDeliver: s.cfg.MaxDeliver, MaxAckPending: s.cfg.MaxAckPending, FilterSubjects: s.cfg.Subject,
	}
	if len(s.cfg.Subject) == 1 {
		cc.FilterSubject, cc.FilterSubjects = s.cfg.Subject[0], nil
	}
	if !s.cfg.StartTime.IsZero() {
		cc.OptStartTime = &s.cfg.StartTime.Time
	}
	if s.floor > 0 { // somebody deleted it under our hands
		cc.DeliverPolicy, cc.OptStartSeq, cc.OptStartTime = jetstream.DeliverByStartSequencePolicy, s.floor+1, nil
		s.env.Logger.Warn("consumer is gone; creating it again", "consumer", s.cfg.Consumer, "stream", name, "start_sequence", s.floor+1)
	}
	if consumer, err = stream.CreateConsumer(ctx, cc); err != nil {
		return nil, s.link.apiError(ctx, fmt.Errorf("create consumer %q of stream %q: %w", s.cfg.Consumer, name, err))
	}
	return consumer, nil
}

func (s *source) checkConsumer(ci *jetstream.ConsumerInfo) error {
	cc := ci.Config
	filters := cc.FilterSubjects
	if cc.FilterSubject != "" {
		filters = []string{cc.FilterSubject}
	}
	wrong := func(problem string) error {
		return relay.Fatal(fmt.Errorf("consumer %q of stream %q %s; use another consumer, or change or delete this one", ci.Name, ci.Stream, problem))
	}
	switch {
	case cc.DeliverSubject != "":
		return wrong("is a push consumer; a pull consumer is needed")
	case cc.AckPolicy != jetstream.AckExplicitPolicy && cc.AckPolicy != jetstream.AckAllPolicy:
		return wrong(fmt.Sprintf("has ack policy %s; explicit or all is needed", cc.AckPolicy))
	case len(s.cfg.Subject) > 0 && strings.Join(filters, ",") != strings.Join(s.cfg.Subject, ","):
		return wrong(fmt.Sprintf("is for subjects %q, the pipeline for %q", strings.Join(filters, ", "), strings.Join(s.cfg.Subject, ", ")))
	}
	return nil
}

// rewind makes the consumer deliver what its last reader left, in order and
// before anything else, from begin on.
func (s *source) rewind(ctx context.Context, ci *jetstream.ConsumerInfo) (begin time.Time, err error) {
	asking, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err = s.link.js.ResetConsumer(asking, ci.Stream, ci.Name); err == nil {
		return time.Time{}, nil
	}
	if ctx.Err() != nil {
		return time.Time{}, ctx.Err()
	}
	var apiErr *jetstream.APIError
	unanswered := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout)
	if !unanswered && !errors.Is(err, nats.ErrNoResponders) && !errors.Is(err, jetstream.ErrJetStreamNotEnabled) && !errors.As(err, &apiErr) {
		return time.Time{}, s.link.apiError(ctx, fmt.Errorf("reset consumer %q of stream %q: %w", ci.Name, ci.Stream, err))
	}
	// The server is too old to reset a consumer (before 2.14), and may say so by not
	// answering. It hands out what is overdue before what is new, so the first
	// request has to wait until all of it is overdue. That can take longer than a
	// source may take to open.
	s.env.Logger.Info("waiting for unacknowledged messages to become due", "consumer", ci.Name, "messages", ci.NumAckPending, "wait", ci.Config.AckWait)
	return time.Now().Add(ci.Config.AckWait), nil
}

// Receive implements [relay.Source].
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		p, err := s.connect(ctx)
		if err != nil {
			return nil, err
		}
		raw, err := p.receive(ctx, limit)
		if err != nil {
			return nil, err
		}
		batch, n := make([]relay.Message, len(raw)), 0
		for _, m := range raw {
			if s.settledBefore(p, m) {
				continue
			}
			p.translate(m, &batch[n])
			n++
		}
		if n > 0 {
			return batch[:n], nil
		}
	}
}

// settledBefore acknowledges a message that was settled after the connection on
// which it first came had gone.
func (s *source) settledBefore(p *pull, m *delivery) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.settled[m.seq] {
		return false
	}
	delete(s.settled, m.seq)
	if p.ackAll {
		p.settle(m) // the next acknowledgement stands for this one too
		return true
	}
	p.ack(m)
	return true
}

// Ack implements [relay.Source].
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	s.mu.Lock()
	p := s.pull
	var last *delivery
	for i := range batch {
		m := batch[i].Token.(*delivery)
		if p == nil || m.pull != p {
			// The server has forgotten that it delivered this one, and will again.
			if m.seq > s.floor {
				s.settled[m.seq] = true
			}
			continue
		}
		if p.ackAll {
			p.settle(m)
			continue
		}
		if last != nil {
			p.ack(last)
		}
		last = m
	}
	s.mu.Unlock()
	if p != nil && p.ackAll {
		last = p.dueAck()
	}
	if last == nil {
		return nil
	}
	// The server takes acknowledgements in order: its answer to the last one
	// stands for all.
	return p.ackSync(ctx, last)
}

// Close implements [relay.Source].
func (s *source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if s.pull != nil {
		s.pull.giveBack()
	}
	s.disconnect()
	return nil
}

// Ping implements [relay.Pinger].
func (s *source) Ping(ctx context.Context) error {
	if _, err := s.connect(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	l := s.link
	s.mu.Unlock()
	if l == nil {
		return errSourceClosed
	}
	return l.nc.FlushWithContext(ctx)
}

// Lag implements [relay.Lagger]: the messages that the server has not yet
// delivered, and the age of the last one received while there are such.
func (s *source) Lag(ctx context.Context) (rows int64, seconds float64, err error) {
	p, err := s.connect(ctx)
	if err != nil {
		return 0, 0, err
	}
	return p.lag(ctx)
}

// Guarantee implements [relay.Guarantor].
func (s *source) Guarantee() relay.Guarantee {
	g := Backend().SourceGuarantee
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pull != nil && s.pull.info.Config.MaxDeliver > 0 {
		g.Delivery = "at least once, until max_deliver"
		g.Weakest = fmt.Sprintf("consumer %q gives a message up after %d deliveries", s.pull.info.Name, s.pull.info.Config.MaxDeliver)
	}
	return g
}
