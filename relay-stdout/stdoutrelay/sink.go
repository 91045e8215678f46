package stdoutrelay

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errClosed = errors.New("the sink is closed")

// maxKeptBuffer is what a sink keeps of its buffer between batches.
const maxKeptBuffer = 16 << 20

func newSink(cfg sinkConfig, outs *outputs) (relay.Sink, error) {
	w := writer{format: cfg.Format, layout: layoutOf(cfg.Format)}
	info, err := os.Stat(cfg.Path)
	if cfg.Path == "" || err == nil && !info.Mode().IsRegular() { // a pipe, a device
		out, err := outs.take(cfg.Path)
		if err != nil {
			return nil, err
		}
		return &stream{writer: w, outs: outs, out: out}, nil
	}
	f := &file{writer: w, cfg: cfg}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// writer lays a batch out in one buffer, so that it is written at once.
type writer struct {
	format string
	layout layout
	buf    []byte
	ends   []int           // in buf, of each message; -1 for one that is refused
	failed map[string]bool // keys of refused messages
}

// render fills buf and returns the messages that do not fit the format.
func (w *writer) render(batch []relay.Message, header bool) relay.BatchError {
	var bad relay.BatchError
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
	w.buf, w.ends = w.buf[:0], w.ends[:0]
	clear(w.failed)
	if header && w.format == "csv" {
		w.buf = append(w.buf, csvHeader...)
	}
	for i := range batch {
		m := &batch[i]
		if len(w.failed) > 0 && w.failed[m.Key] {
			bad.Fail(i, relay.ErrHeldBack)
			w.ends = append(w.ends, -1)
			continue
		}
		var err error
		if w.buf, err = w.layout(w.buf, m); err != nil {
			bad.Fail(i, err)
			w.ends = append(w.ends, -1)
			if m.Key != "" {
				if w.failed == nil {
					w.failed = make(map[string]bool)
				}
				w.failed[m.Key] = true
			}
			continue
		}
		w.ends = append(w.ends, len(w.buf))
	}
	return bad
}

// stream is standard output, a pipe or a device: nothing can be taken back.
type stream struct {
	writer
	outs   *outputs
	out    *output
	began  bool
	late   []string // ids of messages that are out since their Publish failed
	closed bool
}

// Publish implements [relay.Sink]. A write that ends in the middle of a message
// is completed by the next call, which then counts the message as written. So is
// one that cannot be interrupted when ctx ends: of its messages nothing is known
// until the reader reads on.
func (s *stream) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.out.begin(ctx); err != nil {
		return err
	}
	defer s.out.end()
	skipped := s.written(batch)
	todo := batch[skipped:]
	bad := s.render(todo, !s.began)
	w := &writing{of: s, buf: s.buf, ends: s.ends}
	n, known, err := s.out.write(ctx, w)
	if !known {
		w.ids = idsOf(todo)
		s.out.left, s.buf, s.ends = w, nil, nil // w's now
		return err
	}
	s.began = s.began || n > 0
	if err == nil {
		return shift(bad, skipped).Err()
	}
	for i, end := range s.ends {
		if end > n {
			bad.Fail(i, err)
		}
	}
	w.ids = idsOf(todo)
	s.out.left = w.behind(n)
	return shift(bad, skipped).Err()
}

// written returns how many messages at the beginning of batch are out already.
func (s *stream) written(batch []relay.Message) int {
	n := 0
	for n < min(len(batch), len(s.late)) && batch[n].ID != "" && batch[n].ID == s.late[n] {
		n++
	}
	s.late = nil
	return n
}

func shift(e relay.BatchError, by int) *relay.BatchError {
	if by == 0 {
		return &e
	}
	var out relay.BatchError
	for i, err := range e.Failed {
		out.Fail(i+by, err)
	}
	return &out
}

// Close implements [relay.Sink].
func (s *stream) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.outs.release(s.out)
}

// Ping implements [relay.Pinger].
func (s *stream) Ping(context.Context) error {
	_, err := s.out.f.Stat()
	return err
}

// Guarantee implements [relay.Guarantor].
func (s *stream) Guarantee() relay.Guarantee {
	return relay.Guarantee{
		Delivery: "at least once",
		Dedup:    "the dedup_key of the envelope lets the reader drop duplicates",
		Order:    "total",
		Weakest:  "what was written last before a crash is written again; a reader that goes away",
	}
}

// classify marks what an operator has to cure. A full disk cures itself.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist), errors.Is(err, errNotFile):
		return relay.Fatal(err)
	case errors.Is(err, io.ErrShortWrite):
		return err
	}
	return err
}
