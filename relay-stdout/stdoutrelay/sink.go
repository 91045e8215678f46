package stdoutrelay

import (
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxKeptBuffer is what a sink keeps of its buffer between batches.
const maxKeptBuffer = 16 << 20

func newSink(cfg sinkConfig, outs *outputs) (relay.Sink, error) {
	w := writer{format: cfg.Format, layout: layouts[cfg.Format]}
	info, err := os.Stat(cfg.Path)
	if cfg.Path == "" || err == nil && !info.Mode().IsRegular() { // a pipe, a device
		out, err := outs.acquire(cfg.Path)
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

// writer lays a batch out in one buffer, so that one call writes it.
type writer struct {
	format string
	layout layout
	buf    []byte
	ends   []int // in buf, of each message; 0 for one that is not in it
}

// render fills buf with batch from message skip on, and returns the messages
// that do not fit the format.
func (w *writer) render(batch []relay.Message, skip int, header bool) *relay.BatchError {
	bad := &relay.BatchError{}
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
	w.buf, w.ends = w.buf[:0], make([]int, len(batch))
	if header && w.format == "csv" {
		w.buf = append(w.buf, csvHeader...)
	}
	failed := map[string]bool{}
	for i := skip; i < len(batch); i++ {
		m := &batch[i]
		err := error(relay.ErrHeldBack)
		if m.Key == "" || !failed[m.Key] {
			w.buf, err = w.layout(w.buf, m)
		}
		if err != nil {
			bad.Fail(i, err)
			failed[m.Key] = true
			continue
		}
		w.ends[i] = len(w.buf)
	}
	return bad
}
