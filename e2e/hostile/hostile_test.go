package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestMain(m *testing.M) {
	if addr := os.Getenv(attackEnv); addr != "" {
		attack(addr)
		return
	}
	if os.Getenv(plainEnv) != "" {
		servePlain()
	}
	switch os.Getenv("RELAY_HOSTILE") {
	case "all", "short":
		os.Exit(m.Run())
	}
	fmt.Println("not run: these tests start processes for minutes; make hostile runs them (RELAY_HOSTILE=all or short)")
}

const (
	relayBinary = "../../bin/pgtrickle-relay"
	maxSpace    = 4 << 20   // KiB of addresses; a process that wants more ends
	maxPeak     = 256 << 10 // KiB of memory that a process may have had
)

// ends are the pipelines at a peer, with ADDR for its address. The name begins with the
// backend whose server the peer is to be.
var ends = []struct{ name, backend, config string }{
	{"nats_out", "nats", `"sink_type": "nats", "nats_url": "nats://ADDR", "nats_stream": "s"`},
	{"kafka_out", "kafka", `"sink_type": "kafka", "kafka_brokers": "ADDR", "kafka_topic": "t"`},
	{"redis_out", "redis", `"sink_type": "redis", "redis_url": "redis://ADDR"`},
	{"rabbitmq_out", "rabbitmq", `"sink_type": "rabbitmq", "rabbitmq_url": "amqp://u:p@ADDR/", "rabbitmq_exchange": "x"`},
	{"sqs_out", "http", `"sink_type": "sqs", "sqs_queue_url": "http://ADDR/q.fifo", "sqs_endpoint": "http://ADDR",
		"sqs_region": "eu-west-1", "sqs_access_key_id": "x", "sqs_secret_access_key": "y"`},
	{"webhook_out", "http", `"sink_type": "webhook", "webhook_url": "http://ADDR/", "webhook_allow_private": true`},
	{"pg_out", "pg_inbox", `"sink_type": "pg-inbox", "pg_inbox_url": "postgres://u:p@ADDR/d", "pg_inbox_table": "i"`},
	{"nats_in", "nats", `"source_type": "nats", "nats_url": "nats://ADDR", "nats_stream": "s"`},
	{"kafka_in", "kafka", `"source_type": "kafka", "kafka_brokers": "ADDR", "kafka_topic": "t"`},
	{"redis_in", "redis", `"source_type": "redis", "redis_url": "redis://ADDR", "redis_stream": "s"`},
	{"rabbitmq_in", "rabbitmq", `"source_type": "rabbitmq", "rabbitmq_url": "amqp://u:p@ADDR/", "rabbitmq_queue": "q"`},
	{"sqs_in", "http", `"source_type": "sqs", "sqs_queue_url": "http://ADDR/q.fifo", "sqs_endpoint": "http://ADDR",
		"sqs_region": "eu-west-1", "sqs_access_key_id": "x", "sqs_secret_access_key": "y"`},
}

// TestWrongPeers runs pipelines of all backends at each peer, beside one that delivers to
// a file, and then check. No process ends or grows, each pipeline has an error that
// names what answers, and the other pipeline delivers.
func TestWrongPeers(t *testing.T) {
	for name, p := range peers {
		if os.Getenv("RELAY_HOSTILE") == "short" && !p.short {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			pool := pgtest.Open(t, url)
			file := prepare(t, pool, url, p)

			relay := start(t, url)
			t.Cleanup(relay.kill)
			failing := awaitErrors(t, pool, p)
			mustExec(t, pool, `INSERT INTO orders VALUES (2)`)
			await(t, "the healthy pipeline's two lines", func() bool {
				text, _ := os.ReadFile(file)
				return bytes.Count(text, []byte("\n")) == 2
			})
			daemonPeak := relay.peak(t)
			relay.kill()
			out, checkPeak := check(t, url)

			for _, e := range ends {
				assertError(t, p, e.name, e.backend, failing[e.name])
				if !strings.Contains(out, e.name) {
					t.Errorf("check does not mention %s", e.name)
				}
			}
			if daemonPeak > maxPeak || checkPeak > maxPeak {
				t.Errorf("the relay took %d MiB and check %d MiB, at most %d are allowed", daemonPeak>>10, checkPeak>>10, maxPeak>>10)
			}
			t.Logf("%s: peak of the relay %d MiB, of check %d MiB", name, daemonPeak>>10, checkPeak>>10)

			wrong := serve(t, p, "pg_inbox")
			if text, peak := run(t, "check", "--postgres-url", "postgres://u:p@"+wrong+"/d?connect_timeout=5"); peak > maxPeak {
				t.Errorf("check of a database at the peer took %d MiB", peak>>10)
			} else if p.known != "" && p.own != "pg_inbox" && name != "TLS" && !strings.Contains(text, p.known) {
				t.Errorf("check of a database at the peer printed %q, want %q", text, p.known)
			}
		})
	}
}

