package natsrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

var (
	errAckTimeout   = errors.New("the server did not confirm in time")
	errNoResponders = errors.New("no stream answered")
)

// window follows the confirmations of one batch at a time. It is a core
// subscription of its own: the client's PublishAsync keeps a future, a map entry
// and a timer for each message, which costs more than the publish.
//
// A message's reply subject ends in its index in the batch, so it may be used
// again only when nothing is outstanding. A batch that ends with something
// outstanding ends its connection, and its window with it.
type window struct {
	link    *link
	stream  string
	accept  []byte // how a confirmation by stream begins
	timeout time.Duration
	prefix  string
	replies []string // prefix and index

	fast *fast // nil where the stream takes no fast batches

	wake  chan struct{}
	timer *time.Timer

	mu      sync.Mutex
	state   []settled // by index in the batch
	errs    map[int]error
	sent    int
	done    int
	target  int // done at which wake is due
	denied  int // refusals by the server
	lastSeq uint64
	dups    int
}

type settled uint8

const (
	unsent settled = iota
	inFlight
	confirmed
	refused
)

func newWindow(l *link, stream string, timeout time.Duration) (*window, error) {
	accept, err := json.Marshal(stream)
	if err != nil {
		return nil, err
	}
	w := &window{
		link: l, stream: stream, timeout: timeout,
		accept: append([]byte(`{"stream":`), accept...),
		prefix: nats.NewInbox() + ".",
		wake:   make(chan struct{}, 1),
		timer:  time.NewTimer(timeout),
		target: math.MaxInt,
	}
	sub, err := l.nc.Subscribe(w.prefix+">", w.settle)
	if err != nil {
		return nil, fmt.Errorf("subscribe to confirmations: %w", err)
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, fmt.Errorf("subscribe to confirmations: %w", err)
	}
	return w, nil
}

// begin forgets the last batch and expects one of n messages.
func (w *window) begin(n int) {
	for i := len(w.replies); i < n; i++ {
		w.replies = append(w.replies, w.prefix+strconv.Itoa(i))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if cap(w.state) < n {
		w.state = make([]settled, n)
	}
	w.state = w.state[:n]
	clear(w.state)
	clear(w.errs)
	w.sent, w.done, w.denied, w.target = 0, 0, 0, math.MaxInt
}

// sending marks message i as in flight; it precedes the publish.
func (w *window) sending(i int) {
	w.mu.Lock()
	w.state[i] = inFlight
	w.sent++
	w.mu.Unlock()
}

// refuse settles a message that was not sent.
func (w *window) refuse(i int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state[i] == inFlight {
		w.done++
	}
	w.state[i] = refused
	w.setErr(i, err)
}

// found settles a message that turned out to be at the destination already.
func (w *window) found(i int) {
	w.mu.Lock()
	w.state[i] = confirmed
	w.dups++
	w.mu.Unlock()
}

func (w *window) setErr(i int, err error) {
	if w.errs == nil {
		w.errs = make(map[int]error)
	}
	w.errs[i] = err
}

// settle takes one answer of the server. The client calls it from a goroutine.
func (w *window) settle(m *nats.Msg) {
	if strings.HasSuffix(m.Subject, fastSuffix) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.fast != nil {
			w.settleFast(m)
		}
		return
	}
	i, err := strconv.Atoi(m.Subject[len(w.prefix):])
	if err != nil {
		return
	}
	seq, dup, err := w.parse(m)
	w.mu.Lock()
	if i >= len(w.state) || w.state[i] != inFlight {
		w.mu.Unlock()
		return
	}
	w.done++
	if err != nil {
		w.state[i] = refused
		w.denied++
		w.setErr(i, err)
	} else {
		w.state[i] = confirmed
		w.lastSeq = max(w.lastSeq, seq)
		if dup {
			w.dups++
		}
	}
	w.rouse()
	w.mu.Unlock()
}

// rouse ends a wait when what it waits for has come; w.mu is held.
func (w *window) rouse() {
	if w.done < w.target {
		return
	}
	w.target = math.MaxInt
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// parse reads a confirmation. The usual one is taken apart by hand; whatever
// looks different goes through encoding/json.
func (w *window) parse(m *nats.Msg) (seq uint64, dup bool, err error) {
	if rest, ok := bytes.CutPrefix(m.Data, w.accept); ok {
		if at := bytes.Index(rest, []byte(`"seq":`)); at >= 0 && at < 4 {
			digits := bytes.TrimLeft(rest[at+len(`"seq":`):], " ")
			n := 0
			for ; n < len(digits) && digits[n] >= '0' && digits[n] <= '9'; n++ {
				seq = seq*10 + uint64(digits[n]-'0')
			}
			if n > 0 && n < len(digits) && digits[n] == '}' {
				return seq, false, nil
			}
		}
	}
	if len(m.Data) == 0 && m.Header.Get("Status") != "" {
		return 0, false, errNoResponders
	}
	var ack struct {
		Stream    string              `json:"stream"`
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(m.Data, &ack); {
	case err != nil:
		return 0, false, fmt.Errorf("confirmation %.80q is not JSON: %w", m.Data, err)
	case ack.Error != nil:
		return 0, false, classifyPubAck(ack.Error, w.stream)
	case ack.Stream != w.stream:
		return 0, false, relay.Fatal(fmt.Errorf("stream %q stored the message, not stream %q: subject and stream do not fit", ack.Stream, w.stream))
	}
	return ack.Seq, ack.Duplicate, nil
}

// wait returns nil once want of the messages sent are settled.
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
		case <-w.link.closed:
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return w.link.lost()
		case <-w.timer.C:
			w.mu.Lock()
			progress := w.done > before
			w.mu.Unlock()
			if !progress {
				return fmt.Errorf("%w (%s)", errAckTimeout, w.timeout)
			}
		}
	}
}

// waitFor returns nil once message i is settled.
func (w *window) waitFor(ctx context.Context, i int) error {
	for {
		w.mu.Lock()
		pending, done := w.state[i] == inFlight, w.done
		w.mu.Unlock()
		if !pending {
			return nil
		}
		if err := w.wait(ctx, done+1); err != nil {
			return err
		}
	}
}

// failed reports whether the server has refused a message of the batch.
func (w *window) failed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.denied > 0
}

func (w *window) outstanding() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent - w.done
}
