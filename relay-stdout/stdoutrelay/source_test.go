package stdoutrelay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func ids(batch []relay.Message) (out []string) {
	for i := range batch {
		out = append(out, batch[i].ID)
	}
	return out
}

func receive(t *testing.T, s relay.Source, n int) (got []relay.Message) {
	t.Helper()
	for len(got) < n {
		batch, err := s.Receive(withTimeout(t), n-len(got))
		if err != nil {
			t.Fatalf("Receive = %v after %d messages", err, len(got))
		}
		got = append(got, batch...)
	}
	return got
}

func TestFollowThroughRotation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, testFollowThroughRotation)
}

func testFollowThroughRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n\n2\r\n"))
	cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
	s := openTailed(t, cfg, relay.Checkpoint{})
	first := receive(t, s, 2)
	if got, want := ids(first), []string{"file:in:0", "file:in:3"}; !slices.Equal(got, want) {
		t.Errorf("ids = %v, want %v", got, want)
	}
	if string(first[1].Body) != "2" {
		t.Errorf("body = %q, want it without its line end", first[1].Body)
	}
	at, err := s.Checkpoint(first)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, path, []byte("3\n"))
	// Two rotations while nobody reads.
	for _, text := range []string{"4\n", "5\n"} {
		rotateFile(t, path, 9)
		appendTo(t, path, []byte(text))
	}
	got := receive(t, openTailed(t, cfg, at), 3)
	if want := []string{"file:in:6", "file:in:1:0", "file:in:2:0"}; !slices.Equal(ids(got), want) {
		t.Errorf("after two rotations ids = %v, want %v", ids(got), want)
	}
	for i, want := range []string{"3", "4", "5"} {
		if string(got[i].Body) != want {
			t.Errorf("body %d = %q, want %q", i, got[i].Body, want)
		}
	}
}

// rotateFile does what logrotate does without create; keep files stay.
func rotateFile(t *testing.T, path string, keep int) {
	t.Helper()
	_ = os.Remove(rotated(path, keep))
	for n := keep; n > 0; n-- {
		if err := os.Rename(rotated(path, n-1), rotated(path, n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func bodies(batch []relay.Message) (out []string) {
	for i := range batch {
		out = append(out, string(batch[i].Body))
	}
	return out
}

// The file that was being read is deleted by rotation; the oldest one that is left
// comes next, and not the newest.
func TestRotatedBeyondKeep(t *testing.T) {
	t.Parallel()
	for name, restart := range map[string]bool{"while it is read": false, "while the source is down": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "in")
				cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
				appendTo(t, path, []byte("1\n"))
				s := openTailed(t, cfg, relay.Checkpoint{})
				at, err := s.Checkpoint(receive(t, s, 1))
				if err != nil {
					t.Fatal(err)
				}
				for n := 2; n < 10; n++ {
					rotateFile(t, path, 3)
					appendTo(t, path, fmt.Appendf(nil, "%d\n", n))
				}
				if restart {
					_ = s.Close()
					s = openTailed(t, cfg, at)
				}
				got := receive(t, s, 4)
				if want := []string{"6", "7", "8", "9"}; !slices.Equal(bodies(got), want) {
					t.Errorf("received %v, want %v, which is what is left", bodies(got), want)
				}
				if want := "file:in:1:0"; got[0].ID != want {
					t.Errorf("id = %s, want %s", got[0].ID, want)
				}
			})
		})
	}
}

// Files that were read before the one that is gone are not read again.
func TestRotatedBeyondKeepOlderFiles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "in")
		appendTo(t, path+".3", []byte("0\n"))
		hourAgo := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		if err := os.Chtimes(path+".3", hourAgo, hourAgo); err != nil {
			t.Fatal(err)
		}
		cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
		appendTo(t, path, []byte("1\n"))
		s := openTailed(t, cfg, relay.Checkpoint{})
		at, err := s.Checkpoint(receive(t, s, 1))
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		appendTo(t, path+".1", []byte("2\n"))
		appendTo(t, path, []byte("3\n"))
		if got, want := bodies(receive(t, openTailed(t, cfg, at), 2)), []string{"2", "3"}; !slices.Equal(got, want) {
			t.Errorf("received %v, want %v", got, want)
		}
	})
}

