package rabbitmqrelay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// session is one connection's consumer.
type session struct {
	link     *link
	channel  *amqp.Channel
	closed   <-chan *amqp.Error
	canceled <-chan string
	inspect  *amqp.Channel // for questions, as a wrong one closes its channel
	offsets  *offsetStore  // nil but for a stream
	done     chan struct{} // the pump has stopped
	arrived  chan struct{} // holds one token when queue may have grown

	mu    sync.Mutex
	queue []amqp.Delivery // received and not taken; at most the prefetch
	cause error           // why the pump has stopped

	ackMu   sync.Mutex
	base    uint64           // all tags below are settled
	settled map[uint64]int64 // tags from base on that are; their offsets
}

// newSession makes sure of the queue and begins to consume.
func newSession(ctx context.Context, link *link, cfg *sourceConfig, known *progress) (*session, error) {
	channel, err := link.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	n := &session{
		link: link, channel: channel, done: make(chan struct{}), arrived: make(chan struct{}, 1),
		base: 1, settled: make(map[uint64]int64),
	}
	n.closed = channel.NotifyClose(make(chan *amqp.Error, 1))
	n.canceled = channel.NotifyCancel(make(chan string, 1))
	if err := provide(channel, cfg); err != nil {
		return nil, err
	}
	args := amqp.Table{}
	if cfg.QueueType == amqp.QueueTypeStream {
		if n.offsets, err = openOffsets(ctx, link, cfg, known); err != nil {
			return nil, err
		}
		args[headerStreamOffset] = n.offsets.from
	}
	if err := channel.Qos(cfg.Prefetch, 0, false); err != nil {
		return nil, fmt.Errorf("set prefetch: %w", err)
	}
	deliveries, err := channel.Consume(cfg.Queue, cfg.ConsumerTag, false, false, false, false, args)
	if err != nil {
		return nil, fmt.Errorf("consume queue %q: %w", cfg.Queue, err)
	}
	go n.pump(deliveries, cfg.Queue)
	return n, nil
}

// provide declares or checks the queue.
func provide(channel *amqp.Channel, cfg *sourceConfig) error {
	if !cfg.DeclareQueue {
		if _, err := channel.QueueDeclarePassive(cfg.Queue, true, false, false, false, nil); err != nil {
			return fmt.Errorf("check queue %q: %w", cfg.Queue, err)
		}
		return nil
	}
	if _, err := channel.QueueDeclare(cfg.Queue, true, false, false, false, queueArgs(cfg.QueueType)); err != nil {
		return fmt.Errorf("declare queue %q: %w", cfg.Queue, err)
	}
	if cfg.BindExchange == "" {
		return nil
	}
	keys := cfg.BindKeys
	if len(keys) == 0 {
		keys = []string{"#"}
	}
	for _, key := range keys {
		if err := channel.QueueBind(cfg.Queue, key, cfg.BindExchange, false, nil); err != nil {
			return fmt.Errorf("bind queue %q to exchange %q with %q: %w", cfg.Queue, cfg.BindExchange, key, err)
		}
	}
	return nil
}

// pump moves deliveries into the queue, from which Receive takes many at once,
// until the consumer ends.
func (n *session) pump(deliveries <-chan amqp.Delivery, name string) {
	defer close(n.done)
	for d := range deliveries {
		n.mu.Lock()
		n.queue = append(n.queue, d)
		n.mu.Unlock()
		select {
		case n.arrived <- struct{}{}:
		default:
		}
	}
	var err error
	select {
	case _, ok := <-n.canceled:
		if ok {
			err = fmt.Errorf("the broker has cancelled the consumer of queue %q: the queue was deleted, or its node is down", name)
			break
		}
		err = n.closing()
	default:
		err = n.closing()
	}
	n.mu.Lock()
	n.cause = err
	n.mu.Unlock()
}

func (n *session) closing() error {
	if reply := <-n.closed; reply != nil {
		return classify(fmt.Errorf("connection to RabbitMQ: %w", reply))
	}
	return amqp.ErrClosed
}

// take waits for deliveries and returns at most limit of them.
func (n *session) take(ctx context.Context, limit int) ([]amqp.Delivery, error) {
	for {
		n.mu.Lock()
		if k := min(limit, len(n.queue)); k > 0 && !n.ended() {
			batch := n.queue[:k:k]
			n.queue = n.queue[k:]
			n.mu.Unlock()
			return batch, nil
		}
		n.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-n.arrived:
		case <-n.done:
			n.mu.Lock()
			defer n.mu.Unlock()
			return nil, n.cause
		}
	}
}

