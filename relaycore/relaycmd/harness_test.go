package relaycmd

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// asBinary makes the test binary behave as a relay, so that tests can start,
// stop and kill real processes.
const asBinary = "RELAYCMD_TEST_AS_BINARY"

func TestMain(m *testing.M) {
	if name := os.Getenv(asBinary); name != "" {
		os.Exit(run(context.Background(), &program{
			name: name, backends: []relay.Backend{spoolBackend()}, args: os.Args[1:], environ: os.Environ(), stdout: os.Stdout, stderr: os.Stderr,
		}))
	}
	goleak.VerifyTestMain(tests{m})
}

// tests closes idle connections to relays before goroutines are counted.
type tests struct{ *testing.M }

func (t tests) Run() int {
	code := t.M.Run()
	http.DefaultClient.CloseIdleConnections()
	return code
}

// spoolConfig is that of a backend whose far end is a file: one JSON line for
// each message.
type spoolConfig struct {
	Path   string            `json:"path" relay:"required" doc:"File."`
	Delay  relaycfg.Duration `json:"delay" doc:"How long a publish takes."`
	Token  relaycfg.Secret   `json:"token" doc:"Anything."`
	Full   bool              `json:"full" doc:"Write what a message says, not only its id."`
	Whole  bool              `json:"whole" doc:"Write all fields of a message as JSON."`
	Poison string            `json:"poison" doc:"Refuse messages whose row has this in it, as long as there is a file PATH.poison."`
}

func spoolBackend() relay.Backend {
	return relay.Backend{
		Name:          "spool",
		SinkGuarantee: relay.Guarantee{Delivery: "at least once", Dedup: "none", Order: "total", Weakest: "the file"},
		Sink: relaycfg.Sink(spoolConfig{}, func(_ context.Context, _ relay.Env, c spoolConfig) (*spoolSink, error) {
			f, err := os.OpenFile(c.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return nil, relay.Fatal(err)
			}
			s := &spoolSink{f, &c}
			return s, s.cutTorn()
		}),
		Source: relaycfg.Source(spoolConfig{}, func(_ context.Context, _ relay.Env, c spoolConfig) (*spoolSource, error) {
			f, err := os.Open(c.Path)
			if err != nil {
				return nil, relay.Fatal(err)
			}
			return &spoolSource{f: f, r: bufio.NewReader(f)}, nil
		}),
	}
}

type spoolSink struct {
	f *os.File
	c *spoolConfig
}

func (s *spoolSink) Publish(ctx context.Context, batch []relay.Message) error {
	var b bytes.Buffer
	outcome := relay.NewOutcome(batch)
	for i := range batch {
		switch {
		case outcome.Held(i):
		case s.poisoned(&batch[i]):
			outcome.Fail(i, relay.Permanent(fmt.Errorf("the spool refuses %q", s.c.Poison)))
		default:
			s.line(&b, &batch[i])
			outcome.Confirm(i)
		}
	}
	timer := time.NewTimer(s.c.Delay.D())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	err := s.locked(func() error {
		_, err := s.f.Write(b.Bytes())
		return err
	})
	if err != nil {
		return err
	}
	return outcome.Err()
}

// cutTorn removes what a killed relay has left of a line: a kill can end a write between two
// pages.
func (s *spoolSink) cutTorn() error {
	if info, err := s.f.Stat(); err != nil || !info.Mode().IsRegular() {
		return err
	}
	return s.locked(func() error {
		b, err := os.ReadFile(s.c.Path)
		if whole := bytes.LastIndexByte(b, '\n') + 1; err == nil && whole < len(b) {
			err = s.f.Truncate(int64(whole))
		}
		return err
	})
}

// locked calls do while no other relay is in a write.
func (s *spoolSink) locked(do func() error) error {
	fd := int(s.f.Fd())
	if err := syscall.Flock(fd, syscall.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = syscall.Flock(fd, syscall.LOCK_UN) }()
	return do()
}

func (s *spoolSink) poisoned(m *relay.Message) bool {
	if s.c.Poison == "" || !bytes.Contains(m.Row, []byte(s.c.Poison)) {
		return false
	}
	_, err := os.Stat(s.c.Path + ".poison")
	return err == nil
}

func (s *spoolSink) line(b *bytes.Buffer, m *relay.Message) {
	if s.c.Whole {
		whole, _ := json.Marshal(map[string]any{
			"id": m.ID, "subject": m.Subject, "key": m.Key, "headers": m.WireHeaders(nil),
			"row": string(m.Row), "before": string(m.Before), "body": string(m.Body),
		})
		b.Write(append(whole, '\n'))
		return
	}
	b.WriteString(m.ID)
	if s.c.Full {
		b.WriteString(" " + m.Op)
		if m.FullRefresh {
			b.WriteString(" full")
		}
		if _, replayed := m.Header(relay.HeaderReplay); replayed {
			b.WriteString(" replayed")
		}
		b.WriteString(" " + string(m.Row))
	}
	b.WriteByte('\n')
}

