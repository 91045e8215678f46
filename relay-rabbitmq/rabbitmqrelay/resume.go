package rabbitmqrelay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// clockSlack is by how much the broker's clock may be behind ours.
	clockSlack = time.Minute
	// startPatience is how long a stream that is not empty may take to deliver the
	// first message of its last chunk, of which no time tells.
	startPatience = 2 * time.Second
	// heldHeartbeats is after how many heartbeats of silence no connection can
	// still hold the offset: the broker gives one up after two to three.
	heldHeartbeats = 4
)

// errHeld says that there is an offset and that it cannot be seen.
var errHeld = errors.New("its offset is held by another connection, perhaps one that is dead and that the broker has yet to notice")

// mark is a place in a stream: behind an offset, or at a time.
type mark struct {
	offset int64     // settled up to here; -1 is the beginning
	since  time.Time // where it is set
}

// startMark returns the place that stream_offset means now. It may lie before
// where the broker begins, not behind: a stream finds a time by its chunks, and
// by the broker's clock.
func startMark(streamOffset string, now time.Time) mark {
	if n, err := strconv.ParseInt(streamOffset, 10, 64); err == nil {
		return mark{offset: n - 1}
	}
	if streamOffset == "first" {
		return mark{offset: -1}
	}
	return mark{since: now.Add(-age(streamOffset) - clockSlack)}
}

// age returns how long ago an age is, in the broker's units and at most fifty
// years, 0 for next and last.
func age(text string) time.Duration {
	const day = 24 * time.Hour
	const most = 50 * 365 * day
	unit, ok := map[byte]time.Duration{
		's': time.Second, 'm': time.Minute, 'h': time.Hour, 'D': day, 'M': 30 * day, 'Y': 365 * day,
	}[text[len(text)-1]]
	n, err := strconv.ParseInt(text[:len(text)-1], 10, 64)
	if !ok || err != nil {
		return 0
	}
	return time.Duration(min(n, int64(most/unit))) * unit
}

// parseMark is the inverse of String.
func parseMark(text string) (m mark, err error) {
	if m.offset, err = strconv.ParseInt(text, 10, 64); err == nil {
		return m, nil
	}
	m.since, err = time.Parse(time.RFC3339, text)
	return m, err
}

func (m mark) String() string {
	if m.since.IsZero() {
		return strconv.FormatInt(m.offset, 10)
	}
	return m.since.UTC().Format(time.RFC3339)
}

// arg returns the x-stream-offset at which to go on.
func (m mark) arg() any {
	switch {
	case !m.since.IsZero():
		return m.since
	case m.offset < 0:
		return "first"
	}
	return m.offset + 1
}

// progress is what a source knows of its stream's offset from one session to the
// next.
type progress struct {
	log     *slog.Logger
	stored  atomic.Pointer[mark] // read or stored last
	missing time.Time            // since when the offset cannot be seen
}

// offsetStore keeps the offset up to which a stream is settled, as the only
// message of a queue of its own: AMQP 0.9.1 has no other place for it.
type offsetStore struct {
	channel *amqp.Channel
	queue   string
	known   *progress
	from    any // the x-stream-offset of this session

	start    *mark     // to be stored by begin; nil where something is stored
	patience time.Time // until when the first delivery may say it better
}

// openOffsets finds where to go on. A pipeline that has never received has no
// queue yet: begin makes it, so that one without an offset means something else.
func openOffsets(ctx context.Context, link *link, cfg *sourceConfig, known *progress) (*offsetStore, error) {
	there, err := exists(link, cfg.OffsetQueue)
	if err != nil {
		return nil, err
	}
	channel, err := link.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	if err := channel.Confirm(false); err != nil {
		return nil, fmt.Errorf("ask for confirms: %w", err)
	}
	o := &offsetStore{channel: channel, queue: cfg.OffsetQueue, known: known}
	if there || known.stored.Load() != nil {
		found, err := o.find(ctx, heldHeartbeats*cfg.Heartbeat.D())
		if found || err != nil {
			return o, err
		}
	}
	start := startMark(cfg.StreamOffset, time.Now())
	o.start, o.from = &start, offsetArg(cfg.StreamOffset)
	if cfg.StreamOffset == "last" {
		o.patience = time.Now().Add(startPatience)
	}
	return o, nil
}

