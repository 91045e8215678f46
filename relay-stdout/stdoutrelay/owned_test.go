package stdoutrelay

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A file that the sink did not write loses nothing to the check command, to a position
// of another file or to the first message.
func TestForeignFileIsKept(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"jsonl", "json_pretty", "csv"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "precious")
			const precious = "precious, without a line end"
			want := func(after, want string) {
				t.Helper()
				if got, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(got), want) || want == precious && string(got) != want {
					t.Fatalf("after %s, the file is %q, %v; want %q", after, got, err, want)
				}
			}
			if err := os.WriteFile(path, []byte(precious), 0o600); err != nil {
				t.Fatal(err)
			}

			s := openFile(t, sinkConfig{Format: format, Path: path})
			if err := s.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			want("check", precious)

			inode := inodeOf(t, path)
			for name, at := range map[string]string{
				"another file":             `{"inode":1,"head":1,"head_length":3,"offset":0}`,
				"a file that was empty":    `{"inode":` + inode + `,"head":0,"head_length":0,"offset":0}`,
				"a file with another head": `{"inode":` + inode + `,"head":1,"head_length":3,"offset":3}`,
			} {
				if err := openFile(t, s.cfg).Resume(t.Context(), at, func(string) {}); err != nil {
					t.Fatal(err)
				}
				want("resuming from "+name, precious)
			}

			at, err := s.Position(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want("asking for the position", precious)
			if err := s.Publish(t.Context(), []relay.Message{event(1, `{"dedup_key":"1"}`)}); err != nil {
				t.Fatal(err)
			}
			want("publishing", precious+"\n")

			// A crash cut the first message: what was there before it stays.
			if err := os.Truncate(path, int64(len(precious)+3)); err != nil {
				t.Fatal(err)
			}
			if err := openFile(t, s.cfg).Resume(t.Context(), at, func(string) {}); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(path); strings.TrimRight(string(got), "\n") != precious {
				t.Fatalf("after a crash, the file is %q, want %q", got, precious)
			}
		})
	}
}

func inodeOf(t *testing.T, path string) string {
	t.Helper()
	s := openFile(t, sinkConfig{Format: "raw", Path: path})
	at, err := s.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.SplitN(at, ",", 2)[0], `{"inode":`)
}

// Opening and pinging a sink, as check does, creates no file and ends no reader of a pipe.
func TestCheckOpensNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "out")
	if err := openFile(t, sinkConfig{Format: "jsonl", Path: path}).Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(path) {
		t.Error("check created the file")
	}

	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	s, err := newSink(sinkConfig{Format: "jsonl", Path: path}, newOutputs(os.Stdout))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.(relay.Pinger).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	// Once a writer has come and gone, poll returns POLLHUP until the next one opens the
	// pipe. A Read proves nothing: before the first writer, it ends at once, too.
	fds := []unix.PollFd{{Fd: int32(reader.Fd()), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil || fds[0].Revents != 0 {
		t.Errorf("the pipe's reader sees events %#x, %v; want none", fds[0].Revents, err)
	}
}

// The sink follows no link, neither at the start nor while it runs.
func TestLinksAreRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	target, path := filepath.Join(dir, "target"), filepath.Join(dir, "out")
	if err := os.WriteFile(target, []byte("precious\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(path), os.Symlink(target, path)); err != nil {
			t.Fatal(err)
		}
	}

	link()
	if _, err := newSink(sinkConfig{Format: "jsonl", Path: path}, nil); !relay.IsFatal(err) {
		t.Errorf("newSink with a link = %v, want a fatal error", err)
	}
	_ = os.Remove(path)
	s := openFile(t, sinkConfig{Format: "jsonl", Path: path})
	if err := s.Publish(t.Context(), []relay.Message{event(1, "{}")}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&^0o640 != 0 {
		t.Errorf("the file has mode %v, %v; want at most 0640", info.Mode(), err)
	}
	link()
	if err := s.Publish(t.Context(), []relay.Message{event(2, "{}")}); !relay.IsFatal(err) {
		t.Errorf("Publish to a link = %v, want a fatal error", err)
	}
	if got, _ := os.ReadFile(target); string(got) != "precious\n" {
		t.Errorf("the link's target is %q", got)
	}
}