// prepare makes the pipelines, and returns the file of the healthy one.
func prepare(t *testing.T, pool *pgxpool.Pool, url string, p peer) (file string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), relayBinary, "migrate", "--postgres-url", url).CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v: %s", err, out)
	}
	file = filepath.Join(t.TempDir(), "healthy.jsonl")
	mustExec(t, pool, `CREATE TABLE orders (id int PRIMARY KEY)`)
	mustExec(t, pool, `SELECT pgtrickle.enable_outbox('orders'), pgtrickle.create_inbox('arrivals')`)
	mustExec(t, pool, `INSERT INTO orders VALUES (1)`)
	mustExec(t, pool, fmt.Sprintf(`SELECT pgtrickle.set_relay_outbox('healthy', '{"stream_table": "orders", "sink_type": "stdout", "stdout_path": %q}')`, file))
	addresses := make(map[string]string)
	for _, e := range ends {
		if addresses[e.backend] == "" {
			addresses[e.backend] = serve(t, p, e.backend)
		}
		kind, table := "outbox", `"stream_table": "orders"`
		if strings.HasSuffix(e.name, "_in") {
			kind, table = "inbox", `"inbox_table": "arrivals"`
		}
		config := strings.ReplaceAll("{"+table+", "+e.config+"}", "ADDR", addresses[e.backend])
		mustExec(t, pool, fmt.Sprintf(`SELECT pgtrickle.set_relay_%s('%s', '%s')`, kind, e.name, config))
	}
	mustExec(t, pool, `SELECT pgtrickle.enable_relay(name) FROM pgtrickle.list_relay_configs()`)
	return file
}

// awaitErrors waits until each pipeline at the peer has an error, and returns them. A
// quiet peer gets a few seconds.
func awaitErrors(t *testing.T, pool *pgxpool.Pool, p peer) map[string]string {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	if p.quiet {
		deadline = time.Now().Add(8 * time.Second)
	}
	want := len(ends)
	if p.accepts != "" {
		want--
	}
	for {
		failing := make(map[string]string)
		rows, err := pool.Query(t.Context(), `SELECT pipeline, error FROM pgtrickle.relay_cursors WHERE error IS NOT NULL AND pipeline <> 'healthy'`)
		if err != nil {
			t.Fatal(err)
		}
		for rows.Next() {
			var name, text string
			if err := rows.Scan(&name, &text); err != nil {
				t.Fatal(err)
			}
			failing[name] = text
		}
		if len(failing) >= want || time.Now().After(deadline) {
			return failing
		}
		time.Sleep(100 * time.Millisecond)
	}
}

var stack = regexp.MustCompile(`panic|goroutine|runtime error|fatal error|Exception`)

func assertError(t *testing.T, p peer, name, backend, text string) {
	t.Helper()
	switch {
	case (p.quiet || name == p.accepts) && text == "":
	case text == "":
		t.Errorf("%s: no error", name)
	case strings.Contains(text, "\n") || stack.MatchString(text) || len(text) > 600:
		t.Errorf("%s: error of %d bytes %q, want one line for an operator", name, len(text), text)
	case p.known != "" && p.own != backend && !strings.Contains(text, p.known):
		t.Errorf("%s: error %q, want one with %q", name, text, p.known)
	}
}

// process is a relay in bounded memory.
type process struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	killed bool
}

func bounded(ctx context.Context, args ...string) *exec.Cmd {
	limited := fmt.Sprintf(`ulimit -v %d && exec "$0" "$@"`, maxSpace)
	return exec.CommandContext(ctx, "bash", append([]string{"-c", limited, relayBinary}, args...)...)
}

func start(t *testing.T, url string) *process {
	t.Helper()
	p := &process{cmd: bounded(context.WithoutCancel(t.Context()), "--postgres-url", url, "--metrics-addr", "127.0.0.1:0", "--allow-files", "/")}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// peak returns the KiB that the process has had at most, and fails if it has ended.
func (p *process) peak(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if found == nil {
		p.kill()
		t.Fatalf("the relay has ended: %.4000s", p.output.String())
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}

func (p *process) kill() {
	if !p.killed {
		p.killed = true
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// check runs the command for all pipelines, which must report that some do not work.
func check(t *testing.T, url string) (out string, peak int) {
	t.Helper()
	return run(t, "check", "--postgres-url", url, "--allow-files", "/")
}

// run runs a command that must fail in good order, and returns its peak in KiB.
func run(t *testing.T, args ...string) (out string, peak int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := bounded(ctx, args...)
	text, err := cmd.CombinedOutput()
	failed, ok := errors.AsType[*exec.ExitError](err)
	if !ok || failed.ExitCode() != 1 || bytes.Contains(text, []byte("goroutine ")) {
		t.Errorf("%s: %v, want exit status 1: %.4000s", args[0], err, text)
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		peak = int(usage.Maxrss)
	}
	return string(text), peak
}

func mustExec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