// exists asks on a channel of its own, as a wrong question closes its channel.
func exists(link *link, queue string) (bool, error) {
	channel, err := link.Channel()
	if err != nil {
		return false, fmt.Errorf("open channel: %w", err)
	}
	_, err = channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err == nil {
		return true, channel.Close()
	}
	var reply *amqp.Error
	if errors.As(err, &reply) && reply.Code == amqp.NotFound && relay.IsFatal(classify(err)) {
		return false, nil
	}
	return false, fmt.Errorf("check queue %q: %w", queue, err)
}

// find reads the offset. Reading takes it out of the others' sight until it is
// stored anew, so a connection that broke in between hides it until the broker
// has noticed, and to begin again meanwhile would repeat the stream or, with
// next, leave a hole. Therefore a queue without an offset is an error, unless
// this source knows the offset anyway. AMQP does not tell a message that is held
// from one that is not there, but nobody is held up for ever: a connection of
// which the broker hears nothing ends with its heartbeats, after which find
// reports that there is no offset. (A relay of an earlier version, which made the
// queue before it had something to store, may have left one that is empty.)
func (o *offsetStore) find(ctx context.Context, patience time.Duration) (found bool, err error) {
	if err := o.declare(); err != nil {
		return false, err
	}
	m, found, err := o.read(ctx)
	if err != nil {
		return false, err
	}
	if stored := o.known.stored.Load(); !found && stored != nil {
		if err := o.store(ctx, *stored); err != nil {
			return false, err
		}
		m, found = *stored, true
	}
	if !found {
		return false, o.await(patience)
	}
	o.known.missing, o.from = time.Time{}, m.arg()
	return true, nil
}

// await returns an error until the offset has been missing for so long that nobody
// can hold it.
func (o *offsetStore) await(patience time.Duration) error {
	if o.known.missing.IsZero() {
		o.known.missing = time.Now()
	}
	missing := time.Since(o.known.missing)
	if missing < patience {
		return fmt.Errorf("queue %q is empty: %w", o.queue, errHeld)
	}
	o.known.log.Warn("the stream's stored offset is lost: stream_offset says where to begin", "queue", o.queue, "empty", missing.Round(time.Second))
	return nil
}

func (o *offsetStore) declare() error {
	args := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum, amqp.QueueMaxLenArg: int64(1), amqp.QueueOverflowArg: amqp.QueueOverflowDropHead}
	if _, err := o.channel.QueueDeclare(o.queue, true, false, false, false, args); err != nil {
		return fmt.Errorf("declare queue %q: %w", o.queue, err)
	}
	return nil
}

func (o *offsetStore) read(ctx context.Context) (m mark, found bool, err error) {
	d, found, err := o.channel.Get(o.queue, false)
	if err != nil {
		return m, false, fmt.Errorf("read offset from queue %q: %w", o.queue, err)
	}
	if !found {
		return m, false, nil
	}
	if m, err = parseMark(strings.TrimSpace(string(d.Body))); err != nil {
		return m, false, relay.Fatal(fmt.Errorf("queue %q holds %.40q in place of an offset: delete it, and the stream is read from stream_offset", o.queue, d.Body))
	}
	o.known.stored.Store(&m)
	// Stored anew rather than put back, as a quorum queue drops what it has
	// delivered too often.
	if err := o.store(ctx, m); err != nil {
		return m, false, err
	}
	return m, true, d.Ack(false)
}

// begin stores where the stream was begun.
func (o *offsetStore) begin(ctx context.Context, start mark) error {
	if err := o.declare(); err != nil {
		return err
	}
	if err := o.store(ctx, start); err != nil {
		return err
	}
	o.start = nil
	return nil
}

// store replaces the offset; when it returns nil the broker has the new one.
func (o *offsetStore) store(ctx context.Context, m mark) error {
	confirm, err := o.channel.PublishWithDeferredConfirmWithContext(ctx, "", o.queue, false, false, amqp.Publishing{
		DeliveryMode: amqp.Persistent, ContentType: "text/plain", Body: []byte(m.String()),
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
