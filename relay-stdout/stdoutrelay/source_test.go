package stdoutrelay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
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

func TestFollow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "in")
		cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
		s := openFileSource(t, cfg, relay.Checkpoint{}) // the file is yet to come
		appendTo(t, path, []byte("1\n\n2\r\n"))
		first := receive(t, s, 2)
		if diff := cmp.Diff([]string{"file:in:0", "file:in:3"}, ids(first)); diff != "" {
			t.Errorf("ids (-want +got):\n%s", diff)
		}
		if string(first[1].Body) != "2" {
			t.Errorf("body = %q, want it without its line end", first[1].Body)
		}
		at, err := s.Checkpoint(first)
		if err != nil {
			t.Fatal(err)
		}
		appendTo(t, path, []byte("3\n"))
		if diff := cmp.Diff([]string{"file:in:6"}, ids(receive(t, openFileSource(t, cfg, at), 1))); diff != "" {
			t.Errorf("ids after a restart (-want +got):\n%s", diff)
		}
	})
}

func bodies(batch []relay.Message) (out []string) {
	for i := range batch {
		out = append(out, string(batch[i].Body))
	}
	return out
}

// numbered returns lines that begin with the same 80 bytes.
func numbered(from, to int) (text []byte) {
	for n := from; n < to; n++ {
		text = fmt.Appendf(text, "{\"x\":%q,\"n\":%02d}\n", strings.Repeat("x", 80), n)
	}
	return text
}