func (s *spoolSink) Close() error { return s.f.Close() }

type spoolSource struct {
	f *os.File
	r *bufio.Reader
	n int
}

func (s *spoolSource) Receive(ctx context.Context, _ int) ([]relay.Message, error) {
	for {
		line, err := s.r.ReadBytes('\n')
		if err == nil {
			s.n++
			return []relay.Message{{ID: fmt.Sprintf("line:%d", s.n), Body: bytes.TrimSpace(line), Origin: "spool"}}, nil
		}
		if !errors.Is(err, io.EOF) {
			return nil, err
		}
		timer := time.NewTimer(10 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-timer.C:
		}
	}
}

func (s *spoolSource) Ack(context.Context, []relay.Message) error { return nil }
func (s *spoolSource) Close() error                               { return s.f.Close() }

// world is a database with a catalog and a directory for spools.
type world struct {
	url  string
	pool *pgxpool.Pool
	dir  string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := pgtest.URL(t)
	w := &world{url: url, pool: pgtest.Open(t, url), dir: t.TempDir()}
	if err := migrate.Up(t.Context(), w.pool, migrate.Specs([]relay.Backend{spoolBackend()})); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `CREATE TABLE orders (id int PRIMARY KEY, note text)`)
	w.exec(t, `SELECT pgtrickle.enable_outbox('public.orders')`)
	return w
}

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := w.pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) insert(t *testing.T, from, to int) {
	t.Helper()
	w.exec(t, `INSERT INTO orders SELECT g, 'x' FROM generate_series($1::int, $2::int) g`, from, to)
}

func (w *world) spool(name string) string { return filepath.Join(w.dir, name) }

// pipeline creates an enabled forward pipeline into the spool of its name.
func (w *world) pipeline(t *testing.T, name, more string) {
	t.Helper()
	w.exec(t, `SELECT pgtrickle.set_relay_outbox($1, config => ($2::jsonb || $3::jsonb))`, name,
		fmt.Sprintf(`{"stream_table":"public.orders","sink_type":"spool","spool_path":%q}`, w.spool(name)), "{"+more+"}")
	w.exec(t, `SELECT pgtrickle.enable_relay($1)`, name)
}

// raw puts a configuration into the catalog past all checks, as the extension's
// own functions would.
func (w *world) raw(t *testing.T, name, config string) {
	t.Helper()
	w.exec(t, `INSERT INTO pgtrickle.relay_outbox_config (name, config) VALUES ($1, $2::jsonb)
		ON CONFLICT (name) DO UPDATE SET config = excluded.config`, name, config)
}

func lines(path string) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// process is a relay that runs.
type process struct {
	cmd  *exec.Cmd
	addr string
	log  *relaytest.Log
	out  *relaytest.Log
	done chan struct{}
	err  error
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func startRelay(t *testing.T, url string, args ...string) *process {
	t.Helper()
	p := &process{addr: freeAddr(t), log: new(relaytest.Log), out: new(relaytest.Log), done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], append([]string{"--postgres-url", url, "--metrics-addr", p.addr}, args...)...)
	p.cmd.Env = append(os.Environ(), asBinary+"=test-relay")
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if t.Failed() {
			t.Logf("log of process %d:\n%s", p.cmd.Process.Pid, p.log)
		}
	})
	return p
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// exit waits for the process and returns its status.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		t.Fatal("the process has not ended within 20s")
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) get(path string) (int, string) {
	resp, err := http.Get("http://" + p.addr + path)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func (p *process) owned() int {
	var h struct {
		Owned int `json:"pipelines_owned"`
	}
	_, body := p.get("/health")
	_ = json.Unmarshal([]byte(body), &h)
	return h.Owned
}

// command runs the binary to its end.
func runBinary(t *testing.T, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), asBinary+"=test-relay"), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return named(out.String()), named(errOut.String()), cmd.ProcessState.ExitCode()
}

var eventIdentity = regexp.MustCompile(`\b[a-z2-7]{12}\.[0-9a-z]{10}:`)

// named puts a name of the same length in place of what differs from run to run in event ids.
func named(s string) string { return eventIdentity.ReplaceAllString(s, "outbox_orders.identity_:") }

func eventually(t *testing.T, what string, within time.Duration, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s", what, within)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}

func count(path string) func(n int) func() bool {
	return func(n int) func() bool { return func() bool { return len(lines(path)) >= n } }
}
