package natsrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A stream that allows fast batches (allow_batched, NATS 2.14) confirms messages by
// the hundred instead of one by one. Each message says by its reply subject which
// batch it belongs to and where it stands there:
//
//	<prefix>.<batch>.<messages to a confirmation>.fail.<number>.<operation>.$FI
//
// "fail" asks the stream to end the batch in front of a message that it refuses or
// never sees. So a message is never stored behind one that is missing, which lets
// everything be on its way at once where it otherwise could not be.
const (
	fastStart  = "0"
	fastAppend = "1"
	fastEnd    = "3" // a message of its own, not stored
	fastSuffix = ".$FI"

	fastLeast = 8   // messages for which a batch is worth its frame
	fastFlow  = 500 // messages to a confirmation; the server takes no more
)

// Answers about a fast batch as a whole.
const (
	codeBatchDisabled jetstream.ErrorCode = 10205
	codeBatchUnknown  jetstream.ErrorCode = 10208
	codeBatchTooMany  jetstream.ErrorCode = 10211
)

var (
	errBatchLost = errors.New("the server has lost the batch")
	errBatchGap  = errors.New("a message was lost on its way to the stream")
)

// fast follows one fast batch at a time. Its window's mutex guards it.
type fast struct {
	prefix  string   // up to the number
	replies []string // of messages that are neither first nor last
	order   []int    // which message of the batch bears each number, less one
	acked   int      // of order, stored
	ended   bool     // the server takes no more of it
	denied  bool     // because it refused a message
	over    bool     // its last answer has come
	lost    error    // why nobody knows of what is in flight
}

func newFast(prefix string, maxInFlight int) *fast {
	flow := max(1, min(fastFlow, maxInFlight/2))
	return &fast{prefix: prefix + strings.TrimPrefix(nats.NewInbox(), nats.InboxPrefix) + "." + strconv.Itoa(flow) + ".fail."}
}

func (f *fast) reply(number int, operation string) string {
	if operation != fastAppend {
		return f.prefix + strconv.Itoa(number) + "." + operation + fastSuffix
	}
	for len(f.replies) <= number {
		f.replies = append(f.replies, f.prefix+strconv.Itoa(len(f.replies))+"."+fastAppend+fastSuffix)
	}
	return f.replies[number]
}

// takesFast reports whether a server of that version knows fast batches.
func takesFast(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major > 2 || (major == 2 && minor >= 14))
}

// fits reports whether batch is worth a fast batch, and can be on its way at once.
func (f *fast) fits(batch []relay.Message) bool {
	if f == nil || len(batch) < fastLeast {
		return false
	}
	bytes := 0
	for i := range batch {
		bytes += len(batch[i].Body)
	}
	return bytes < maxBytesInFlight/2 // headers, too
}

// sendFast publishes batch as one fast batch. The caller waits for its end.
func (s *sink) sendFast(ctx context.Context, batch []relay.Message) error {
	w, f := s.win, s.win.fast
	w.mu.Lock()
	*f = fast{prefix: f.prefix, replies: f.replies, order: f.order[:0]}
	w.mu.Unlock()
	clear(s.blocked)
	for i := range batch {
		m := &batch[i]
		if len(s.blocked) > 0 && s.blocked[m.Key] {
			w.refuse(i, relay.ErrHeldBack)
			continue
		}
		number, operation := len(f.order)+1, fastAppend
		if number == 1 {
			operation = fastStart
		}
		msg, size, _ := s.enc.encode(m, f.reply(number, operation))
		if err := s.check(ctx, m, size); err != nil {
			if s.refuse(i, m, err); relay.IsFatal(err) {
				return errors.Join(errNotSent, s.endFast(batch))
			}
			continue
		}
		if err := w.fastRoom(ctx, s.cfg.MaxInFlight); err != nil {
			return err
		}
		if !w.sendingFast(i) {
			return errors.Join(errNotSent, s.endFast(batch))
		}
		if err := s.link.nc.PublishMsg(msg); err != nil {
			// It is the connection's: what the client refuses of a message (its size,
			// subject, header names) check has refused before.
			return classifyDial(fmt.Errorf("publish message %s: %w", m.ID, err))
		}
	}
	return s.endFast(batch)
}

// endFast asks for the batch's last answer, which counts as one more message.
func (s *sink) endFast(batch []relay.Message) error {
	w, f := s.win, s.win.fast
	w.mu.Lock()
	wanted := len(f.order) > 0 && !f.over
	if wanted {
		w.sent++
	}
	w.mu.Unlock()
	if !wanted {
		return nil
	}
	subject := batch[f.order[0]].Subject
	if err := s.link.nc.PublishRequest(subject, f.reply(len(f.order)+1, fastEnd), nil); err != nil {
		return classifyDial(fmt.Errorf("end a batch: %w", err))
	}
	return nil
}

// fastRoom waits until a message more may be in flight.
func (w *window) fastRoom(ctx context.Context, most int) error {
	w.mu.Lock()
	sent := w.sent
	full := sent-w.done >= most
	w.mu.Unlock()
	if !full {
		return nil
	}
	return w.wait(ctx, sent-most+1)
}