// A file that does not only grow is an error, and every line before it is
// delivered. No line is lost or repeated without that error.
func TestChangedFile(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, path string, text []byte) { // keeps the inode, as copytruncate does
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rename := func(t *testing.T, from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(t *testing.T, path string){
		"copytruncate and more at once":       func(t *testing.T, path string) { write(t, path, numbered(20, 50)) },
		"copytruncate and as much":            func(t *testing.T, path string) { write(t, path, numbered(20, 40)) },
		"copytruncate and a little":           func(t *testing.T, path string) { write(t, path, numbered(20, 21)) },
		"copytruncate":                        func(t *testing.T, path string) { write(t, path, nil) },
		"renamed":                             func(t *testing.T, path string) { rename(t, path, path+".1") },
		"renamed, and more lines in the next": func(t *testing.T, path string) { rename(t, path, path+".1"); write(t, path, numbered(20, 50)) },
		"replaced by a copy with more": func(t *testing.T, path string) {
			write(t, path+".new", numbered(0, 30))
			rename(t, path+".new", path)
		},
		"deleted": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, down %v", name, down), func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "in")
				cfg := sourceConfig{Path: path, Follow: true, MaxLine: 1000}
				write(t, path, numbered(0, 20))
				s := openFileSource(t, cfg, relay.Checkpoint{})
				at, err := s.Checkpoint(receive(t, s, 20))
				if err != nil {
					t.Fatal(err)
				}
				if down {
					_ = s.Close()
				}
				change(t, path)
				var batch []relay.Message
				if down {
					_, err = newFileSource(cfg, env(at))
				} else {
					batch, err = s.Receive(withTimeout(t), 100)
				}
				if !relay.IsFatal(err) || !strings.Contains(fmt.Sprint(err), path) || len(batch) > 0 {
					t.Fatalf("received %d messages and %v, want a fatal error that names the file", len(batch), err)
				}

				// The way on: another path. Its ids are new ones.
				other := filepath.Join(filepath.Dir(path), "other")
				write(t, other, []byte("1\n"))
				cfg.Path = other
				next := receive(t, openFileSource(t, cfg, at), 1)
				if diff := cmp.Diff([]string{"file:other:1:0"}, ids(next)); diff != "" {
					t.Errorf("ids of a file of another name (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestChangedBeforeTheFirstCheckpoint: a relay delivers a file's first lines, and is killed
// before a position in that file is stored. If the file changed, that is an error, and stays
// one. The other lines are lost, and the new ones have ids that the inbox knows.
func TestChangedBeforeTheFirstCheckpoint(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][]byte{ // the inode stays
		"cut": nil, "cut, and a line": numbered(40, 41), "cut, and as much": numbered(40, 60), "cut, and more": numbered(40, 99),
	} {
		for _, first := range []bool{true, false} {
			for _, down := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, first file %v, down %v", name, first, down), func(t *testing.T) {
					t.Parallel()
					var cursor relaytest.Cursor
					var at relay.Checkpoint
					cfg := sourceConfig{Path: filepath.Join(t.TempDir(), "in"), Follow: true, MaxLine: 1000}
					open := func() (*fileSource, error) {
						s, err := newFileSource(cfg, cursor.Env(env(at)))
						if err == nil {
							t.Cleanup(func() { _ = s.Close() })
						}
						return s, err
					}
					mustOpen := func() *fileSource {
						s, err := open()
						if err != nil {
							t.Fatal(err)
						}
						return s
					}
					if !first {
						appendTo(t, cfg.Path, numbered(0, 30))
						s := mustOpen()
						var err error
						if at, err = s.Checkpoint(receive(t, s, 30)); err != nil {
							t.Fatal(err)
						}
						cfg.Path += ".1"
					}
					appendTo(t, cfg.Path, numbered(0, 20))
					s := mustOpen()
					old := ids(receive(t, s, 20))
					again := mustOpen() // and without a change all of it comes again
					if diff := cmp.Diff(old, ids(receive(t, again, 20))); diff != "" {
						t.Errorf("ids of the same file (-want +got):\n%s", diff)
					}
					if down {
						_ = s.Close()
					}
					if err := os.WriteFile(cfg.Path, change, 0o600); err != nil {
						t.Fatal(err)
					}
					if !down {
						if batch, err := s.Receive(withTimeout(t), 100); !relay.IsFatal(err) {
							t.Errorf("at work: received %d messages and %v, want a fatal error", len(batch), err)
						}
					}
					for range 2 {
						if _, err := open(); !relay.IsFatal(err) || !strings.Contains(fmt.Sprint(err), cfg.Path) {
							t.Fatalf("newFileSource = %v, want a fatal error that names the file", err)
						}
					}
					if batch, err := again.Receive(withTimeout(t), 100); !relay.IsFatal(err) {
						t.Errorf("received %d messages and %v, want a fatal error", len(batch), err)
					}

					// The way on: another path. Its ids are new ones.
					if err := os.Rename(cfg.Path, cfg.Path+".new"); err != nil {
						t.Fatal(err)
					}
					cfg.Path += ".new"
					appendTo(t, cfg.Path, numbered(60, 61))
					got := receive(t, mustOpen(), 1)[0].ID
					if want := map[bool]string{true: "file:in.new:1:0", false: "file:in.1.new:2:0"}[first]; got != want {
						t.Errorf("id under another name = %s, want %s", got, want)
					}
				})
			}
		}
	}
}

// TestBeginningIsStoredFirst: no line is received before the cursor has the file's beginning,
// and none is lost when that fails at first.
func TestBeginningIsStoredFirst(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n2\n3\n"))
	away, stored := errors.New("the database is away"), ""
	e := env(relay.Checkpoint{})
	e.FarEnds = `{"S": {"id": "a", "missed": 3}}`
	e.KeepFarEnds = func(context.Context, string) error { return away }
	s, err := newFileSource(sourceConfig{Path: path, Follow: true, MaxLine: 100}, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for range 2 {
		if batch, err := s.Receive(withTimeout(t), 3); len(batch) > 0 || !errors.Is(err, away) || relay.IsFatal(err) {
			t.Fatalf("received %d messages and %v, want %v alone", len(batch), err, away)
		}
	}
	s.env.KeepFarEnds = func(_ context.Context, state string) error { stored = state; return nil }
	if got := bodies(receive(t, s, 2)); !slices.Equal(got, []string{"1", "2"}) { // of three
		t.Errorf("received %v, want 1 and 2", got)
	}
	if got := bodies(receive(t, s, 1)); !slices.Equal(got, []string{"3"}) {
		t.Errorf("received %v, want 3", got)
	}
	if !strings.Contains(stored, `"missed":3`) || !strings.Contains(stored, path) {
		t.Errorf("far ends = %s, want the other ones too", stored)
	}
}

// What was written before the file was renamed is delivered, and the file can be
// read on under its new name.
func TestRenamedFileIsReadToItsEnd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100}
	appendTo(t, path, []byte("1\n"))
	s := openFileSource(t, cfg, relay.Checkpoint{})
	first := receive(t, s, 1)
	appendTo(t, path, []byte("2\n"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	first = append(first, receive(t, s, 1)...)
	if diff := cmp.Diff([]string{"1", "2"}, bodies(first)); diff != "" {
		t.Errorf("bodies (-want +got):\n%s", diff)
	}
	if _, err := s.Receive(withTimeout(t), 1); !relay.IsFatal(err) {
		t.Errorf("Receive at the end of a renamed file = %v, want a fatal error", err)
	}
	at, err := s.Checkpoint(first)
	if err != nil {
		t.Fatal(err)
	}
	appendTo(t, path+".1", []byte("3\n"))
	cfg.Path += ".1"
	if diff := cmp.Diff([]string{"file:in.1:4"}, ids(receive(t, openFileSource(t, cfg, at), 1))); diff != "" {
		t.Errorf("ids under the new name (-want +got):\n%s", diff)
	}
}

// Checkpoints of older versions have the inode and the first bytes, or the inode
// alone, and do not name their path.
func TestOldCheckpoints(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		state string // with the file's inode
		text  string
		want  []string
	}{
		"inode alone":          {state: `{"inode":%d,"offset":4}`, text: "1\n2\n3\n", want: []string{"file:in:4"}},
		"first bytes":          {state: `{"inode":%d,"offset":4,"head":3523407757,"head_length":1,"modified":1767225600000000000}`, text: "0\n2\n3\n", want: nil},
		"a later file":         {state: `{"inode":%d,"offset":4,"generation":2}`, text: "1\n2\n3\n", want: []string{"file:in:2:4"}},
		"another file":         {state: `{"inode":%d0,"offset":4,"generation":2}`, text: "1\n2\n", want: []string{"file:in:3:0", "file:in:3:2"}},
		"a file that is short": {state: `{"inode":%d,"offset":4}`, text: "1\n", want: []string{"file:in:1:0"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "in")
			appendTo(t, path, []byte(tc.text))
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == nil { // the head is that of "0"
				tc.state = strings.Replace(tc.state, "3523407757", fmt.Sprint(crc32.ChecksumIEEE([]byte("0"))), 1)
				tc.want = []string{"file:in:4"}
			}
			at := relay.Checkpoint{State: fmt.Appendf(nil, tc.state, inode(info)), LastID: 2}
			s := openFileSource(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, at)
			if diff := cmp.Diff(tc.want, ids(receive(t, s, len(tc.want)))); diff != "" {
				t.Errorf("after %s ids (-want +got):\n%s", at.State, diff)
			}
		})
	}
}

