package stdoutrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func openStream(t testing.TB, outs *outputs, path string) *stream {
	t.Helper()
	s, err := newSink(sinkConfig{Format: "jsonl", Path: path}, outs)
	if err != nil {
		t.Fatalf("newSink(%q) = %v", path, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s.(*stream)
}

func newPipe(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// within fails the test where f takes longer than the contract allows.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		t.Fatalf("%s still hangs after 2 s", what)
	}
}

func TestPipeWithoutReader(t *testing.T) {
	t.Parallel()
	path, outs := newPipe(t), newOutputs(os.Stdout)
	var err error
	s := openStream(t, outs, path)
	within(t, "Publish", func() { err = s.Publish(t.Context(), []relay.Message{event(1, "{}")}) })
	if err == nil || relay.IsFatal(err) || relay.IsPermanent(err) || !strings.Contains(err.Error(), "no reader") {
		t.Errorf("Publish to a pipe without a reader = %v, want a transient error that says so", err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := s.Publish(t.Context(), []relay.Message{event(1, "{}")}); err != nil {
		t.Errorf("Publish to a pipe with a reader = %v", err)
	}
}

// farEnd is a pipe without a reader.
type farEnd struct {
	outs   *outputs
	path   string
	r      *os.File
	finish func() // closes what a sink leaves open
}

func openFarEnd(t testing.TB, kind string) farEnd {
	t.Helper()
	if kind == "named" {
		path := newPipe(t)
		r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return farEnd{newOutputs(os.Stdout), path, r, func() {}}
	}
	var fd [2]int
	syscall.ForkLock.RLock() // no child may hold the pipe open; not every system has pipe2
	err := syscall.Pipe(fd[:])
	if err == nil {
		syscall.CloseOnExec(fd[0])
		syscall.CloseOnExec(fd[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	if kind == "pollable" {
		if err := syscall.SetNonblock(fd[1], true); err != nil {
			t.Fatal(err)
		}
	}
	// As the standard output of a process is: a pipe that blocks knows no deadlines.
	r, w := os.NewFile(uintptr(fd[0]), "r"), os.NewFile(uintptr(fd[1]), "stdout")
	if timed := w.SetWriteDeadline(time.Time{}) == nil; timed != (kind == "pollable") {
		t.Fatalf("a %s pipe knows deadlines: %v", kind, timed)
	}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	return farEnd{newOutputs(w), "", r, func() { _ = w.Close() }}
}

// lines reads all there is, when the last writer has closed the pipe.
func (f farEnd) lines() <-chan []string {
	all := make(chan []string, 1)
	go func() {
		b, _ := io.ReadAll(f.r)
		all <- strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	}()
	return all
}

func unconfirmed(err error, batch []relay.Message) (rest []relay.Message) {
	var partial *relay.BatchError
	if !errors.As(err, &partial) {
		return batch
	}
	for i := range batch {
		if partial.Failed[i] != nil {
			rest = append(rest, batch[i])
		}
	}
	return rest
}

// A reader that stalls does not hold up a caller that cancels. A line of which it has one
// half is completed before another one begins.
func TestStalledReader(t *testing.T) {
	t.Parallel()
	line := func(n int) string { return fmt.Sprintf(`{"n":%d,"x":"%s"}`, n, strings.Repeat("x", 5_000)) }
	for _, kind := range []string{"named", "pollable", "blocking"} {
		for _, reopen := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, reopened %v", kind, reopen), func(t *testing.T) {
				t.Parallel()
				end := openFarEnd(t, kind)
				s := openStream(t, end.outs, end.path)
				var todo []relay.Message
				for n := range 100 {
					todo = append(todo, event(n, line(n)))
				}
				for range 3 {
					ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
					defer cancel()
					var err error
					within(t, "Publish", func() { err = s.Publish(ctx, todo) })
					if !errors.Is(err, context.DeadlineExceeded) || relay.IsFatal(err) || relay.IsPermanent(err) {
						t.Errorf("Publish to a stalled reader = %v, want a transient error with the context's", err)
					}
					todo = unconfirmed(err, todo)
				}
				if reopen {
					// The same path for another pipeline, and for the same one loaded again.
					other := openStream(t, end.outs, end.path)
					within(t, "Close", func() { _ = s.Close() })
					s = other
				}
				all := end.lines()
				if err := s.Publish(t.Context(), todo); err != nil {
					t.Errorf("Publish when the reader reads on = %v", err)
				}
				_ = s.Close()
				end.finish()
				got := <-all
				if !reopen && len(got) != 100 {
					t.Errorf("%d lines came out, want 100", len(got))
				}
				next := 0
				for i, text := range got {
					var n int
					if _, err := fmt.Sscanf(text, `{"n":%d`, &n); err != nil || text != line(n) || n > next {
						t.Fatalf("line %d is %.50q of %d bytes, want %d, or one before that again", i, text, len(text), next)
					}
					next = max(next, n+1)
				}
				if next != 100 {
					t.Errorf("%d different lines came out, want 100", next)
				}
			})
		}
	}
}

// A line that a closed sink has left cut is completed when the reader reads on.
func TestCutLineOutlivesItsSink(t *testing.T) {
	t.Parallel()
	end := openFarEnd(t, "named")
	s := openStream(t, end.outs, end.path)
	text := `"` + strings.Repeat("x", 200_000) + `"`
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Publish(ctx, []relay.Message{event(1, text), event(2, text)}); err == nil {
		t.Fatal("Publish to a full pipe = nil, want an error")
	}
	within(t, "Close", func() { _ = s.Close() })
	if got := <-end.lines(); len(got) != 1 || got[0] != text {
		t.Errorf("%d lines came out, the first of %d bytes; want the one that was cut, %d bytes", len(got), len(got[0]), len(text))
	}
	end.outs.mu.Lock()
	defer end.outs.mu.Unlock()
	if n := len(end.outs.open); n != 1 {
		t.Errorf("%d outputs are open, want standard output alone", n)
	}
}
