package rabbitmqrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// clockSlack is by how much the broker's clock may be behind ours.
	clockSlack = time.Minute
	// startPatience is how long a stream that is not empty may take to deliver the
	// first message of its last chunk, which no time identifies.
	startPatience = 2 * time.Second
	// heldHeartbeats is the number of silent heartbeats after which no connection
	// can hold the offset: the broker closes one after two to three.
	heldHeartbeats = 4
)

// errHeld means that there is an offset and that it cannot be read.
var errHeld = errors.New("its offset is held by another connection, perhaps a dead one that the broker has yet to notice")

// position is a position in a stream: after an offset, or at a time.
type position struct {
	offset int64     // settled up to here; -1 is the beginning
	since  time.Time // used instead if it is not zero

	witness string // of the message at offset; "" if an older relay stored the position
	next    string // of the message behind offset, while none is settled; see keepFirst
}

// startPosition returns the position that stream_offset means now. It may lie
// before the one where the broker begins, never after: a stream finds a time by its
// chunks, and by the broker's clock.
func startPosition(streamOffset string, now time.Time) position {
	if n, err := strconv.ParseInt(streamOffset, 10, 64); err == nil {
		return position{offset: n - 1}
	}
	if streamOffset == "first" {
		return position{offset: -1}
	}
	return position{since: now.Add(-age(streamOffset) - clockSlack)}
}

// age returns the duration of an age in the broker's units, at most fifty years; 0
// for next and last.
func age(text string) time.Duration {
	const day = 24 * time.Hour
	const maxAge = 50 * 365 * day
	unit, ok := map[byte]time.Duration{
		's': time.Second, 'm': time.Minute, 'h': time.Hour, 'D': day, 'M': 30 * day, 'Y': 365 * day,
	}[text[len(text)-1]]
	n, err := strconv.ParseInt(text[:len(text)-1], 10, 64)
	if !ok || err != nil {
		return 0
	}
	return time.Duration(min(n, int64(maxAge/unit))) * unit
}

// parsePosition is the inverse of String.
func parsePosition(text string) (m position, err error) {
	if m.offset, err = strconv.ParseInt(text, 10, 64); err == nil {
		return m, nil
	}
	m.since, err = time.Parse(time.RFC3339, text)
	return m, err
}

func (m position) String() string {
	if m.since.IsZero() {
		return strconv.FormatInt(m.offset, 10)
	}
	return m.since.UTC().Format(time.RFC3339)
}

// arg returns the x-stream-offset from which to continue.
func (m position) arg() any {
	switch {
	case !m.since.IsZero():
		return m.since
	case m.offset < 0:
		return "first"
	}
	return m.offset + 1
}

// progress is what a source knows of its stream's offset across sessions.
type progress struct {
	log     *slog.Logger
	farEnds *relay.FarEnds
	stored  atomic.Pointer[position] // read or stored last
	missing time.Time                // since when the offset cannot be read
	warn    sync.Once                // that a queue cannot be marked
}

// offsetStore keeps the offset up to which a stream is settled. It is the only message of
// a queue of its own, because AMQP 0.9.1 has no other place for it.
type offsetStore struct {
	channel *amqp.Channel
	queue   string
	known   *progress
	from    any // the x-stream-offset of this session
	life    relay.FarEnd

	start    *position // to be stored by begin; nil if an offset is stored
	patience time.Time // how long to wait for the first delivery's own offset
}

// openOffsets finds where to continue. A pipeline that has never received has no
// queue: begin declares it together with an offset.
func openOffsets(ctx context.Context, conn *conn, cfg *sourceConfig, known *progress) (*offsetStore, error) {
	there, err := inspect(conn, cfg.OffsetQueue)
	if err != nil {
		return nil, err
	}
	channel, err := conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	if err := channel.Confirm(false); err != nil {
		return nil, fmt.Errorf("ask for confirms: %w", err)
	}
	o := &offsetStore{channel: channel, queue: cfg.OffsetQueue, known: known}
	if there != nil || known.stored.Load() != nil {
		at, err := o.find(ctx, heldHeartbeats*cfg.Heartbeat.D())
		if err != nil {
			return nil, err
		}
		if at != nil {
			o.from = at.arg()
			if o.start, err = o.meet(ctx, conn, cfg, *at); o.start != nil {
				o.from = o.start.arg()
			}
			return o, err
		}
	}
	if o.life, err = known.farEnds.Meet(ctx, "stream", cfg.Queue, ""); err != nil {
		return nil, err
	}
	start := startPosition(cfg.StreamOffset, time.Now())
	o.start, o.from = &start, offsetArg(cfg.StreamOffset)
	if cfg.StreamOffset == "last" {
		o.patience = time.Now().Add(startPatience)
	}
	return o, nil
}