// sendingFast marks message i as in flight, unless the server takes no more.
func (w *window) sendingFast(i int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fast.ended {
		return false
	}
	w.state[i] = inFlight
	w.sent++
	w.fast.order = append(w.fast.order, i)
	return true
}

// fastAnswer is any of the server's answers to a fast batch.
type fastAnswer struct {
	Type   string              `json:"type"` // ack, gap, err; the last answer has none
	Seq    uint64              `json:"seq"`  // of the batch where there is a type, else of the stream
	Stream string              `json:"stream"`
	Count  int                 `json:"count"`
	Error  *jetstream.APIError `json:"error"`
}

// settleFast takes one answer of the server; w.mu is held.
func (w *window) settleFast(m *nats.Msg) {
	f := w.fast
	if f.over || !strings.HasPrefix(m.Subject, f.prefix) {
		return
	}
	number, _, _ := strings.Cut(m.Subject[len(f.prefix):], ".")
	at, err := strconv.Atoi(number)
	if err != nil {
		return
	}
	var a fastAnswer
	if len(m.Data) == 0 && m.Header.Get("Status") != "" {
		w.refuseFast(at, errNoResponders)
		return
	}
	if err := json.Unmarshal(m.Data, &a); err != nil {
		w.loseFast(fmt.Errorf("answer %.80q to a batch is not JSON: %w", m.Data, err))
		return
	}
	switch {
	case a.Type == "ack":
		w.storedFast(int(a.Seq))
	case a.Type == "gap":
		f.ended = true // the last answer says how much is stored
	case a.Type == "err" && a.Error != nil:
		f.ended = true
		w.denyFast(int(a.Seq), classifyPubAck(a.Error, w.stream))
	case a.Error != nil:
		w.refuseFast(at, classifyFast(a.Error, w.stream))
	case a.Stream != w.stream:
		w.loseFast(relay.Fatal(fmt.Errorf("stream %q stored the messages, not stream %q: subject and stream do not fit", a.Stream, w.stream)))
	default:
		w.dups += max(0, a.Count-int(a.Seq-min(a.Seq, w.lastSeq)))
		w.lastSeq = max(w.lastSeq, a.Seq)
		w.storedFast(a.Count)
		w.overFast()
	}
}

// classifyFast is classifyPubAck for answers that only fast batches get.
func classifyFast(apiErr *jetstream.APIError, stream string) error {
	code := apiErr.ErrorCode
	if code == codeBatchUnknown {
		return fmt.Errorf("stream %q: %w", stream, errBatchLost)
	}
	if code == codeBatchDisabled || code == codeBatchTooMany {
		return fmt.Errorf("stream %q takes no batch now: %s (%d)", stream, apiErr.Description, code)
	}
	return classifyPubAck(apiErr, stream)
}

// storedFast confirms the first n messages.
func (w *window) storedFast(n int) {
	f := w.fast
	for n = min(n, len(f.order)); f.acked < n; f.acked++ {
		w.state[f.order[f.acked]] = confirmed
	}
	w.done = f.acked
	w.rouse()
}

// denyFast settles the message with that number as refused.
func (w *window) denyFast(number int, err error) {
	f := w.fast
	if number < 1 || number > len(f.order) || w.state[f.order[number-1]] != inFlight {
		return
	}
	f.denied = true
	w.state[f.order[number-1]] = refused
	w.setErr(f.order[number-1], err)
}

// refuseFast takes up the refusal of a message outside of any batch. When it is
// the first one then there is no batch and none of it is stored. When it is another,
// the batch ends in front of it, which the last answer will say, unless the server
// knows of no batch at all any more.
func (w *window) refuseFast(number int, err error) {
	switch {
	case number == 1:
		w.fast.ended = true
		w.denyFast(number, err)
		w.overFast()
	case errors.Is(err, errBatchLost), errors.Is(err, errNoResponders):
		w.loseFast(err)
	default:
		w.fast.ended = true
		w.denyFast(number, err)
	}
}

// loseFast ends the batch without knowledge of what is in flight.
func (w *window) loseFast(err error) {
	w.fast.lost = err
	w.endFast()
}

// overFast ends the batch: what is neither stored nor refused was not taken.
func (w *window) overFast() {
	f := w.fast
	for _, i := range f.order[f.acked:] {
		if w.state[i] == inFlight {
			w.state[i] = unsent
			f.ended = true
		}
	}
	w.endFast()
}

func (w *window) endFast() {
	f := w.fast
	f.over, f.ended = true, f.ended || f.lost != nil
	w.done = w.sent
	w.rouse()
}

// stop says why the last batch ended before its end, if it did: nil where a
// refusal says it.
func (w *window) stop() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch f := w.fast; {
	case f.lost != nil:
		return f.lost
	case f.ended && !f.denied:
		return errBatchGap
	}
	return nil
}
