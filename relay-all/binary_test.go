package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var builds = struct {
	once sync.Once
	dir  string
	err  error
}{}

func TestMain(m *testing.M) {
	code := m.Run()
	if builds.dir != "" {
		_ = os.RemoveAll(builds.dir)
	}
	os.Exit(code)
}

// binary builds the relay once and returns its path.
func binary(t *testing.T) string {
	t.Helper()
	builds.once.Do(func() {
		if builds.dir, builds.err = os.MkdirTemp("", "relay-all-*"); builds.err != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", filepath.Join(builds.dir, "pgtrickle-relay"), ".").CombinedOutput(); err != nil {
			builds.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if builds.err != nil {
		t.Fatal(builds.err)
	}
	return filepath.Join(builds.dir, "pgtrickle-relay")
}

// process is a running relay.
type process struct {
	cmd  *exec.Cmd
	addr string
	log  *logBuffer
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, postgresURL string, args ...string) *process {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{addr: ln.Addr().String(), log: new(logBuffer)}
	_ = ln.Close()
	p.cmd = exec.Command(binary(t), append([]string{"--postgres-url", postgresURL, "--metrics-addr", p.addr}, args...)...)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("log of process %d:\n%s", p.cmd.Process.Pid, p.log)
		}
	})
	return p
}

// kill sends SIGKILL. A second call does nothing.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// health is the answer of /health.
type health struct {
	Status    string `json:"status"`
	Owned     int    `json:"pipelines_owned"`
	Uptime    int    `json:"uptime_seconds"`
	Pipelines []struct {
		Name      string `json:"name"`
		Direction string `json:"direction"`
		State     string `json:"state"`
	} `json:"pipelines"`

	code int
	body string
}

func (p *process) health(t *testing.T) (h health) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addr+"/health", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return health{body: err.Error()}
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	_ = json.Unmarshal(body, &h)
	h.code, h.body = resp.StatusCode, string(body)
	return h
}

func (h *health) running(name string) bool {
	for _, p := range h.Pipelines {
		if p.Name == name {
			return p.State == "running"
		}
	}
	return false
}

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

// TestLinesOfTheLogAreJSON: no client library writes past the log of the process.
func TestLinesOfTheLogAreJSON(t *testing.T) {
	t.Parallel()
	pool, url := database(t)
	exec1(t, pool, `CREATE TABLE orders (id int PRIMARY KEY)`)
	exec1(t, pool, `SELECT pgtrickle.enable_outbox('public.orders')`)
	sinks := []string{
		`"sink_type":"redis","redis_url":"redis://127.0.0.1:1","redis_stream":"s"`,
		`"sink_type":"redis","redis_url":"redis+cluster://127.0.0.1:1","redis_stream":"s"`,
		`"sink_type":"redis","redis_url":"redis+sentinel://127.0.0.1:1/m","redis_stream":"s"`,
		`"sink_type":"kafka","kafka_brokers":"127.0.0.1:1","kafka_topic":"t"`,
		`"sink_type":"nats","nats_url":"nats://127.0.0.1:1"`,
		`"sink_type":"rabbitmq","rabbitmq_url":"amqp://127.0.0.1:1"`,
		`"sink_type":"sqs","sqs_queue_url":"http://127.0.0.1:1/1/q","sqs_region":"x","sqs_access_key_id":"k","sqs_secret_access_key":"s"`,
		`"sink_type":"webhook","webhook_url":"http://127.0.0.1:1","webhook_allow_private":true`,
		`"sink_type":"pg-inbox","pg_inbox_url":"postgres://127.0.0.1:1/d","inbox_table":"i"`,
	}
	for i, sink := range sinks {
		exec1(t, pool, fmt.Sprintf(`SELECT pgtrickle.set_relay_outbox('p%d', config => '{"stream_table":"public.orders",%s}')`, i, sink))
		exec1(t, pool, fmt.Sprintf(`SELECT pgtrickle.enable_relay('p%d')`, i))
	}
	p := start(t, url, "--log-format", "json", "--log-level", "debug")
	eventually(t, "all pipelines have failed", time.Minute, func() bool {
		return strings.Count(p.log.String(), `"msg":"pipeline failed, will retry"`) >= len(sinks)
	})
	check := exec.Command(binary(t), "check", "--postgres-url", url, "--log-format", "json", "--log-level", "debug")
	var stderr bytes.Buffer
	check.Stderr = &stderr
	_ = check.Run()
	for line := range strings.Lines(p.log.String() + stderr.String()) {
		if strings.HasSuffix(line, "\n") && !json.Valid([]byte(line)) {
			t.Errorf("a line is not JSON: %s", line)
		}
	}
}
