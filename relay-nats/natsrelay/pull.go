package natsrelay

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	prefetch      = 1000            // messages ahead of Receive; with 2000 a drain took 72 MiB and not 63, as fast
	prefetchBytes = 8 << 20         // and their bytes
	heartbeat     = 5 * time.Second // between signs that the server still knows a request
	// replyBytes is room for what a message adds to max_payload when the server counts
	// the bytes of a request: its subjects.
	replyBytes = 64 << 10
)

// delivery is one delivery of a message. It is the message's Token.
type delivery struct {
	jetstream.Msg
	pull   *pull
	seq    uint64    // in the stream
	stored time.Time // when the stream stored it
	fresh  time.Time // when the server last began to count ack_wait for it
	weight int64     // of pull.room
	ticket uint64    // of pull.open
	acked  bool
}

// pull reads a consumer on one connection and keeps each delivery until it is
// acknowledged.
type pull struct {
	conn     *conn
	consumer jetstream.Consumer
	config   jetstream.ConsumerConfig
	stream   string
	scope    string // of the stream's life, in ids
	scopeIDs bool   // see relay.Env
	queue    chan *delivery
	room     *semaphore.Weighted // for bytes in queue
	failed   chan struct{}       // closed when nothing more will arrive
	err      error               // why; after failed
	cancel   context.CancelFunc
	running  sync.WaitGroup

	held   []*delivery // arrived, and not returned by Receive: what is missing before them is not reported
	read   uint64      // the highest sequence that Receive returned
	behind uint64      // the server's floor at the beginning, up to which it may have removed what had arrived
	count  uint64      // of the consumer's deliveries so far, to any client

	mu      sync.Mutex
	open    relay.Acks[*delivery]
	due     *delivery // with ack policy all: the one to acknowledge
	ackedTo uint64    // the highest sequence acknowledged, or reported
	reached time.Time // when the stream stored the last message received
}