// inspect returns what the broker knows of a queue, or nil if there is none.
func inspect(conn *conn, name string) (*amqp.Queue, error) {
	var queue amqp.Queue
	err := withChannel(conn, func(channel *amqp.Channel) (err error) {
		queue, err = channel.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
	switch {
	case err == nil:
		return &queue, nil
	case code(err) == amqp.NotFound && relay.IsFatal(classify(err)):
		return nil, nil
	}
	return nil, fmt.Errorf("inspect queue %q: %w", name, err)
}

// find reads the offset. A read hides it from others until it is stored again. If
// the connection breaks in between, the offset stays hidden until the broker
// notices. Beginning again meanwhile would repeat the stream or, with next, leave a
// hole. So an empty queue is an error, unless this source knows the offset.
//
// In AMQP a message that another connection holds looks like none. But the
// broker closes a silent connection after some heartbeats; find then reports that
// there is no offset. Older versions of the relay declared the queue before they
// had an offset, and may have left it empty.
func (o *offsetStore) find(ctx context.Context, patience time.Duration) (at *position, err error) {
	if err := o.declare(); err != nil {
		return nil, err
	}
	m, found, err := o.read(ctx)
	if err != nil {
		return nil, err
	}
	if stored := o.known.stored.Load(); !found && stored != nil {
		if err := o.store(ctx, *stored); err != nil {
			return nil, err
		}
		m, found = *stored, true
	}
	if !found {
		return nil, o.await(patience)
	}
	o.known.missing = time.Time{}
	return &m, nil
}

// await returns an error until the offset has been missing for so long that no
// connection can hold it.
func (o *offsetStore) await(patience time.Duration) error {
	if o.known.missing.IsZero() {
		o.known.missing = time.Now()
	}
	missing := time.Since(o.known.missing)
	if missing < patience {
		return fmt.Errorf("queue %q is empty: %w", o.queue, errHeld)
	}
	o.known.log.Warn("stored stream offset is lost", "queue", o.queue, "missing", missing.Round(time.Second), "begin", "stream_offset")
	return nil
}

func (o *offsetStore) declare() error {
	args := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum, amqp.QueueMaxLenArg: int64(1)}
	args[amqp.QueueOverflowArg] = amqp.QueueOverflowDropHead
	if _, err := o.channel.QueueDeclare(o.queue, true, false, false, false, args); err != nil {
		return fmt.Errorf("declare queue %q: %w", o.queue, err)
	}
	return nil
}

func (o *offsetStore) read(ctx context.Context) (m position, found bool, err error) {
	d, found, err := o.channel.Get(o.queue, false)
	if err != nil {
		return m, false, fmt.Errorf("read offset from queue %q: %w", o.queue, err)
	}
	if !found {
		return m, false, nil
	}
	if m, err = parsePosition(strings.TrimSpace(string(d.Body))); err != nil {
		return m, false, relay.Fatal(fmt.Errorf("queue %q holds %.40q instead of an offset: delete it to read the stream from stream_offset",
			o.queue, d.Body))
	}
	m.witness, _ = d.Headers[headerWitness].(string)
	m.next, _ = d.Headers[headerNext].(string)
	o.known.stored.Store(&m)
	// Stored again and not requeued: a quorum queue drops what it has delivered too
	// often.
	if err := o.store(ctx, m); err != nil {
		return m, false, err
	}
	return m, true, d.Ack(false)
}

// begin stores where the stream begins, and that its position is now known. It goes on for
// cancelGrace after ctx. A queue that is declared and left empty looks like one whose offset
// is held, and the next owner would wait.
func (o *offsetStore) begin(ctx context.Context, queue string, start position) error {
	ctx, cancel := backoff.Outlive(ctx, cancelGrace)
	defer cancel()
	if err := o.declare(); err != nil {
		return err
	}
	if err := o.store(ctx, start); err != nil {
		return err
	}
	o.start = nil
	return o.known.farEnds.Began(ctx, queue)
}

// store replaces the offset; when it returns nil the broker has the new one.
func (o *offsetStore) store(ctx context.Context, m position) error {
	confirm, err := o.channel.PublishWithDeferredConfirmWithContext(ctx, "", o.queue, false, false, amqp.Publishing{
		DeliveryMode: amqp.Persistent, ContentType: "text/plain", Body: []byte(m.String()),
		Headers: amqp.Table{headerWitness: m.witness, headerNext: m.next},
	})
	if err != nil {
		return fmt.Errorf("store offset in queue %q: %w", o.queue, err)
	}
	ok, err := confirm.WaitContext(ctx)
	if err != nil {
		return fmt.Errorf("store offset in queue %q: %w", o.queue, err)
	}
	if !ok {
		return errors.New("the broker rejected the offset for queue " + o.queue)
	}
	o.known.stored.Store(&m)
	return nil
}