// keepStart stores where a stream is begun that had no stored offset, before any
// of it is handed out: else a session that ends before the first acknowledgement
// would be followed by one that begins at a later "next".
func (n *session) keepStart(ctx context.Context) error {
	if n.offsets == nil || n.offsets.start == nil {
		return nil
	}
	start := *n.offsets.start
	if !start.since.IsZero() {
		first, ok, err := n.peek(ctx, n.offsets.patience)
		if err != nil {
			return err
		}
		if ok {
			start = mark{offset: first - 1}
		}
	}
	return n.offsets.begin(ctx, start)
}

// peek returns the first delivery's offset, if it comes in time.
func (n *session) peek(ctx context.Context, until time.Time) (offset int64, ok bool, err error) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		n.mu.Lock()
		if len(n.queue) > 0 {
			offset, ok = n.queue[0].Headers[headerStreamOffset].(int64)
		}
		n.mu.Unlock()
		if ok {
			return offset, true, nil
		}
		select {
		case <-ctx.Done():
			return 0, false, ctx.Err()
		case <-n.arrived:
		case <-n.done:
			n.mu.Lock()
			defer n.mu.Unlock()
			return 0, false, n.cause
		case <-timer.C:
			return 0, false, nil
		}
	}
}

// ended reports whether the consumer is gone. What it has left in the queue is
// the broker's again.
func (n *session) ended() bool {
	select {
	case <-n.done:
		return true
	default:
		return n.channel.IsClosed()
	}
}

// putBack returns a message to its queue.
func (n *session) putBack(tag uint64) {
	n.ackMu.Lock()
	defer n.ackMu.Unlock()
	if n.channel.Reject(tag, true) == nil { // else the session is over
		n.settled[tag] = -1
	}
}

// settle acknowledges batch: all that is contiguous with what was settled before
// in one go, the rest one by one, and refused messages by a rejection where the
// queue's dead-letter exchange is to have them.
func (n *session) settle(ctx context.Context, batch []relay.Message, deadLetter bool) error {
	n.ackMu.Lock()
	defer n.ackMu.Unlock()
	tags := make([]uint64, 0, len(batch))
	for i := range batch {
		t := batch[i].Token.(*token) //nolint:forcetypeassert // our own
		if t.refused && deadLetter {
			if err := n.channel.Reject(t.tag, false); err != nil {
				return err
			}
			n.settled[t.tag] = t.offset
			continue
		}
		n.settled[t.tag] = t.offset
		tags = append(tags, t.tag)
	}
	offset := n.advance()
	slices.Sort(tags)
	together := 0 // of tags, those that one acknowledgement covers
	for together < len(tags) && tags[together] < n.base {
		together++
	}
	if together > 0 {
		if err := n.channel.Ack(tags[together-1], together > 1); err != nil {
			return err
		}
	}
	for _, tag := range tags[together:] {
		if err := n.channel.Ack(tag, false); err != nil {
			return err
		}
	}
	if n.offsets == nil || offset < 0 {
		return nil
	}
	return n.offsets.store(ctx, mark{offset: offset})
}

// advance moves base over what is settled, and returns the offset of the last it
// has passed, -1 for none.
func (n *session) advance() (offset int64) {
	offset = -1
	for {
		at, ok := n.settled[n.base]
		if !ok {
			return offset
		}
		if at >= 0 {
			offset = at
		}
		delete(n.settled, n.base)
		n.base++
	}
}

// backlog asks how many messages are ready. The age is that of the next one that
// was received and not taken, if its publisher has dated it.
func (n *session) backlog(queue string) (ready int64, oldest time.Time, err error) {
	n.mu.Lock()
	waiting := int64(len(n.queue))
	if waiting > 0 {
		oldest = n.queue[0].Timestamp
	}
	n.mu.Unlock()
	n.ackMu.Lock()
	defer n.ackMu.Unlock()
	if n.inspect == nil || n.inspect.IsClosed() {
		if n.inspect, err = n.link.Channel(); err != nil {
			return 0, oldest, fmt.Errorf("open channel: %w", err)
		}
	}
	q, err := n.inspect.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		return 0, oldest, fmt.Errorf("inspect queue %q: %w", queue, err)
	}
	return int64(q.Messages) + waiting, oldest, nil
}
