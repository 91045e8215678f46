package rabbitmqrelay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// session is one connection's consumer. What it leaves unacknowledged, the broker
// delivers again to the next.
type session struct {
	conn     *conn
	channel  *amqp.Channel
	closed   <-chan *amqp.Error
	canceled <-chan string
	offsets  *offsetStore  // nil but for a stream
	done     chan struct{} // the pump has stopped
	arrived  chan struct{} // holds one token when queue may have grown

	mu    sync.Mutex
	queue []amqp.Delivery      // received and not taken; at most the prefetch
	acks  relay.Acks[delivery] // of what was taken; its tickets are the delivery tags
	cause error                // why the pump has stopped

	ackMu   sync.Mutex        // orders what is sent to the broker
	late    map[uint64]string // by tag: witnesses of messages settled before an earlier one
	inspect *amqp.Channel     // for questions: the broker closes a channel with its refusal
}

// delivery is a message's place in its session and, in a stream, its offset.
type delivery struct {
	tag    uint64
	offset int64
}

// newSession makes sure of the queue and begins to consume.
func newSession(ctx context.Context, conn *conn, cfg *sourceConfig, known *progress) (*session, error) {
	channel, err := conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	n := &session{conn: conn, channel: channel, done: make(chan struct{}), arrived: make(chan struct{}, 1), late: make(map[uint64]string)}
	n.closed = channel.NotifyClose(make(chan *amqp.Error, 1))
	n.canceled = channel.NotifyCancel(make(chan string, 1))
	if err := provide(channel, cfg); err != nil {
		return nil, err
	}
	args := amqp.Table{}
	if cfg.QueueType == amqp.QueueTypeStream {
		if n.offsets, err = openOffsets(ctx, conn, cfg, known); err != nil {
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
	if cfg.MarkQueue {
		if err := mark(ctx, conn, cfg, known); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// provide declares or checks the queue.
func provide(channel *amqp.Channel, cfg *sourceConfig) error {
	declare := channel.QueueDeclarePassive
	if cfg.CreateIfMissing {
		declare = channel.QueueDeclare
	}
	if _, err := declare(cfg.Queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: cfg.QueueType}); err != nil {
		return fmt.Errorf("declare or check queue %q: %w", cfg.Queue, explainMissing(err))
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
	err := error(amqp.ErrClosed)
	if _, cancelled := <-n.canceled; cancelled {
		err = fmt.Errorf("the broker has cancelled the consumer of queue %q: the queue was deleted, or its node is down", name)
	} else if refused := n.conn.guard.Err(); refused != nil {
		err = classify(fmt.Errorf("consume queue %q: %w", name, refused))
	} else if reply := <-n.closed; reply != nil {
		err = classify(fmt.Errorf("connection to RabbitMQ: %w", reply))
	}
	n.mu.Lock()
	n.cause = err
	n.mu.Unlock()
}

// wait returns when ready does not return false any longer. It calls ready, with
// mu held, whenever deliveries may have arrived.
func (n *session) wait(ctx context.Context, ready func() bool) error {
	for {
		n.mu.Lock()
		ok := ready()
		n.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.arrived:
		case <-n.done:
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.cause
		}
	}
}

// take waits for deliveries and returns at most limit of them.
func (n *session) take(ctx context.Context, limit int) (batch []amqp.Delivery, err error) {
	err = n.wait(ctx, func() bool {
		k := min(limit, len(n.queue))
		if k == 0 || n.ended() {
			return false
		}
		batch, n.queue = n.queue[:k:k], n.queue[k:]
		for i := range batch {
			n.acks.Add(delivery{tag: batch[i].DeliveryTag, offset: streamOffset(&batch[i])})
		}
		return true
	})
	return batch, err
}

// scope returns what an id made of an offset carries; see [relay.FarEnd].
func (n *session) scope() string {
	if n.offsets == nil {
		return ""
	}
	return n.offsets.life.Scope()
}

// streamOffset returns the offset of d in its stream, -1 in other queues.
func streamOffset(d *amqp.Delivery) int64 {
	if offset, ok := d.Headers[headerStreamOffset].(int64); ok {
		return offset
	}
	return -1
}

// keepStart stores where a stream without a stored offset begins, before any of it
// is handed out. Without that, a session that ends before the first acknowledgement
// would be followed by one that begins at a later "next".
func (n *session) keepStart(ctx context.Context, queue string) error {
	if n.offsets == nil || n.offsets.start == nil {
		return nil
	}
	start := *n.offsets.start
	if !start.since.IsZero() {
		// The first delivery, if it comes in time, has a better position.
		inTime, cancel := context.WithDeadline(ctx, n.offsets.patience)
		defer cancel()
		err := n.wait(inTime, func() bool { return len(n.queue) > 0 })
		if err == nil {
			n.mu.Lock()
			start = position{offset: streamOffset(&n.queue[0]) - 1}
			n.mu.Unlock()
		} else if inTime.Err() == nil || ctx.Err() != nil {
			return err
		}
	}
	return n.offsets.begin(ctx, queue, start)
}

// keepFirst stores the witness of first, which is handed out next, if the position has none.
// Without it a stream that is created again could be taken for the old one:
//
//  1. A relay delivers the first messages, and is killed before one is settled.
//  2. The stream is deleted and created again, and messages are published.
//  3. The next relay finds a position with nothing to compare, and reads on from it. New
//     messages have the ids of those delivered.
func (n *session) keepFirst(ctx context.Context, first *amqp.Delivery) error {
	if n.offsets == nil {
		return nil
	}
	if at := n.offsets.known.stored.Load(); at.witness != "" || at.next != "" {
		return nil
	}
	return n.offsets.store(ctx, position{offset: streamOffset(first) - 1, next: witness(first)})
}

// ended reports whether the consumer is gone. The broker delivers again what is
// left in the queue.
func (n *session) ended() bool {
	select {
	case <-n.done:
		return true
	default:
		return n.channel.IsClosed()
	}
}

// settled records that tag is settled and returns the delivery up to which all are.
func (n *session) settled(tag uint64) (delivery, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.acks.Done(tag)
}

// putBack returns a message to its queue.
func (n *session) putBack(tag uint64) {
	n.ackMu.Lock()
	defer n.ackMu.Unlock()
	if n.channel.Reject(tag, true) == nil { // else the session has ended
		n.settled(tag)
	}
}

// settle acknowledges batch: in one go what is contiguous with what was settled
// before, the rest one by one. With deadLetter it rejects refused messages, which
// the queue's dead-letter exchange then gets.
func (n *session) settle(ctx context.Context, batch []relay.Message, deadLetter bool) error {
	n.ackMu.Lock()
	defer n.ackMu.Unlock()
	tags := make([]uint64, 0, len(batch))
	var end delivery // everything up to it is settled
	var last *token  // of end, if it is in batch
	for i := range batch {
		t := batch[i].Token.(*token)
		if !t.refused || !deadLetter {
			tags = append(tags, t.tag)
		} else if err := n.channel.Reject(t.tag, false); err != nil {
			return err
		}
		at, moved := n.settled(t.tag)
		if moved {
			end = at
		}
		if moved && at.tag == t.tag {
			last = t
		} else if n.offsets != nil { // its position is stored later, when the message is gone
			n.late[t.tag] = witness(t.message)
		}
	}

	slices.Sort(tags)
	together, _ := slices.BinarySearch(tags, end.tag+1) // number of tags that one acknowledgement covers
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
	if n.offsets == nil || end.tag == 0 {
		return nil
	}
	at := position{offset: end.offset, witness: n.late[end.tag]}
	if last != nil && last.tag == end.tag {
		at.witness = witness(last.message)
	}
	maps.DeleteFunc(n.late, func(tag uint64, _ string) bool { return tag <= end.tag })
	return n.offsets.store(ctx, at)
}

// backlog returns how many messages are ready. Oldest is the time of the next one that was
// received and not taken, if its publisher has set it.
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
		if n.inspect, err = n.conn.Channel(); err != nil {
			return 0, oldest, fmt.Errorf("open channel: %w", err)
		}
	}
	q, err := n.inspect.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		return 0, oldest, fmt.Errorf("inspect queue %q: %w", queue, err)
	}
	return int64(q.Messages) + waiting, oldest, nil
}