// collect receives until the test ends.
func collect(t *testing.T, s relay.Source) (got func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	t.Cleanup(func() { cancel(); <-ended })
	var mu sync.Mutex
	var all []string
	go func() {
		defer close(ended)
		for {
			batch, err := s.Receive(ctx, 10)
			if err != nil {
				return
			}
			mu.Lock()
			all = append(all, bodies(batch)...)
			mu.Unlock()
		}
	}()
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// A writer goes on with the file that logrotate has renamed until it is told.
func TestWriterReopensLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "in")
		appendTo(t, path, []byte("1\n\"unfin"))
		s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
		got := collect(t, s)
		check := func(want ...string) {
			t.Helper()
			if !slices.Equal(got(), want) {
				t.Fatalf("received %q, want %q", got(), want)
			}
		}
		check("1")
		rotateFile(t, path, 3)
		appendTo(t, path, nil) // logrotate's create
		time.Sleep(time.Minute)
		check("1")
		appendTo(t, path+".1", []byte("ished\"\n2\n")) // not told yet
		time.Sleep(time.Second)
		check("1", `"unfinished"`, "2")
		appendTo(t, path, []byte("5\n")) // one process has the new file
		time.Sleep(time.Second)
		appendTo(t, path+".1", []byte("3\n")) // and one not yet
		time.Sleep(reopenWithin - 2*followEvery)
		appendTo(t, path+".1", []byte("4\n\"cut"))
		time.Sleep(reopenWithin - 2*followEvery)
		check("1", `"unfinished"`, "2", "3", "4")
		time.Sleep(4 * followEvery)
		check("1", `"unfinished"`, "2", "3", "4", `"cut`, "5")
	})
}

// A file that follows one of the same inode is another one.
func TestInodeOfADeletedFile(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", headSize)
	for name, tc := range map[string]struct {
		mark          func(at string) string
		before, after string
		want          []string
	}{
		"another beginning": {before: "1\n2\n", after: "3\n4\n5\n", want: []string{"file:in:1:0", "file:in:1:2", "file:in:1:4"}},
		"a smaller file":    {before: "1\n2\n", after: "3\n", want: []string{"file:in:1:0"}},
		"the same file":     {before: "1\n2\n", after: "1\n2\n3\n", want: []string{"file:in:4"}},
		"a long beginning":  {before: long + "1\n", after: long + "1\n2\n", want: []string{fmt.Sprint("file:in:", headSize+2)}},
		"a mark of old": {
			mark: func(at string) string {
				var m mark
				if err := json.Unmarshal([]byte(at), &m); err != nil {
					return err.Error()
				}
				return fmt.Sprintf(`{"inode":%d,"offset":%d}`, m.Inode, m.Offset)
			},
			before: "1\n2\n", after: "3\n4\n5\n", want: []string{"file:in:4"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "in")
			cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
			appendTo(t, path, []byte(tc.before))
			s := openTailed(t, cfg, relay.Checkpoint{})
			at, err := s.Checkpoint(receive(t, s, strings.Count(tc.before, "\n")))
			if err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			if tc.mark != nil {
				at.State = json.RawMessage(tc.mark(string(at.State)))
			}
			// Written over, which is how it gets the same inode for certain.
			if err := os.WriteFile(path, []byte(tc.after), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := ids(receive(t, openTailed(t, cfg, at), len(tc.want))); !slices.Equal(got, tc.want) {
				t.Errorf("after %s ids = %v, want %v", at.State, got, tc.want)
			}
		})
	}
}

