package stdoutrelay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// outputs are the standard output, the pipes and the devices that a process
// writes to, by path. Its sinks share them: a message that was cut is completed
// before another one begins, also where that comes from another pipeline, or from
// the same one after a reload.
type outputs struct {
	mu   sync.Mutex
	open map[string]*output
}

func newOutputs(stdout *os.File) *outputs {
	out := newOutput("", stdout)
	out.users = 1 // it stays open: it is not ours
	return &outputs{open: map[string]*output{"": out}}
}

// take returns the output at path; release gives it back.
func (o *outputs) take(path string) (*output, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.open[path]
	if out == nil || !out.isAt(path) {
		f, err := openPipe(path)
		if err != nil {
			return nil, err
		}
		out = newOutput(path, f)
		o.open[path] = out
	}
	out.users++
	return out, nil
}

func (o *outputs) release(out *output) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out.users--; out.users > 0 {
		return nil
	}
	if out.idle() {
		return o.close(out)
	}
	// Nobody waits for this goroutine: it ends when the reader reads on or goes
	// away, or with the process.
	go o.finish(out)
	return nil
}

// finish completes the message in which out's last sink was cut. Where the reader
// has gone away nobody misses the rest.
func (o *outputs) finish(out *output) {
	if out.begin(context.Background()) == nil {
		out.end()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if out.users == 0 {
		_ = o.close(out)
	}
}

// close wants mu to be held.
func (o *outputs) close(out *output) error {
	if o.open[out.path] == out {
		delete(o.open, out.path)
	}
	return out.f.Close()
}

// openPipe opens what is not a regular file. To wait here for a pipe's reader
// would be to wait where nothing can be cancelled.
func openPipe(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_APPEND
	info, err := os.Stat(path)
	pipe := err == nil && info.Mode()&os.ModeNamedPipe != 0
	if pipe {
		flags |= syscall.O_NONBLOCK
	}
	f, err := os.OpenFile(path, flags, 0)
	if pipe && errors.Is(err, syscall.ENXIO) {
		return nil, fmt.Errorf("open %s: no reader has opened the pipe; start one: %w", path, syscall.ENXIO)
	}
	if err != nil {
		return nil, classify(fmt.Errorf("open %s: %w", path, err))
	}
	return f, nil
}

// output is one of them. Who writes to it holds its turn.
type output struct {
	path  string
	f     *os.File
	timed bool          // a write can be interrupted by a deadline
	turn  chan struct{} // full while somebody has it
	left  *writing      // what was begun and not finished
	users int           // guarded by outputs.mu
}

func newOutput(path string, f *os.File) *output {
	return &output{path: path, f: f, timed: f.SetWriteDeadline(time.Time{}) == nil, turn: make(chan struct{}, 1)}
}

// isAt reports whether path still leads to the output.
func (o *output) isAt(path string) bool {
	ours, err := o.f.Stat()
	if err != nil || path == "" {
		return path == ""
	}
	there, err := os.Stat(path)
	return err == nil && os.SameFile(ours, there)
}

// writing is a batch that is being written, or the rest of a message in which an
// earlier one was cut.
type writing struct {
	of   *stream
	buf  []byte
	ends []int    // in buf, of each message; -1 for one that is not there
	ids  []string // of the messages, once the batch they came in is gone
	rest bool     // buf begins in the middle of a message
	done chan written
}

type written struct {
	n   int
	err error
}

// begin takes the turn, when what was left unfinished has been written.
func (o *output) begin(ctx context.Context) error {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return o.failed(stalled(ctx))
	}
	for o.left != nil {
		n, known, err := o.write(ctx, o.left)
		if known {
			o.left.late(n)
			o.left = o.left.behind(n)
		}
		if err != nil {
			o.end()
			return err
		}
	}
	return nil
}

func (o *output) end() { <-o.turn }

// idle reports whether nothing is being written or left to be.
func (o *output) idle() bool {
	select {
	case o.turn <- struct{}{}:
		defer o.end()
		return o.left == nil
	default:
		return false
	}
}

// write returns how much of w is written. While that is not known, because the
// write goes on although ctx has ended, nobody else may use w's bytes, and the
// next call with w goes on waiting for it.
func (o *output) write(ctx context.Context, w *writing) (n int, known bool, err error) {
	switch {
	case len(w.buf) == 0:
		return 0, true, nil
	case o.timed:
		known = true
		n, err = o.writeTimed(ctx, w.buf)
	default:
		n, known, err = o.writeApart(ctx, w)
	}
	return n, known, o.failed(err)
}

func (o *output) writeTimed(ctx context.Context, b []byte) (int, error) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = o.f.SetWriteDeadline(time.Unix(1, 0))
		close(ended)
	})
	n, err := o.f.Write(b)
	if stop() {
		return n, err
	}
	<-ended
	_ = o.f.SetWriteDeadline(time.Time{})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = stalled(ctx)
	}
	return n, err
}

// writeApart is for what knows no deadlines: standard output, which others may
// have open too and would find changed, and most devices.
func (o *output) writeApart(ctx context.Context, w *writing) (n int, known bool, err error) {
	if w.done == nil {
		// Nothing can interrupt this goroutine: whoever writes next waits for it.
		w.done = make(chan written, 1)
		go func() {
			n, err := o.f.Write(w.buf)
			w.done <- written{n, err}
		}()
	}
	select {
	case r := <-w.done:
		return r.n, true, r.err
	case <-ctx.Done():
		return 0, false, stalled(ctx)
	}
}

func stalled(ctx context.Context) error {
	return fmt.Errorf("its reader does not read on: %w", context.Cause(ctx))
}

func (o *output) failed(err error) error {
	if err == nil {
		return nil
	}
	return classify(fmt.Errorf("write to %s: %w", o.f.Name(), err))
}

// cut returns the message in the middle of which w ends when n bytes of it are
// written, -1 for none.
func (w *writing) cut(n int) int {
	begin, inside := 0, w.rest
	for i, end := range w.ends {
		if end < 0 {
			continue
		}
		if end > n {
			if begin < n || inside {
				return i
			}
			return -1
		}
		begin, inside = end, false
	}
	return -1
}

// behind returns what is missing of the message in which w was cut; nil when it
// ended between two.
func (w *writing) behind(n int) *writing {
	i := w.cut(n)
	if i < 0 {
		return nil
	}
	buf := append([]byte(nil), w.buf[n:w.ends[i]]...)
	return &writing{of: w.of, buf: buf, ends: []int{len(buf)}, ids: w.ids[i : i+1], rest: true}
}

// late tells the sink that w is written up to n, where its Publish could not say so.
func (w *writing) late(n int) {
	w.of.began = w.of.began || n > 0
	for i, end := range w.ends {
		if end >= 0 && end <= n {
			w.of.late = append(w.of.late, w.ids[i])
		}
	}
}

// idsOf copies what a batch will not keep.
func idsOf(batch []relay.Message) []string {
	ids := make([]string, len(batch))
	for i := range batch {
		ids[i] = strings.Clone(batch[i].ID)
	}
	return ids
}
