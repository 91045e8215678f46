package docs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	patience = 20 * time.Second // until the output of a block that waits matches
	sentinel = "--- end of block ---"
)

// TestBlocksAreMarked needs no server: each shell and SQL block of every page
// states whether it runs.
func TestBlocksAreMarked(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		if _, err := read(page); err != nil {
			t.Errorf("%s: %v", page, err)
		}
	}
}

// TestPages runs the pages one after another: they use the same names in
// PostgreSQL and at the brokers.
func TestPages(t *testing.T) {
	if os.Getenv("RELAY_DOCS") != "1" {
		t.Skip("make docs runs the pages' blocks against real servers (RELAY_DOCS=1)")
	}
	addresses := addresses(t)
	for _, page := range pages(t) {
		blocks, err := read(page)
		if err != nil {
			t.Errorf("%s: %v", page, err)
			continue
		}
		any := false
		for _, b := range blocks {
			any = any || b.runs()
		}
		if any {
			t.Run(strings.TrimPrefix(page, root+"/"), func(t *testing.T) { runPage(t, blocks, addresses) })
		}
	}
}

const root = "../.."

func pages(t *testing.T) []string {
	t.Helper()
	var pages []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "relay-*/README.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	return pages
}

func read(page string) ([]block, error) {
	text, err := os.ReadFile(page)
	if err != nil {
		return nil, err
	}
	return parse(string(text))
}

// addresses maps the addresses that pages name to those of the test's servers.
func addresses(t *testing.T) map[string]string {
	t.Helper()
	usual := map[string]string{
		"localhost:5432": "RELAY_TEST_DATABASE_URL",
		"localhost:4222": "RELAY_TEST_NATS_URL",
		"localhost:9092": "RELAY_TEST_KAFKA_BROKERS",
		"localhost:6379": "RELAY_TEST_REDIS_URL",
		"localhost:5672": "RELAY_TEST_RABBITMQ_URL",
		"localhost:9324": "RELAY_TEST_SQS_ENDPOINT",
	}
	actual := make(map[string]string)
	for address, variable := range usual {
		value := os.Getenv(variable)
		if value == "" {
			t.Fatalf("%s is not set; run make docs", variable)
		}
		if _, rest, ok := strings.Cut(value, "://"); ok {
			value = rest
		}
		if _, rest, ok := strings.Cut(value, "@"); ok {
			value = rest
		}
		actual[address], _, _ = strings.Cut(value, "/")
	}
	for _, address := range []string{"localhost:9090", "localhost:8080"} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		actual[address] = listener.Addr().String()
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return actual
}

func runPage(t *testing.T, blocks []block, addresses map[string]string) {
	began := time.Now()
	clean(t)
	s := startShell(t, addresses)
	for _, b := range blocks {
		if !b.runs() {
			continue
		}
		got, err := s.run(t, b)
		if err == nil && b.output != nil {
			for deadline := time.Now().Add(patience); b.waits() && !matches(b.output.text, got) && err == nil && time.Now().Before(deadline); {
				time.Sleep(200 * time.Millisecond)
				got, err = s.run(t, b)
			}
		}
		if err != nil {
			t.Fatalf("line %d: %v\n%s\nprinted:\n%s\nand as errors:\n%s", b.line, err, b.text, got, s.errors.String())
		}
		if b.output != nil && !matches(b.output.text, got) {
			t.Errorf("line %d: the page shows\n%s\nand this was printed:\n%s\nand as errors:\n%s", b.output.line, b.output.text, got, s.errors.String())
		}
	}
	t.Logf("%d blocks in %.1f s", len(blocks), time.Since(began).Seconds())
}

// clean removes what a page that failed has left.
func clean(t *testing.T) {
	t.Helper()
	cmd := exec.Command("psql", "-X", "-q", os.Getenv("RELAY_TEST_DATABASE_URL"),
		"-c", "DROP DATABASE IF EXISTS shop WITH (FORCE)", "-c", "DROP DATABASE IF EXISTS billing WITH (FORCE)",
		"-c", "DROP ROLE IF EXISTS relay, app, ops")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("clean up: %v\n%s", err, out)
	}
}

// shell is one page's bash, with all that it has started.
type shell struct {
	in        io.Writer
	out       *bufio.Reader
	errors    *buffer
	addresses map[string]string
}

func startShell(t *testing.T, addresses map[string]string) *shell {
	t.Helper()
	repository, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	s := &shell{errors: new(buffer), addresses: addresses}
	cmd := exec.Command("bash", "--noprofile", "--norc")
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(),
		"PATH="+filepath.Join(repository, "bin")+":"+filepath.Join(repository, ".cache/bin")+":"+os.Getenv("PATH"),
		"HOME="+cmd.Dir, "PGTZ=UTC", "LC_ALL=C.UTF-8", "PAGER=cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = s.errors
	if s.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	// A pipe of our own: Wait must not wait for what a page left running.
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s.out, cmd.Stdout = bufio.NewReader(reader), writer
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(2*time.Minute, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	t.Cleanup(func() {
		watchdog.Stop()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the page's background jobs, too
		cmd.WaitDelay = time.Second
		_ = cmd.Wait()
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// run runs a block and returns what it printed, with the pages' own addresses.
func (s *shell) run(t *testing.T, b block) (string, error) {
	text := b.text
	for usual, actual := range s.addresses {
		text = strings.ReplaceAll(text, usual, actual)
	}
	if b.lang == "sql" {
		text = "psql -X -q -v ON_ERROR_STOP=1 \"$PGTRICKLE_RELAY_POSTGRES_URL\" <<'END_OF_SQL'\n" + text + "END_OF_SQL\n"
	}
	if b.waits() {
		text = "(\n" + text + ") || true\n" // it is tried again
	}
	file := filepath.Join(t.TempDir(), "block.sh")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return "", err
	}

	// A command that fails ends the shell, and with it the output.
	if _, err := fmt.Fprintf(s.in, "set -euo pipefail\nsource %s </dev/null\necho '%s'\n", file, sentinel); err != nil {
		return "", err
	}
	var out strings.Builder
	for {
		line, err := s.out.ReadString('\n')
		before, end := strings.CutSuffix(strings.TrimSuffix(line, "\n"), sentinel)
		if end {
			out.WriteString(before)
			break
		}
		out.WriteString(line)
		if errors.Is(err, io.EOF) {
			return s.usual(out.String()), errors.New("the block failed, or took too long")
		}
		if err != nil {
			return "", err
		}
	}
	return s.usual(out.String()), nil
}

func (s *shell) usual(text string) string {
	for usual, actual := range s.addresses {
		text = strings.ReplaceAll(text, actual, usual)
	}
	return text
}

// buffer collects what a page's programs write to standard error.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