// The first lines of a file that comes next are marked as well as those of the
// file that was opened at the start: it is told from another one of its inode.
func TestMarkOfTheNextFile(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(t *testing.T, path string, s *tailed){
		"rotated": func(t *testing.T, path string, _ *tailed) {
			rotateFile(t, path, 3)
			appendTo(t, path, []byte("2\n"))
		},
		"emptied in place": func(t *testing.T, path string, _ *tailed) {
			if err := os.WriteFile(path, []byte("2"), 0o600); err != nil {
				t.Fatal(err)
			}
			appendTo(t, path, []byte("\n"))
		},
		"empty a moment ago": func(t *testing.T, path string, s *tailed) {
			if err := os.Truncate(path, 0); err != nil {
				t.Fatal(err)
			}
			if what, err := s.atEnd(); err != nil || what != again {
				t.Fatalf("atEnd = %v, %v, want the file from its beginning", what, err)
			}
			file := s.lines.in
			s.lines.in = bufio.NewReader(readerFunc(func(b []byte) (int, error) {
				if s.at.Offset == 0 {
					appendTo(t, path, []byte("2\n"))
				}
				return file.Read(b)
			}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "in")
				cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
				appendTo(t, path, []byte("\"a long first line\"\n"))
				s := openTailed(t, cfg, relay.Checkpoint{})
				first := receive(t, s, 1)
				next(t, path, s)
				at, err := s.Checkpoint(append(first, receive(t, s, 1)...))
				if err != nil {
					t.Fatal(err)
				}
				var m mark
				if err := json.Unmarshal(at.State, &m); err != nil || m.Generation != 1 || m.Offset != 2 || m.HeadLength != 2 || m.Modified == 0 {
					t.Errorf("checkpoint = %s, want generation 1, offset 2, head_length 2 and a time", at.State)
				}
				_ = s.Close()
				if err := os.WriteFile(path, []byte("3\n4\n"), 0o600); err != nil { // which keeps the inode
					t.Fatal(err)
				}
				if got, want := ids(receive(t, openTailed(t, cfg, at), 1)), []string{"file:in:2:0"}; !slices.Equal(got, want) {
					t.Errorf("of another file with its inode ids = %v, want %v", got, want)
				}
			})
		})
	}
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// A mark of old does not say which of the kept files have been read.
func TestMarkOfOldOfADeletedFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	for n, text := range []string{"3\n", "2\n", "1\n"} {
		appendTo(t, rotated(path, n), []byte(text))
	}
	s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{State: json.RawMessage(`{"inode":1,"offset":2}`)})
	if got, want := bodies(receive(t, s, 1)), []string{"3"}; !slices.Equal(got, want) {
		t.Errorf("received %v first, want %v and none of the rotated files", got, want)
	}
}

// A file that is put in the place of the followed one is read however old it is.
func TestReplacedByAnOlderFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "in")
		appendTo(t, path, []byte("1\n"))
		s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
		receive(t, s, 1)
		longAgo := time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
		for n, text := range []string{"2\n", "an older one\n"} {
			appendTo(t, path+".new", []byte(text))
			if err := os.Chtimes(path+".new", longAgo, longAgo); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(path+".new", rotated(path, n)); err != nil {
				t.Fatal(err)
			}
		}
		got := receive(t, s, 1)
		if want := "file:in:1:0"; got[0].ID != want || string(got[0].Body) != "2" {
			t.Errorf("received %s %q, want %s 2", got[0].ID, got[0].Body, want)
		}
	})
}

func TestEmptiedInPlace(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("\"a long first line\"\n"))
	s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
	receive(t, s, 1)
	if err := os.WriteFile(path, []byte("2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, s, 1); got[0].ID != "file:in:1:0" || string(got[0].Body) != "2" {
		t.Errorf("received %s %q, want file:in:1:0 2", got[0].ID, got[0].Body)
	}
}

func TestWithoutFollow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n2"))
	s := openTailed(t, sourceConfig{Path: path, MaxLine: 100}, relay.Checkpoint{})
	if got := receive(t, s, 2); string(got[1].Body) != "2" {
		t.Errorf("the last line, which has no end, was received as %q", got[1].Body)
	}
}

func TestUnfinishedLineIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n{\"a\":"))
	s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
	receive(t, s, 1)
	appendTo(t, path, []byte("2}\n"))
	if got := receive(t, s, 1); string(got[0].Body) != `{"a":2}` || got[0].ID != "file:in:2" {
		t.Errorf("received %s %q, want the line as a whole", got[0].ID, got[0].Body)
	}
}

