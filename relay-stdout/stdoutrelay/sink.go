package stdoutrelay

import (
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxKeptBuffer is what a sink keeps of its buffer between batches.
const maxKeptBuffer = 16 << 20

func newSink(cfg sinkConfig, outs *outputs) (relay.Sink, error) {
	info, err := os.Stat(cfg.Path)
	if cfg.Path == "" || err == nil && !info.Mode().IsRegular() { // a pipe, a device
		out, err := outs.acquire(cfg.Path)
		if err != nil {
			return nil, err
		}
		s := &stream{outs: outs, out: out}
		s.format = cfg.Format
		return s, nil
	}
	f := &file{cfg: cfg}
	f.format = cfg.Format
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

// writer lays a batch out in one buffer, so that one call writes it.
type writer struct {
	format  string
	buf     []byte
	ends    []int // in buf, of each message that fits the format
	outcome relay.Outcome
}

// render fills buf with batch, and fails the messages that do not fit the format.
func (w *writer) render(batch []relay.Message, header bool) {
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
	w.buf, w.ends = w.buf[:0], make([]int, len(batch))
	if header && w.format == "csv" {
		w.buf = append(w.buf, csvHeader...)
	}
	w.outcome.Reset(batch)
	for i := range batch {
		if w.outcome.Held(i) {
			continue
		}
		var err error
		if w.buf, err = layouts[w.format](w.buf, &batch[i]); err != nil {
			w.outcome.Fail(i, err)
		}
		w.ends[i] = len(w.buf)
	}
}
