package stdoutrelay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollEvery bounds how long a write waits before it looks at its context.
	pollEvery = 50 * time.Millisecond
	// pipeChunk is what a pipe that is ready for writing accepts without
	// blocking: POSIX's PIPE_BUF on Linux, and more than that elsewhere.
	pipeChunk = 4096
)

// outputs are the standard output, the pipes and the devices that a process
// writes to, by path. Its sinks share them. A message that was cut is completed
// before another one begins, even if another pipeline writes that one.
type outputs struct {
	mu   sync.Mutex
	open map[string]*output
}

func newOutputs(stdout *os.File) *outputs {
	out := newOutput("", stdout)
	out.users = 1 // standard output stays open
	return &outputs{open: map[string]*output{"": out}}
}

// acquire returns the output at path; release gives it back.
func (o *outputs) acquire(path string) (*output, error) {
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

// release closes the output after its last user. If that user was cut in the
// middle of a message, a goroutine completes the message first. The goroutine
// ends when the reader continues or goes away, or with the process.
func (o *outputs) release(out *output) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out.users--; out.users > 0 {
		return nil
	}
	select {
	case out.turn <- struct{}{}:
		idle := len(out.rest) == 0
		out.end()
		if idle {
			return o.close(out)
		}
	default: // an earlier goroutine is still at work
	}
	go func() {
		if out.begin(context.Background()) == nil {
			out.end()
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if out.users == 0 {
			_ = o.close(out) // the reader is gone or has everything
		}
	}()
	return nil
}

// close needs mu to be held.
func (o *outputs) close(out *output) error {
	if o.open[out.path] == out {
		delete(o.open, out.path)
	}
	return out.f.Close()
}

// openPipe opens what is not a regular file. It does not wait for a pipe's
// reader, because the open call could not be cancelled.
func openPipe(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("open %s: no reader has opened the pipe; start one: %w", path, err)
	}
	if err != nil {
		return nil, classify(fmt.Errorf("open %s: %w", path, err))
	}
	return f, nil
}

// output is one of them. A sink writes to it while it holds the turn.
type output struct {
	path  string
	f     *os.File
	turn  chan struct{} // full while a sink has it
	rest  []byte        // of a message that was cut; guarded by turn
	users int           // guarded by outputs.mu
}

func newOutput(path string, f *os.File) *output {
	return &output{path: path, f: f, turn: make(chan struct{}, 1)}
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

// begin takes the turn and completes the message that was cut.
func (o *output) begin(ctx context.Context) error {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return o.failed(stalled(ctx))
	}
	n, err := o.write(ctx, o.rest)
	if o.rest = o.rest[n:]; err != nil {
		o.end()
	}
	return err
}

func (o *output) end() { <-o.turn }

// write writes b and returns how much of it is written. It writes only while
// the file is ready, and not more than a pipe accepts without blocking, so that
// it can return when ctx ends. Deadlines would need a descriptor that does not
// block, and other processes may share the one of standard output.
func (o *output) write(ctx context.Context, b []byte) (n int, err error) {
	raw, err := o.f.SyscallConn()
	if err != nil {
		return 0, o.failed(err)
	}
	for n < len(b) && err == nil {
		if ctx.Err() != nil {
			return n, o.failed(stalled(ctx))
		}
		if lost := raw.Control(func(fd uintptr) {
			var k int
			k, err = writeReady(int(fd), b[n:min(len(b), n+pipeChunk)])
			n += k
		}); lost != nil {
			return n, o.failed(lost)
		}
	}
	if errors.Is(err, unix.EPIPE) {
		_, err = o.f.Write(b[n:]) // ends the process if this is its standard output, as in any pipeline
	}
	return n, o.failed(err)
}

// writeReady waits for a while until fd is ready and writes to it.
func writeReady(fd int, b []byte) (n int, err error) {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err = unix.Poll(poll, int(pollEvery.Milliseconds())); n > 0 && err == nil {
		n, err = unix.Write(fd, b)
	}
	if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
		err = nil
	}
	return max(n, 0), err
}

func stalled(ctx context.Context) error {
	return fmt.Errorf("its reader has stopped reading: %w", context.Cause(ctx))
}

func (o *output) failed(err error) error {
	if err == nil {
		return nil
	}
	return classify(fmt.Errorf("write to %s: %w", o.f.Name(), err))
}
