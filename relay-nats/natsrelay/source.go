package natsrelay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// source reads a durable pull consumer. A consumer redelivers what was not
// acknowledged only after ack_wait, and delivers newer messages before. To keep the
// order after a crash, each connection resets the consumer first: delivery begins
// again after the last acknowledgement.
type source struct {
	cfg sourceConfig
	env relay.Env

	mu      sync.Mutex // Receive and Ack overlap
	closed  bool
	conn    *conn
	pull    *pull
	farEnds *relay.FarEnds
	scope   string          // of the stream's present life, in ids
	floor   uint64          // nothing up to it is missing: see relay.FarEnd.Floor
	placed  bool            // floor is known for this life
	settled map[uint64]bool // sequences acknowledged here after their connection was lost
}

func newSource(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
	farEnds, err := relay.RecallFarEnds(env, cfg.OnRecreated)
	if err != nil {
		return nil, err
	}
	s := &source{cfg: cfg, env: env, farEnds: farEnds, settled: make(map[uint64]bool)}
	s.cfg.Consumer = cmp.Or(s.cfg.Consumer, "pgtrickle-relay-"+notInConsumer.ReplaceAllString(env.Pipeline, "_"))
	if _, err := s.connect(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (s *source) connect(ctx context.Context) (*pull, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, relay.ErrClosed
	}
	if s.pull != nil && s.conn.alive() && !s.pull.ended() {
		return s.pull, nil
	}

	s.disconnect()
	var err error
	if s.conn, err = dial(ctx, s.env, &s.cfg.connConfig, ""); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	if s.pull, err = s.openConsumer(ctx); err != nil {
		s.disconnect()
		return nil, err
	}
	return s.pull, nil
}

// disconnect is called with the lock held.
func (s *source) disconnect() {
	if s.pull != nil {
		s.pull.stop()
		s.floor = max(s.floor, s.pull.floor(0))
	}
	if s.conn != nil {
		s.conn.close()
	}
	s.pull, s.conn = nil, nil
}

func (s *source) openConsumer(ctx context.Context) (*pull, error) {
	var create *jetstream.StreamConfig
	if s.cfg.CreateStream {
		create = &jetstream.StreamConfig{Subjects: s.cfg.Subject, Replicas: s.cfg.Replicas}
	}
	subject := ""
	if len(s.cfg.Subject) > 0 {
		subject = s.cfg.Subject[0]
	}
	stream, err := s.conn.stream(ctx, s.cfg.Stream, subject, create)
	if err != nil {
		return nil, err
	}
	consumer, err := s.meet(ctx, stream)
	if err != nil {
		return nil, err
	}
	ci := consumer.CachedInfo()
	if err := s.checkConsumer(ci); err != nil {
		return nil, err
	}
	var wait time.Duration
	count := ci.Delivered.Consumer
	if ci.NumAckPending > 0 {
		if wait, err = s.rewind(ctx, ci); err != nil {
			return nil, err
		}
		if count, err = s.delivered(ctx, consumer, wait); err != nil {
			return nil, err
		}
	}
	if err := s.place(ctx, ci, stream.CachedInfo().Config.Retention); err != nil {
		return nil, err
	}
	maps.DeleteFunc(s.settled, func(seq uint64, _ bool) bool { return seq <= ci.AckFloor.Stream }) // they will not arrive
	p := s.newPull(consumer, wait, count)
	p.read, p.behind = s.floor, ci.AckFloor.Stream
	return p, nil
}

// place finds the floor of this life when the source begins. A server that removes messages
// moves its own floor past them, also past unacknowledged ones. So the server's floor counts
// at the pipeline's first start, and the one in the cursor after that. A stream that removes
// what is acknowledged may have removed more than the cursor knows to be so.
func (s *source) place(ctx context.Context, ci *jetstream.ConsumerInfo, retention jetstream.RetentionPolicy) error {
	if s.placed {
		return nil
	}
	floor, known := s.farEnds.Floor(ci.Stream)
	if !known || retention != jetstream.LimitsPolicy {
		floor = max(floor, ci.AckFloor.Stream)
		if ci.NumAckPending == 0 { // with NATS 2.10 a new consumer has floor 0, wherever it begins
			floor = max(floor, ci.Delivered.Stream)
		}
	}
	if err := s.farEnds.Settled(ctx, ci.Stream, floor); err != nil {
		return err
	}
	s.floor, s.placed = floor, true
	return nil
}

// meet returns the consumer, if the stream is the one to which the consumer's position
// and the source's own memory belong.
func (s *source) meet(ctx context.Context, stream jetstream.Stream) (jetstream.Consumer, error) {
	info := stream.CachedInfo()
	name := info.Config.Name
	life, err := s.farEnds.Meet(ctx, "stream", name, incarnation(info))
	if err != nil {
		return nil, err
	}
	consumer, err := s.findConsumer(ctx, stream, life)
	if err != nil {
		return nil, err
	}
	stored, _ := s.farEnds.Floor(name)
	if floor := max(s.floor, stored, consumer.CachedInfo().AckFloor.Stream); floor > info.State.LastSeq && !life.Pending {
		if info, err = stream.Info(ctx); err != nil {
			return nil, s.conn.apiError(ctx, fmt.Errorf("look up stream %q: %w", name, err))
		}
		if floor > info.State.LastSeq {
			if life, err = s.farEnds.Lost(ctx, "stream", name, relay.EndsBefore(info.State.LastSeq, floor)); err != nil {
				return nil, err
			}
			if consumer, err = s.findConsumer(ctx, stream, life); err != nil {
				return nil, err
			}
		}
	}
	return consumer, s.farEnds.Began(ctx, name)
}

// incarnation returns the time when a stream was created.
func incarnation(info *jetstream.StreamInfo) relay.Incarnation {
	return relay.Incarnation(info.Created.UTC().Format("20060102T150405.999999999Z"))
}

// findConsumer returns the consumer, and creates it when there is none. One that was
// deleted while the source ran goes on where it was. In a life that is pending the
// consumer begins with the first message.
func (s *source) findConsumer(ctx context.Context, stream jetstream.Stream, life relay.FarEnd) (jetstream.Consumer, error) {
	name := stream.CachedInfo().Config.Name
	if scope := life.Scope(); scope != s.scope {
		s.scope, s.floor, s.placed = scope, 0, false
		clear(s.settled)
	}
	if life.Pending && life.Restarts > 0 {
		if err := stream.DeleteConsumer(ctx, s.cfg.Consumer); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return nil, s.conn.apiError(ctx, fmt.Errorf("delete consumer %q of stream %q: %w", s.cfg.Consumer, name, err))
		}
	}
	consumer, err := stream.Consumer(ctx, s.cfg.Consumer)
	if err == nil {
		return consumer, nil
	}
	if !errors.Is(err, jetstream.ErrConsumerNotFound) && !errors.Is(err, jetstream.ErrConsumerDoesNotExist) {
		return nil, s.conn.apiError(ctx, fmt.Errorf("look up consumer %q of stream %q: %w", s.cfg.Consumer, name, err))
	}

	cc := s.cfg.consumer()
	cc.Description = "pgtrickle-relay pipeline " + s.env.Pipeline
	switch {
	case life.Pending:
		cc.DeliverPolicy, cc.OptStartTime = jetstream.DeliverAllPolicy, nil
	case s.placed:
		cc.DeliverPolicy, cc.OptStartSeq, cc.OptStartTime = jetstream.DeliverByStartSequencePolicy, s.floor+1, nil
		s.env.Logger.Warn("consumer was deleted, creating it again", "consumer", s.cfg.Consumer, "stream", name, "start_sequence", s.floor+1)
	}
	if consumer, err = stream.CreateConsumer(ctx, cc); err != nil {
		return nil, s.conn.apiError(ctx, fmt.Errorf("create consumer %q of stream %q: %w", s.cfg.Consumer, name, err))
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
		return relay.Fatal(fmt.Errorf("consumer %q of stream %q %s; use another consumer, or change or delete this one",
			ci.Name, ci.Stream, problem))
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

// rewind makes the consumer redeliver, in order and before anything newer, what was
// not acknowledged. The source must wait for the time returned before it reads.
func (s *source) rewind(ctx context.Context, ci *jetstream.ConsumerInfo) (wait time.Duration, err error) {
	asking, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err = s.conn.js.ResetConsumer(asking, ci.Stream, ci.Name); err == nil {
		return 0, nil
	}
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	_, answered := errors.AsType[*jetstream.APIError](err)
	tooOld := answered || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled)
	if !tooOld {
		return 0, s.conn.apiError(ctx, fmt.Errorf("reset consumer %q of stream %q: %w", ci.Name, ci.Stream, err))
	}

	// A server before 2.14 cannot reset a consumer, and may leave the request without
	// an answer. It delivers overdue messages before newer ones, so reading begins when
	// all are overdue. That can take longer than opening a source may.
	s.env.Logger.Info("waiting for unacknowledged messages", "consumer", ci.Name, "messages", ci.NumAckPending, "wait", ci.Config.AckWait)
	return ci.Config.AckWait, nil
}

// delivered returns how many deliveries the consumer has made. After a reset without a wait
// it fails if another client has some of what is to be delivered again.
func (s *source) delivered(ctx context.Context, consumer jetstream.Consumer, wait time.Duration) (uint64, error) {
	info, err := consumer.Info(ctx)
	if err != nil {
		return 0, s.conn.apiError(ctx, fmt.Errorf("look up consumer %q: %w", s.cfg.Consumer, err))
	}
	if wait == 0 && info.NumAckPending > 0 {
		return 0, fmt.Errorf("read consumer %q of stream %q: %w", info.Name, info.Stream, errShared(info.NumAckPending))
	}
	return info.Delivered.Consumer, nil
}

// errShared is temporary: what a relay asked for before it was frozen ends within a minute.
func errShared[N uint64 | int](deliveries N) error {
	return fmt.Errorf("another client received %d deliveries; trying again, and if this goes on, set consumer to one of the pipeline's own",
		deliveries)
}

// Receive implements [relay.Source].
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		p, err := s.connect(ctx)
		if err != nil {
			return nil, err
		}
		if len(p.held) == 0 {
			if p.held, err = p.receive(ctx, limit); err != nil {
				return nil, err
			}
		}
		if err := s.findLost(ctx, p); err != nil {
			return nil, err
		}
		arrived := s.dropSettled(p, p.held)
		p.held = nil
		batch := make([]relay.Message, len(arrived))
		for i, d := range arrived {
			d.translate(&batch[i])
		}
		if len(batch) > 0 {
			return batch, nil
		}
	}
}