// newPull begins to read after wait. The consumer has made count deliveries.
func (s *source) newPull(consumer jetstream.Consumer, wait time.Duration, count uint64) *pull {
	info := consumer.CachedInfo()
	p := &pull{
		conn: s.conn, consumer: consumer, config: info.Config, stream: info.Stream, scope: s.scope, scopeIDs: s.env.ScopeIDs,
		count: count, ackedTo: s.floor, failed: make(chan struct{}),
		queue: make(chan *delivery, 4*prefetch), room: semaphore.NewWeighted(prefetchBytes),
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.running.Go(func() {
		defer close(p.failed)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		for p.err == nil {
			p.err = cmp.Or(ctx.Err(), p.iterate(ctx))
		}
	})
	p.running.Go(func() { p.keepFresh(ctx) })
	p.running.Go(func() { s.keepFloor(ctx, p) })
	return p
}

// keepFloor stores how far p is acknowledged. A message that is acknowledged has arrived, and
// what is missing before it is reported. A store that fails is repeated.
func (s *source) keepFloor(ctx context.Context, p *pull) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		storing, cancel := backoff.Outlive(ctx, time.Second)
		_ = s.farEnds.Settled(storing, p.stream, p.floor(0))
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

// stop ends the goroutines of newPull.
func (p *pull) stop() {
	p.cancel()
	p.running.Wait()
}

// iterate moves messages from an iterator of the client to the queue. When the queue
// stays full, it empties the client's buffer into it and ends the iterator, because
// keepFresh does not reach that buffer.
func (p *pull) iterate(ctx context.Context) error {
	limit := max(prefetchBytes, int(p.conn.nc.MaxPayload())+replyBytes) // a larger message would stall the client
	messages, err := p.consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(prefetch, limit), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return p.conn.apiError(ctx, fmt.Errorf("read consumer %q: %w", p.config.Durable, err))
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()

	draining := false
	for {
		m, err := messages.Next()
		if err != nil && draining {
			break
		}
		var d *delivery
		if err == nil {
			d, err = p.hold(m)
		}
		if err != nil {
			return p.conn.apiError(ctx, fmt.Errorf("read consumer %q of stream %q: %w", p.config.Durable, p.stream, err))
		}
		if !draining && !p.awaitRoom(ctx, d) {
			draining = true
			messages.Drain()
		}
		select {
		case p.queue <- d:
		case <-ctx.Done():
			return ctx.Err()
		}
	}

	// The next iterator begins when half of the queue is free.
	if err := p.room.Acquire(ctx, prefetchBytes/2); err != nil {
		return err
	}
	p.room.Release(prefetchBytes / 2)
	return nil
}

// awaitRoom waits until the queue has room for d, for a quarter of ack_wait.
func (p *pull) awaitRoom(ctx context.Context, d *delivery) bool {
	weight := min(prefetchBytes, max(int64(len(d.Data())), prefetchBytes/prefetch))
	if !p.room.TryAcquire(weight) {
		ctx, cancel := context.WithTimeout(ctx, p.config.AckWait/4)
		defer cancel()
		if p.room.Acquire(ctx, weight) != nil {
			return false
		}
	}
	d.weight = weight
	return true
}

// hold keeps a delivery until it is acknowledged.
func (p *pull) hold(m jetstream.Msg) (*delivery, error) {
	meta, err := m.Metadata()
	if err != nil {
		return nil, fmt.Errorf("message on %q is not from a stream: %w", m.Subject(), err)
	}
	// Another client has what is missing: a relay that was frozen past its lease, for example.
	// The next acknowledgement could stand for it, too.
	if got := meta.Sequence.Consumer; got > p.count+1 {
		return nil, errShared(got - p.count - 1)
	}
	p.count = meta.Sequence.Consumer
	d := &delivery{Msg: m, pull: p, seq: meta.Sequence.Stream, stored: meta.Timestamp, fresh: time.Now()}
	p.mu.Lock()
	defer p.mu.Unlock()
	d.ticket = p.open.Add(d)
	return d, nil
}

// receive waits for messages and returns up to limit.
func (p *pull) receive(ctx context.Context, limit int) (batch []*delivery, err error) {
	var first *delivery
	select {
	case first = <-p.queue:
	default:
		select {
		case first = <-p.queue:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.conn.closed:
			return nil, p.conn.lost()
		case <-p.failed:
			return nil, p.err
		}
	}
	batch = make([]*delivery, 1, min(limit, 1+len(p.queue)))
	batch[0] = first
	for len(batch) < cap(batch) {
		batch = append(batch, <-p.queue)
	}

	var weight int64
	for _, d := range batch {
		weight += d.weight
	}
	p.room.Release(weight)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reached = batch[len(batch)-1].stored
	return batch, nil
}

// ended reports whether everything that will ever arrive is received.
func (p *pull) ended() bool {
	select {
	case <-p.failed:
		return len(p.queue) == 0
	default:
		return false
	}
}

// translate fills out, which is empty, from a delivery.
func (d *delivery) translate(out *relay.Message) {
	out.Subject, out.Op, out.Body, out.Time, out.Token = d.Subject(), relay.OpEvent, d.Data(), d.stored, d
	out.Origin = "nats:" + d.pull.stream
	given, global := "", !d.pull.scopeIDs
	for name, values := range d.Headers() {
		global = global || relay.WroteRelay(name)
		for _, value := range values {
			if strings.EqualFold(name, nats.MsgIdHdr) {
				given = value
				continue
			}
			out.AddWireHeader(name, value)
		}
	}
	switch {
	case out.ID != "": // the event's id, which a relay sent beside the other
	case given != "" && global:
		out.ID = given
	default:
		if given != "" {
			out.AddWireHeader(nats.MsgIdHdr, given) // for event_id_from
		}
		out.ID = out.Origin + d.pull.scope + ":" + strconv.FormatUint(d.seq, 10)
	}
}

// ack acknowledges deliveries. The server handles acknowledgements in order, so its
// answer to the last one confirms all. With ack policy all only one is sent: for the
// last delivery before which none is open.
func (p *pull) ack(ctx context.Context, batch []*delivery) error {
	last := p.settle(batch)
	if last == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if err := last.DoubleAck(ctx); err != nil {
		return fmt.Errorf("acknowledge sequence %d of stream %q: %w", last.seq, p.stream, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.due == last {
		p.due = nil
	}
	return nil
}

// settle marks deliveries as acknowledged, sends what needs no answer, and returns
// the one to acknowledge with an answer, or nil.
func (p *pull) settle(batch []*delivery) (last *delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, d := range batch {
		d.acked = true
		if passed, moved := p.open.Done(d.ticket); moved {
			p.due, p.ackedTo = passed, max(p.ackedTo, passed.seq)
		}
		if last = d; !p.ackAll() && i < len(batch)-1 {
			_ = d.Ack() // a lost one costs a second delivery
		}
	}
	if p.ackAll() {
		return p.due
	}
	return last
}

func (p *pull) ackAll() bool { return p.config.AckPolicy == jetstream.AckAllPolicy }

// floor returns the sequence up to which everything is acknowledged. missed are the
// sequences up to one that are not open, if these are reported.
func (p *pull) floor(missed uint64) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	floor := max(p.ackedTo, missed)
	for d := range p.open.All() {
		if !d.acked {
			floor = min(floor, d.seq-1)
		}
	}
	return floor
}

// missed records that everything up to seq that is not open is reported.
func (p *pull) missed(seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ackedTo = max(p.ackedTo, seq)
}

// giveBack lets the server redeliver at once what is not acknowledged.
func (p *pull) giveBack() {
	for _, d := range p.unacked(time.Now()) {
		if d.Nak() != nil {
			return
		}
	}
	_ = p.conn.nc.FlushTimeout(time.Second) // the rest is redelivered after ack_wait
}

// keepFresh extends ack_wait for each delivery until it is acknowledged, so that a
// slow inbox causes no redelivery.
func (p *pull) keepFresh(ctx context.Context) {
	tick := time.NewTicker(max(p.config.AckWait/3, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			for _, d := range p.unacked(now.Add(-p.config.AckWait / 4)) {
				if d.InProgress() != nil {
					break
				}
			}
		}
	}
}

// unacked returns the deliveries for which the server counts ack_wait since before
// the given time, and that are not acknowledged. From now on they count as fresh.
func (p *pull) unacked(before time.Time) (found []*delivery) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d := range p.open.All() {
		if d.fresh.Before(before) && (!d.acked || p.ackAll()) {
			d.fresh = time.Now()
			found = append(found, d)
		}
	}
	return found
}

// lag returns the number of messages that were not received yet and, while there are
// any, the age of the last one received.
func (p *pull) lag(ctx context.Context) (rows int64, seconds float64, err error) {
	info, err := p.consumer.Info(ctx)
	if err != nil {
		return 0, 0, p.conn.apiError(ctx, fmt.Errorf("look up consumer %q of stream %q: %w", p.config.Durable, p.stream, err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rows = int64(info.NumPending) + int64(len(p.queue))
	if rows > 0 && !p.reached.IsZero() {
		seconds = time.Since(p.reached).Seconds()
	}
	return rows, seconds, nil
}