// Lines that were read before an error are delivered before it is reported.
func TestReadError(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n2\n3\n4\n"))
	s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
	bad := errors.New("input/output error")
	s.lines.in = bufio.NewReader(io.MultiReader(strings.NewReader("1\n2\n3"), iotest.ErrReader(bad)))
	var got []relay.Message
	var failures int
	for len(got) < 4 {
		batch, err := s.Receive(withTimeout(t), 10)
		if err != nil && len(batch) > 0 {
			t.Fatalf("Receive = %d messages and %v, want one or the other", len(batch), err)
		}
		if err != nil {
			if failures++; failures > 1 || !errors.Is(err, bad) {
				t.Fatalf("Receive = %v, want %v once", err, bad)
			}
		}
		got = append(got, batch...)
	}
	if want := []string{"file:in:0", "file:in:2", "file:in:4", "file:in:6"}; failures != 1 || !slices.Equal(ids(got), want) {
		t.Errorf("%d failures, ids = %v, want %v", failures, ids(got), want)
	}
	at, err := s.Checkpoint(got)
	if err != nil {
		t.Fatal(err)
	}
	if want := `"offset":8`; !strings.Contains(string(at.State), want) {
		t.Errorf("checkpoint = %s, want %s", at.State, want)
	}
}

// A file that cannot be looked at any more, as after ESTALE, is opened anew.
func TestStaleHandle(t *testing.T) {
	t.Parallel()
	for name, look := range map[string]func(s *tailed) error{
		"before lines are read": func(s *tailed) error { _, err := s.read(10); return err },
		"at the end":            func(s *tailed) error { _, err := s.atEnd(); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "in")
			appendTo(t, path, []byte("1\n"))
			s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
			receive(t, s, 1)
			_ = s.f.Close()
			if err := look(s); !errors.Is(err, os.ErrClosed) {
				t.Errorf("the handle that is no good = %v, want %v", err, os.ErrClosed)
			}
			appendTo(t, path, []byte("2\n"))
			if got, want := ids(receive(t, s, 1)), []string{"file:in:2"}; !slices.Equal(got, want) {
				t.Errorf("afterwards ids = %v, want %v", got, want)
			}
		})
	}
}

func TestLongLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	long := strings.Repeat("x", 1_000_000)
	appendTo(t, path, []byte(strings.Repeat("y", 100)+"\n"+long+"\n1\n"))
	s := openTailed(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
	got := receive(t, s, 3)
	if got[0].Err != nil || len(got[0].Body) != 100 {
		t.Errorf("a line of max_line: error %v, %d bytes", got[0].Err, len(got[0].Body))
	}
	if !relay.IsPermanent(got[1].Err) || string(got[1].Body) != long[:100] {
		t.Errorf("a line beyond max_line: error %v, %d bytes; want a permanent one and its beginning", got[1].Err, len(got[1].Body))
	}
	if string(got[2].Body) != "1" {
		t.Errorf("the line behind it = %q", got[2].Body)
	}
}

func TestSourceErrors(t *testing.T) {
	t.Parallel()
	env := relay.Env{}
	if _, err := newFile(sourceConfig{Path: filepath.Join(t.TempDir(), "in")}, env); !relay.IsFatal(err) {
		t.Errorf("a missing file = %v, want a fatal error", err)
	}
	if _, err := newFile(sourceConfig{Path: t.TempDir()}, env); !relay.IsFatal(err) {
		t.Errorf("a directory = %v, want a fatal error", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newFile(sourceConfig{Path: pipe}, env); !relay.IsFatal(err) { // and does not wait for a writer
		t.Errorf("a pipe = %v, want a fatal error", err)
	}
}

// A pipeline that is reloaded goes on with what it had not settled.
func TestStdinReload(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	go func() { _, _ = w.Write([]byte("1\n2\n3\n")) }()
	in := newStdin(r)
	first := in.open(sourceDefaults())
	got := receive(t, first, 2)
	_ = first.Ack(t.Context(), got[:1])
	_ = first.Close()
	second := receive(t, in.open(sourceDefaults()), 2)
	if string(second[0].Body) != "2" || string(second[1].Body) != "3" {
		t.Errorf("after a reload: %q, %q; want 2, 3", second[0].Body, second[1].Body)
	}
	if second[0].ID != got[1].ID {
		t.Errorf("id = %s, was %s", second[0].ID, got[1].ID)
	}
}
