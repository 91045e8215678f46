package natsrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// window follows the confirmations of one batch at a time. It has a core subscription of
// its own. The client's PublishMsgAsync keeps a future, a map entry and a timer for each
// message, which cost more than the publish.
//
// A message's reply subject ends in its index in the batch. So a batch may begin
// only when no answer is outstanding; otherwise the connection ends, and its window
// with it.
type window struct {
	conn    *conn
	stream  string
	accept  []byte // the beginning of a confirmation by stream
	timeout time.Duration
	prefix  string
	replies []string // reply subjects by index: prefix and index
	timer   *time.Timer
	wake    chan struct{} // receives when done reaches target

	mu      sync.Mutex
	batch   []relay.Message
	refused map[string]bool // subjects to which the user may not publish
	out     relay.Outcome
	next    int   // messages at or behind it have not been sent
	silent  []int // messages that no stream answered
	sent    int
	done    int // answered, of sent
	target  int
	denied  bool // the server refused a message
	lastSeq uint64
	dups    []int // messages that the stream had
}

func newWindow(c *conn, stream string, timeout time.Duration) (*window, error) {
	name, err := json.Marshal(stream)
	if err != nil {
		return nil, err
	}
	w := &window{
		conn: c, stream: stream, timeout: timeout,
		accept: append([]byte(`{"stream":`), name...),
		prefix: nats.NewInbox() + ".", refused: make(map[string]bool),
		wake:  make(chan struct{}, 1),
		timer: time.NewTimer(timeout),
	}
	sub, err := c.nc.Subscribe(w.prefix+"*", w.answer)
	if err == nil {
		err = sub.SetPendingLimits(-1, -1)
	}
	if err != nil {
		return nil, fmt.Errorf("subscribe to confirmations: %w", err)
	}
	return w, nil
}

// begin starts a batch.
func (w *window) begin(batch []relay.Message) {
	for i := len(w.replies); i < len(batch); i++ {
		w.replies = append(w.replies, w.prefix+strconv.Itoa(i))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.batch, w.dups = batch, w.dups[:0]
	w.out.Reset(batch)
	w.next, w.sent, w.done, w.denied, w.silent, w.target = 0, 0, 0, false, nil, math.MaxInt
}

// end ends the batch. Answers that come later change nothing. The caller holds mu.
func (w *window) end() {
	w.out.Reset(nil)
	w.batch, w.next = nil, 0
}

// sending records that message i is about to be sent.
func (w *window) sending(i int) {
	w.mu.Lock()
	w.next = i + 1
	w.sent++
	w.mu.Unlock()
}

// unsend records that message i was not sent after all.
func (w *window) unsend(i int, err error) {
	w.mu.Lock()
	w.sent--
	w.out.Fail(i, err)
	w.mu.Unlock()
}

// inFlight reports whether message i is sent and not answered. The caller holds mu.
func (w *window) inFlight(i int) bool { return i < w.next && !w.out.Confirmed(i) && !w.out.Failed(i) }

// answer records one answer of the server. The client calls it from a goroutine of
// the subscription.
func (w *window) answer(m *nats.Msg) {
	i, err := strconv.Atoi(m.Subject[len(w.prefix):])
	if err != nil {
		return
	}
	seq, dup, err := w.parse(m)

	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.inFlight(i) {
		return
	}
	switch {
	case err == errNoResponders: //nolint:errorlint // as parse returns it
		w.silent = append(w.silent, i)
		fallthrough
	case err != nil:
		w.denied = true
		w.out.Fail(i, err)
	default:
		w.lastSeq = max(w.lastSeq, seq)
		w.out.Confirm(i)
	}
	if dup {
		w.dups = append(w.dups, i)
	}
	w.answered()
}

// answered counts an answer. The caller holds mu.
func (w *window) answered() {
	if w.done++; w.done >= w.target {
		w.target = math.MaxInt
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// deny fails what is in flight to subject, to which the user may not publish. The server
// answers nothing to such a message, and reports each to the connection. It returns false
// if no message has had the subject.
func (w *window) deny(subject string, err error) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.next {
		if w.batch[i].Subject == subject && w.inFlight(i) {
			w.out.Fail(i, classifyFor(fmt.Errorf("publish message %s: %w", w.batch[i].ID, err), true))
			w.denied, w.refused[strings.Clone(subject)] = true, true
			w.answered()
		}
	}
	return w.refused[subject]
}

// parse reads a confirmation. The usual form is parsed by hand, which spares five
// allocations; all others go through encoding/json.
func (w *window) parse(m *nats.Msg) (seq uint64, dup bool, err error) {
	if rest, ok := bytes.CutPrefix(m.Data, w.accept); ok {
		digits, isSeq := bytes.CutPrefix(bytes.TrimLeft(rest, ", "), []byte(`"seq":`))
		digits, isLast := bytes.CutSuffix(bytes.TrimLeft(digits, " "), []byte("}"))
		if seq, ok := decimal(digits); ok && isSeq && isLast {
			return seq, false, nil
		}
	}
	if len(m.Data) == 0 && m.Header.Get("Status") != "" {
		return 0, false, errNoResponders
	}
	var ack struct {
		jetstream.PubAck
		Error *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &ack); {
	case err != nil:
		return 0, false, fmt.Errorf("confirmation %.80q is not JSON: %w", m.Data, err)
	case ack.Error != nil:
		return 0, false, classifyPubAck(ack.Error, w.stream)
	case ack.Stream != w.stream:
		return 0, false, relay.Fatal(fmt.Errorf("stream %q stored the message, not stream %q: subject and stream do not fit",
			ack.Stream, w.stream))
	}
	return ack.Sequence, ack.Duplicate, nil
}

func decimal(digits []byte) (n uint64, ok bool) {
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, len(digits) > 0
}

// wait returns nil once want of the messages sent are answered.
func (w *window) wait(ctx context.Context, want int) error {
	for {
		w.mu.Lock()
		before := w.done
		if before >= want {
			w.mu.Unlock()
			return nil
		}
		w.target = want
		w.mu.Unlock()

		w.timer.Reset(w.timeout)
		select {
		case <-w.wake:
		case <-ctx.Done():
			return ctx.Err()
		case <-w.conn.closed:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return w.conn.lost()
		case <-w.timer.C:
			w.mu.Lock()
			progress := w.done > before
			w.mu.Unlock()
			if !progress {
				return fmt.Errorf("%w (%s)", errConfirmTimeout, w.timeout)
			}
		}
	}
}

// waitFor returns nil once message i is answered.
func (w *window) waitFor(ctx context.Context, i int) error {
	for {
		w.mu.Lock()
		pending, done := w.inFlight(i), w.done
		w.mu.Unlock()
		if !pending {
			return nil
		}
		if err := w.wait(ctx, done+1); err != nil {
			return err
		}
	}
}

// state returns the number of messages in flight, and whether the server has
// refused one of the batch.
func (w *window) state() (outstanding int, denied bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent - w.done, w.denied
}