// findLost logs and stores the messages that left the stream before the source read them.
// They are missing between two deliveries, and older than all that the stream has. With a
// filter they may have been other consumers', and nothing is logged. Until it returns nil
// Receive keeps the deliveries, because one that is acknowledged would move the position.
func (s *source) findLost(ctx context.Context, p *pull) error {
	read := p.read
	var gaps [][2]uint64 // the first and last sequence that did not arrive
	for _, d := range p.held {
		if d.seq > read+1 {
			gaps = append(gaps, [2]uint64{read + 1, d.seq - 1})
		}
		read = max(read, d.seq)
	}
	if len(gaps) > 0 && p.config.FilterSubject == "" && len(p.config.FilterSubjects) == 0 {
		if err := s.reportLost(ctx, p, gaps); err != nil {
			return err
		}
	}
	p.read = read
	return nil
}

// reportLost reports what is missing in gaps and has left the stream. The rest was deleted
// message by message.
func (s *source) reportLost(ctx context.Context, p *pull, gaps [][2]uint64) error {
	stream, err := p.conn.js.Stream(ctx, p.stream)
	if err != nil {
		return p.conn.apiError(ctx, fmt.Errorf("look up stream %q: %w", p.stream, err))
	}
	first, last, n := gaps[0][0], uint64(0), uint64(0)
	for _, gap := range gaps {
		if to := min(gap[1], stream.CachedInfo().State.FirstSeq-1); to >= gap[0] {
			last, n = to, n+to-gap[0]+1
		}
	}
	if n == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pull != p { // the next connection receives the same, perhaps in another life of the stream
		p.held = nil
		return nil
	}
	err = s.farEnds.MissedTo(ctx, p.stream, int64(n), p.floor(last),
		"unread messages are lost", "stream", p.stream, "consumer", p.config.Durable, "messages", n,
		"first_sequence", first, "last_sequence", last, "perhaps_delivered", min(n, max(p.behind+1, first)-first),
		"cause", "they were purged, expired or beyond the stream's limits", "cure", "let the stream keep more, or the pipeline keep up")
	if err == nil {
		p.missed(last)
	}
	return err
}