// The checksum covers the last line, however long it is, and follows the position.
func TestCheckpointNoticesTheLastLine(t *testing.T) {
	t.Parallel()
	for _, length := range []int{1, tailSize - 1, tailSize, 3 * tailSize, 500_000} {
		path := filepath.Join(t.TempDir(), "in")
		cfg := sourceConfig{Path: path, Follow: true, MaxLine: 100_000}
		text := []byte(strings.Repeat("1\n", 3000) + strings.Repeat("x", length) + "\n2\n")
		appendTo(t, path, text)
		s := openFileSource(t, cfg, relay.Checkpoint{})
		got := receive(t, s, 3002)
		at, err := s.Checkpoint(got[:3001])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"2"}, bodies(receive(t, openFileSource(t, cfg, at), 1))); diff != "" {
			t.Errorf("after a line of %d bytes (-want +got):\n%s", length, diff)
		}
		text[6000] = 'y'
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := newFileSource(cfg, env(at)); !relay.IsFatal(err) {
			t.Errorf("a line of %d bytes was overwritten: %v, want a fatal error", length, err)
		}
	}
}

func TestWithoutFollow(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n2"))
	s := openFileSource(t, sourceConfig{Path: path, MaxLine: 100}, relay.Checkpoint{})
	if got := receive(t, s, 2); string(got[1].Body) != "2" {
		t.Errorf("the last line, which has no end, was received as %q", got[1].Body)
	}
}

