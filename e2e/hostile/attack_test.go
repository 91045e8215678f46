package hostile

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestOtherPipelinesUnderAttack: a pipeline keeps its speed while requests without a
// signature stall and flood a webhook source of its process. In turn the same requests go to
// another process, a plain server of net/http. So the attack costs the machine the same, and
// the rest of the difference is the relay's own code.
func TestOtherPipelinesUnderAttack(t *testing.T) {
	url := pgtest.URL(t)
	pool := pgtest.Open(t, url)
	if out, err := exec.CommandContext(t.Context(), relayBinary, "migrate", "--postgres-url", url).CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v: %s", err, out)
	}
	bind, file := freeAddr(t), filepath.Join(t.TempDir(), "out.jsonl")
	mustExec(t, pool, fmt.Sprintf(`
		CREATE TABLE orders (id int);
		SELECT pgtrickle.enable_outbox('orders'), pgtrickle.create_inbox('arrivals');
		SELECT pgtrickle.set_relay_inbox('hooks', '{"source_type": "webhook", "webhook_bind": %q, "webhook_auth": "hmac", "webhook_secret": "s",
			"inbox_table": "arrivals"}');
		SELECT pgtrickle.set_relay_outbox('other', '{"stream_table": "orders", "sink_type": "stdout", "stdout_path": %q}');
		SELECT pgtrickle.enable_relay('hooks'), pgtrickle.enable_relay('other')`, bind, file))
	relay := start(t, url)
	t.Cleanup(func() {
		relay.kill()
		if t.Failed() {
			t.Logf("log of the relay:\n%s", &relay.output)
		}
	})
	awaitListener(t, bind)
	awaitStatus(t, pool, "running")
	elsewhere := plainServer(t)
	deliver(t, pool, file) // the first start of everything

	var alone, beside []float64
	hostile := 0
	for range 3 {
		for _, attacked := range []string{elsewhere, bind} {
			stop := startAttack(t, attacked)
			rate := deliver(t, pool, file)
			n := stop()
			if attacked == bind {
				beside, hostile = append(beside, rate), hostile+n
			} else {
				alone = append(alone, rate)
			}
		}
	}
	before, during := slices.Max(alone), slices.Max(beside) // other programs make a turn slower, none faster
	ratio := during / before
	t.Logf("best of 3: %.0f rows/s while another process is attacked, %.0f while the relay is: %.2f; %d hostile requests; peak %d MiB",
		before, during, ratio, hostile, relay.peak(t)>>10)
	if hostile < 300 {
		t.Errorf("%d hostile requests, want at least 300", hostile)
	}
	if ratio < 0.6 {
		t.Errorf("the other pipeline has %.2f of its speed, want 0.6", ratio)
	}
}

// deliver writes rows while the pipeline is stopped, and returns how many a second then arrive
// in its file.
func deliver(t *testing.T, pool *pgxpool.Pool, file string) float64 {
	t.Helper()
	const statements, rows = 300, 500
	mustExec(t, pool, `SELECT pgtrickle.disable_relay('other')`)
	awaitStatus(t, pool, "stopped")
	mustExec(t, pool, fmt.Sprintf(`DO $$ BEGIN FOR i IN 1..%d LOOP
		INSERT INTO orders SELECT generate_series(1, %d); END LOOP; END $$`, statements, rows))
	lines, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	if _, err := lines.Seek(0, io.SeekEnd); err != nil {
		t.Fatal(err)
	}

	mustExec(t, pool, `SELECT pgtrickle.enable_relay('other')`)
	began, arrived := time.Now(), 0
	buf := make([]byte, 1<<20)
	for time.Since(began) < time.Minute {
		n, err := lines.Read(buf)
		if arrived += bytes.Count(buf[:n], []byte("\n")); arrived >= statements*rows {
			return statements * rows / time.Since(began).Seconds()
		}
		if err != nil {
			time.Sleep(5 * time.Millisecond)
		}
	}
	t.Fatalf("%d of %d rows within a minute", arrived, statements*rows)
	return 0
}

// The parts that are processes of their own, with their own memory and scheduler.
const (
	attackEnv = "RELAY_HOSTILE_ATTACK" // address to attack
	plainEnv  = "RELAY_HOSTILE_PLAIN"  // serve
)

// child starts this test's binary with one variable, and returns its output.
func child(t *testing.T, name, value string) (cmd *exec.Cmd, out *bufio.Reader) {
	t.Helper()
	cmd = exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0])
	cmd.Env = append(os.Environ(), name+"="+value)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewReader(pipe)
}

// plainServer returns the address of a server that reads all requests and refuses them.
func plainServer(t *testing.T) string {
	t.Helper()
	_, out := child(t, plainEnv, "1")
	addr, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return addr[:len(addr)-1]
}

func servePlain() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	fmt.Println(server.Listener.Addr())
	select {}
}

// startAttack attacks addr until stop is called, which returns the number of requests.
func startAttack(t *testing.T, addr string) (stop func() int) {
	t.Helper()
	cmd, out := child(t, attackEnv, addr)
	if _, err := out.ReadString('\n'); err != nil { // the first stalled requests
		t.Fatal(err)
	}
	return func() int {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		text, _ := out.ReadString('\n')
		n, err := strconv.Atoi(text[:max(len(text)-1, 0)])
		if err != nil {
			t.Fatalf("the attack printed %q", text)
		}
		return n
	}
}

// attack sends requests without a signature, with bodies of a megabyte. Each second 50 stall
// before the last byte and 50 are whole. The pace does not depend on the answers.
func attack(addr string) {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19) // on other machines it would take none of our time
	var mu sync.Mutex
	sent := 0
	body := bytes.Repeat([]byte("x"), 986_860)
	send := func(missing int, wait time.Duration) {
		conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(wait))
		_, _ = fmt.Fprintf(conn, "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Webhook-Signature: 00\r\n"+
			"Content-Length: %d\r\nConnection: close\r\n\r\n", len(body)+missing)
		_, _ = conn.Write(body)
		_, _ = io.Copy(io.Discard, conn)
		mu.Lock()
		sent++
		mu.Unlock()
	}
	for i := range 100 {
		go func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			for range time.Tick(2 * time.Second) {
				send(1, 2*time.Second)
			}
		}()
	}
	time.Sleep(2500 * time.Millisecond)
	fmt.Println("stalled")
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			go send(0, 5*time.Second)
		}
	}()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	<-ended
	mu.Lock()
	defer mu.Unlock()
	fmt.Println(sent)
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

func awaitStatus(t *testing.T, pool *pgxpool.Pool, want string) {
	t.Helper()
	await(t, "a "+want+" pipeline", func() bool {
		var got string
		err := pool.QueryRow(t.Context(), `SELECT status FROM pgtrickle.relay_cursors WHERE pipeline = 'other'`).Scan(&got)
		return err == nil && got == want
	})
}

func awaitListener(t *testing.T, addr string) {
	t.Helper()
	await(t, "the webhook source", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
}