// dropSettled removes deliveries whose message was acknowledged after the connection
// of an earlier delivery was lost. It acknowledges them here.
func (s *source) dropSettled(p *pull, arrived []*delivery) (rest []*delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.settled) == 0 {
		return arrived
	}
	var known []*delivery
	for _, d := range arrived {
		if s.settled[d.seq] {
			delete(s.settled, d.seq)
			known = append(known, d)
		} else {
			rest = append(rest, d)
		}
	}
	if last := p.settle(known); last != nil {
		_ = last.Ack() // a lost one costs another delivery
	}
	return rest
}

// Ack implements [relay.Source].
func (s *source) Ack(ctx context.Context, batch []relay.Message) error {
	s.mu.Lock()
	p := s.pull
	mine := make([]*delivery, 0, len(batch))
	for i := range batch {
		d := batch[i].Token.(*delivery)
		switch {
		case p != nil && d.pull == p:
			mine = append(mine, d)
		case d.pull.scope == s.scope && d.seq > s.floor: // the server forgot this delivery and will repeat it
			s.settled[d.seq] = true
		}
	}
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.ack(ctx, mine)
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
		s.pull.stop()
		s.pull.giveBack()
	}
	s.disconnect()
	return nil
}

// Ping implements [relay.Pinger].
func (s *source) Ping(ctx context.Context) error {
	p, err := s.connect(ctx)
	if err != nil {
		return err
	}
	return p.conn.nc.FlushWithContext(ctx)
}

// Lag implements [relay.Lagger]: the messages not received yet, and the age of the
// oldest of them that has arrived.
func (s *source) Lag(ctx context.Context) (rows int64, seconds float64, err error) {
	p, err := s.connect(ctx)
	if err != nil {
		return 0, 0, err
	}
	return p.lag(ctx)
}

// Guarantee implements [relay.Guarantor].
func (s *source) Guarantee() relay.Guarantee {
	g := sourceGuarantee
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pull != nil && s.pull.config.MaxDeliver > 0 {
		g.Delivery = "at least once, until max_deliver"
		g.Weakest = fmt.Sprintf("consumer %q drops a message after %d deliveries", s.cfg.Consumer, s.pull.config.MaxDeliver)
	}
	return g
}