func TestUnfinishedLineIsWaitedFor(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n{\"a\":"))
	s := openFileSource(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
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
	s := openFileSource(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
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

// A file whose handle is stale, as after ESTALE, is opened again.
func TestStaleHandle(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	appendTo(t, path, []byte("1\n"))
	s := openFileSource(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
	receive(t, s, 1)
	for name, meet := range map[string]func() error{
		"read":   func() error { _, err := s.Receive(withTimeout(t), 10); return err },
		"at end": func() error { return s.stopped(io.EOF) },
	} {
		if s.f == nil {
			if err := s.open(); err != nil {
				t.Fatal(err)
			}
		}
		_ = s.f.Close()
		if err := meet(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s with a stale handle = %v, want %v", name, err, os.ErrClosed)
		}
	}
	appendTo(t, path, []byte("2\n"))
	if diff := cmp.Diff([]string{"file:in:2"}, ids(receive(t, s, 1))); diff != "" {
		t.Errorf("ids afterwards (-want +got):\n%s", diff)
	}
}

func TestLongLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "in")
	long := strings.Repeat("x", 1_000_000)
	appendTo(t, path, []byte(strings.Repeat("y", 100)+"\n"+long+"\n1\n"))
	s := openFileSource(t, sourceConfig{Path: path, Follow: true, MaxLine: 100}, relay.Checkpoint{})
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
	if _, err := newFileSource(sourceConfig{Path: filepath.Join(t.TempDir(), "in")}, env); !relay.IsFatal(err) {
		t.Errorf("a missing file = %v, want a fatal error", err)
	}
	if _, err := newFileSource(sourceConfig{Path: t.TempDir()}, env); !relay.IsFatal(err) {
		t.Errorf("a directory = %v, want a fatal error", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newFileSource(sourceConfig{Path: pipe}, env); !relay.IsFatal(err) { // and does not wait for a writer
		t.Errorf("a pipe = %v, want a fatal error", err)
	}
}

// A pipeline that is reloaded goes on with what it had not settled.
func TestStdinReload(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	go func() { _, _ = w.Write([]byte("1\n2\n3\n")) }()
	t.Cleanup(func() { _ = w.Close() })
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

// TestSourceFollowsNoLinkOut: a link that is made after the configuration was checked leads
// nowhere. Links within the permitted directory, as Kubernetes makes them, work.
func TestSourceFollowsNoLinkOut(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	access, err := relaycfg.NewAccess("", dir)
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{outside: "secret\n", filepath.Join(dir, "real"): "{}\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"out": outside, "in": "real", "up": "../" + filepath.Base(filepath.Dir(outside)) + "/secret"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
		cfg := sourceDefaults()
		cfg.Path = filepath.Join(dir, link)
		e := env(relay.Checkpoint{})
		e.OpenFile = access.Open
		s, err := newFileSource(cfg, e)
		if (err == nil) != (link == "in") {
			t.Errorf("opening link %s to %s = %v", link, target, err)
		}
		if err == nil {
			_ = s.Close()
		}
	}
}
