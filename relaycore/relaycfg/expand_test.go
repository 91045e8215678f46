package relaycfg_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// A reference to a device or FIFO must neither block the caller nor fill its memory.
func TestExpandReadsRegularFilesOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, big := filepath.Join(dir, "fifo"), filepath.Join(dir, "big")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(big, make([]byte, relaycfg.MaxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}

	for path, want := range map[string]string{
		fifo: "not a regular file", link: "not a regular file", dir: "not a regular file", "/dev/ptmx": "not a regular file",
		"/dev/zero": "not a regular file", big: "larger than 1 MiB", filepath.Join(dir, "none"): "no such file",
	} {
		result := make(chan error, 1)
		go func() {
			_, err := relaycfg.ExpandString("${file:" + path + "}")
			result <- err
		}()
		select {
		case err := <-result:
			if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "${file:"+path+"}") {
				t.Errorf("ExpandString of %s = %v, want the reference and %q", path, err, want)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("ExpandString of %s blocks", path)
		}
	}
}

// Kubernetes mounts a secret as a link to a link.
func TestExpandFollowsLinksToFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "..2026"), 0o700); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"..data": "..2026", "password": "..data/password"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "..2026", "password"), []byte("secret\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := relaycfg.ExpandString("${file:" + filepath.Join(dir, "password") + "}")
	if err != nil || got != "secret" {
		t.Errorf("ExpandString = %q, %v; want secret", got, err)
	}
}
