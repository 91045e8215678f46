package stdoutrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errClosed = errors.New("the sink is closed")

// maxKeptBuffer is what a sink keeps of its buffer between batches.
const maxKeptBuffer = 16 << 20

func newSink(cfg sinkConfig, stdout *os.File) (relay.Sink, error) {
	w := writer{format: cfg.Format, layout: layoutOf(cfg.Format)}
	if cfg.Path == "" {
		return &stream{writer: w, out: stdout}, nil
	}
	info, err := os.Stat(cfg.Path)
	if err == nil && !info.Mode().IsRegular() { // a pipe, a device
		out, err := os.OpenFile(cfg.Path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, classify(fmt.Errorf("open %s: %w", cfg.Path, err))
		}
		return &stream{writer: w, out: out, own: true}, nil
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
	out    *os.File
	own    bool
	began  bool
	closed bool

	torn   []byte // what is missing of the last message written
	tornID string
}

// Publish implements [relay.Sink]. A write that ends in the middle of a message
// is completed by the next call, which then counts the message as written.
func (s *stream) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(s.torn) > 0 {
		n, err := s.out.Write(s.torn)
		s.torn = s.torn[n:]
		if err != nil {
			return classify(fmt.Errorf("write to %s: %w", s.out.Name(), err))
		}
	}
	skipped := 0
	if s.tornID != "" && batch[0].ID == s.tornID {
		skipped = 1
	}
	bad := s.render(batch[skipped:], !s.began)
	n, err := s.out.Write(s.buf)
	s.began = s.began || n > 0
	s.tornID = ""
	if err == nil {
		return shift(bad, skipped).Err()
	}
	err = classify(fmt.Errorf("write to %s: %w", s.out.Name(), err))
	begin := 0
	for i, end := range s.ends {
		switch {
		case end < 0:
			continue
		case end > n:
			bad.Fail(i, err)
			if begin < n { // this is the one that was cut
				s.torn, s.tornID = append([]byte(nil), s.buf[n:end]...), batch[skipped+i].ID
				n = end
			}
		}
		begin = end
	}
	return shift(bad, skipped).Err()
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

// Close implements [relay.Sink]. It leaves standard output open: it is not ours.
func (s *stream) Close() error {
	s.closed = true
	if s.own {
		s.own = false
		return s.out.Close()
	}
	return nil
}

// Ping implements [relay.Pinger].
func (s *stream) Ping(context.Context) error {
	_, err := s.out.Stat()
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
