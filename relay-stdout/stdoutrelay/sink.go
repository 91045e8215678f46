package stdoutrelay

import (
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxKeptBuffer is what a sink keeps of its buffer between batches.
const maxKeptBuffer = 16 << 20

func newSink(cfg sinkConfig, outs *outputs) (relay.Sink, error) {
	regular, err := look(cfg.Path)
	if err != nil {
		return nil, err
	}
	if !regular { // a pipe, a device
		s := &stream{outs: outs, path: cfg.Path}
		s.format = cfg.Format
		return s, nil
	}
	f := &file{cfg: cfg}
	f.format = cfg.Format
	return f, nil
}

// look reports whether there is, or would be, a regular file at path, and why the sink
// could not open it. It opens nothing: a pipe's reader would see its writer go.
func look(path string) (regular bool, err error) {
	if path == "" || slices.Contains(ownOutputs, path) {
		return false, nil
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		regular, err = true, unix.Access(filepath.Dir(path), unix.W_OK|unix.X_OK)
	case err != nil:
	case info.Mode()&os.ModeSymlink != 0:
		err = unix.ELOOP
	case info.IsDir():
		err = errNotFile
	default:
		regular, err = info.Mode().IsRegular(), unix.Access(path, unix.W_OK)
	}
	if err != nil {
		return false, classify(&os.PathError{Op: "open", Path: path, Err: err})
	}
	return regular, nil
}

// ownOutputs are links to what the process has open, not to files.
var ownOutputs = []string{"/dev/stdout", "/dev/stderr"}

// writer lays a batch out in one buffer, so that one call writes it.
type writer struct {
	format  string
	buf     []byte
	ends    []int // in buf, of each message that fits the format
	outcome relay.Outcome
}

// forget gives up a buffer that is too large to be kept.
func (w *writer) forget() {
	if cap(w.buf) > maxKeptBuffer {
		w.buf = nil
	}
}

// render fills buf with batch, and fails the messages that do not fit the format.
func (w *writer) render(batch []relay.Message, header bool) {
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
