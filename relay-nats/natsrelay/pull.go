package natsrelay

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	prefetch      = 2000            // messages requested ahead of Receive
	prefetchBytes = 8 << 20         // and their bytes
	heartbeat     = 5 * time.Second // between signs that the server still knows the request
	// replyBytes is room for what a message adds to max_payload when the server
	// counts the bytes of a request: its subjects.
	replyBytes = 64 << 10
)

// delivery is one delivery of a message. It is the message's Token.
type delivery struct {
	jetstream.Msg
	pull   *pull
	seq    uint64    // in the stream
	stored time.Time // when the stream stored it
	fresh  time.Time // when the server last began to count ack_wait for it
	ticket uint64    // in pull.open
	acked  bool
}

// pull reads a consumer on one connection and keeps each delivery until it is
// acknowledged.
type pull struct {
	conn     *conn
	consumer jetstream.Consumer
	config   jetstream.ConsumerConfig
	stream   string
	arrived  chan struct{} // receives when there are messages or an error
	room     chan struct{} // receives when Receive has taken messages
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex
	queue   []*delivery // not yet received
	queued  int         // bytes in queue
	open    relay.Acks[*delivery]
	due     *delivery // with ack policy all: the one to acknowledge
	ackedTo uint64    // the highest sequence acknowledged
	err     error     // why no more will arrive
}

// newPull begins to read after wait. Everything up to floor is acknowledged.
func newPull(c *conn, consumer jetstream.Consumer, floor uint64, wait time.Duration) *pull {
	info := consumer.CachedInfo()
	p := &pull{
		conn: c, consumer: consumer, config: info.Config, stream: info.Stream, ackedTo: floor,
		arrived: make(chan struct{}, 1), room: make(chan struct{}, 1),
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.running.Go(func() { p.fill(ctx, wait) })
	p.running.Go(func() { p.keepFresh(ctx) })
	return p
}

// stop ends the goroutines of newPull.
func (p *pull) stop() {
	p.cancel()
	p.running.Wait()
}

// fill moves messages from the client to the queue until ctx ends or the consumer
// fails.
func (p *pull) fill(ctx context.Context, wait time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(wait):
	}
	for {
		if err := p.iterate(ctx); err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
			notify(p.arrived)
			return
		}
	}
}

// iterate reads one iterator of the client. It ends it without an error when the
// queue stays full for long: the client's own buffer is emptied into the queue, for
// only there keepFresh can extend ack_wait.
func (p *pull) iterate(ctx context.Context) error {
	limit := max(prefetchBytes, int(p.conn.nc.MaxPayload())+replyBytes) // the client stalls at a larger message
	messages, err := p.consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(prefetch, limit), jetstream.PullHeartbeat(heartbeat))
	if err != nil {
		return p.conn.apiError(ctx, fmt.Errorf("read consumer %q: %w", p.config.Durable, err))
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()

	for p.awaitRoom(ctx, p.config.AckWait/4) {
		m, err := messages.Next()
		if err == nil {
			err = p.push(m)
		}
		if err != nil {
			return p.conn.apiError(ctx, fmt.Errorf("read consumer %q of stream %q: %w", p.config.Durable, p.stream, err))
		}
	}
	messages.Drain()
	for m, err := messages.Next(); err == nil; m, err = messages.Next() {
		if err := p.push(m); err != nil {
			return err
		}
	}
	p.awaitRoom(ctx, 0)
	return ctx.Err()
}

// awaitRoom waits until the queue has room. It returns false when ctx ends, or after
// patience if that is not 0.
func (p *pull) awaitRoom(ctx context.Context, patience time.Duration) bool {
	if p.hasRoom() {
		return ctx.Err() == nil
	}
	var expired <-chan time.Time
	if patience > 0 {
		expired = time.After(patience)
	}
	for !p.hasRoom() {
		select {
		case <-ctx.Done():
			return false
		case <-expired:
			return false
		case <-p.room:
		}
	}
	return true
}

func (p *pull) hasRoom() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) < prefetch/2 && p.queued < prefetchBytes/2
}

// push appends a message to the queue.
func (p *pull) push(m jetstream.Msg) error {
	meta, err := m.Metadata()
	if err != nil {
		return fmt.Errorf("message on %q is not from a stream: %w", m.Subject(), err)
	}
	d := &delivery{Msg: m, pull: p, seq: meta.Sequence.Stream, stored: meta.Timestamp, fresh: time.Now()}
	p.mu.Lock()
	d.ticket = p.open.Add(d)
	p.queue = append(p.queue, d)
	p.queued += len(m.Data())
	p.mu.Unlock()
	notify(p.arrived)
	return nil
}

func notify(wake chan<- struct{}) {
	select {
	case wake <- struct{}{}:
	default:
	}
}

// receive waits for messages and returns up to limit.
func (p *pull) receive(ctx context.Context, limit int) ([]*delivery, error) {
	for {
		if batch, err := p.dequeue(limit); len(batch) > 0 || err != nil {
			return batch, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-p.conn.closed:
			return nil, p.conn.lost()
		case <-p.arrived:
		}
	}
}

func (p *pull) dequeue(limit int) ([]*delivery, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil, p.err
	}
	n := min(limit, len(p.queue))
	batch := slices.Clone(p.queue[:n])
	p.queue = slices.Delete(p.queue, 0, n)
	for _, d := range batch {
		p.queued -= len(d.Data())
	}
	notify(p.room)
	return batch, nil
}

// failure returns why no more will arrive, once everything that arrived is received.
func (p *pull) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return nil
	}
	return p.err
}

// translate fills out, which is empty, from a delivery.
func (d *delivery) translate(out *relay.Message) {
	out.Subject, out.Op, out.Body, out.Time, out.Token = d.Subject(), relay.OpEvent, d.Data(), d.stored, d
	out.Origin = "nats:" + d.pull.stream
	for name, values := range d.Headers() {
		for _, value := range values {
			if strings.EqualFold(name, nats.MsgIdHdr) {
				out.ID = value
				continue
			}
			out.AddWireHeader(name, value)
		}
	}
	if out.ID == "" {
		out.ID = out.Origin + ":" + strconv.FormatUint(d.seq, 10)
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

// floor returns the sequence up to which everything is acknowledged.
func (p *pull) floor() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	floor := p.ackedTo
	for d := range p.open.All() {
		if !d.acked {
			floor = min(floor, d.seq-1)
		}
	}
	return floor
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

// lag returns the number of messages that were not received yet and the age of the
// oldest one that has arrived.
func (p *pull) lag(ctx context.Context) (rows int64, seconds float64, err error) {
	info, err := p.consumer.Info(ctx)
	if err != nil {
		return 0, 0, p.conn.apiError(ctx, fmt.Errorf("look up consumer %q of stream %q: %w", p.config.Durable, p.stream, err))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	rows = int64(info.NumPending) + int64(len(p.queue))
	if len(p.queue) > 0 {
		seconds = time.Since(p.queue[0].stored).Seconds()
	}
	return rows, seconds, nil
}
