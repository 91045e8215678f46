package memory

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

const (
	limit    = 256 << 20 // bytes of the container
	patience = 4 * time.Minute
	secret   = "of the webhooks"
)

var (
	fleet   *brokers.Fleet
	kinds   []ends.Kind
	program = rig.Program{Image: "pgtrickle-relay/pgtrickle-relay:memory"}
	table   strings.Builder
)

func TestMain(m *testing.M) {
	if os.Getenv("RELAY_MEMORY") != "1" {
		fmt.Println("not run: these tests move gigabytes; make memory runs them (RELAY_MEMORY=1)")
		os.Exit(0)
	}
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "memory:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	only := "," + os.Getenv("MEMORY_BACKENDS") + ","
	servers := []string{"pg18"}
	for _, k := range ends.Kinds() {
		if only != ",," && !strings.Contains(only, ","+k.Name+",") {
			continue
		}
		if kinds = append(kinds, k); k.Server != "" {
			servers = append(servers, k.Server)
		}
	}
	ctx := context.Background()
	if fleet, err = brokers.New(ctx, brokers.Options{Large: true}); err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, fleet.Close(ctx)) }()
	if err := fleet.Start(ctx, servers...); err != nil {
		return 1, err
	}
	out := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "backend\trow\trows\tpipelines\tdelivered\ttoo large\trefused\tpeak RSS\tof\tseconds")
	rows = out
	code = m.Run()
	return code, errors.Join(out.Flush(), func() error { _, err := fmt.Println(table.String()); return err }())
}

var rows io.Writer // of the table

// TestMatrix: no size of rows and no number of pipelines takes the process down. Each row
// arrives whole, or is a dead letter: too_large for the memory, or refused by the far end.
// Files and webhooks get rows of any size.
func TestMatrix(t *testing.T) {
	for _, k := range kinds {
		for _, c := range []struct{ mib, rows, pipelines int }{{0, 50_000, 1}, {0, 50_000, 8}, {1, 40, 8}, {10, 4, 8}, {50, 1, 8}, {200, 1, 1}, {200, 1, 4}} {
			t.Run(fmt.Sprintf("%s/%d rows of %d MiB by %d", k.Name, c.rows, c.mib, c.pipelines), func(t *testing.T) {
				measure(t, k, c.mib, c.rows, c.pipelines)
			})
		}
	}
}

func measure(t *testing.T, k ends.Kind, mib, count, pipelines int) {
	db := rig.NewDatabase(t, fleet.Server("pg18").URL, fmt.Sprintf("memory_%s_%d_%d", strings.ReplaceAll(k.Name, "-", "_"), mib, pipelines), program.Migrate)
	var arrived func() map[string]int // how often each event has arrived, by its hash
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	hook := newHook(t)
	var env ends.Env
	for i := range pipelines {
		name, more := fmt.Sprintf("out%d", i), map[string]any(nil)
		var keys map[string]any
		switch k.Name {
		case "stdout":
			keys = map[string]any{"path": filepath.Join(dir, name)}
			arrived = func() map[string]int { return inFiles(t, dir) }
		case "webhook":
			keys = map[string]any{"url": hook.url, "allow_private": true, "signing_secret": secret}
			more = map[string]any{"format": "payload"}
			arrived = hook.counts
		default:
			env = ends.Env{Name: fmt.Sprintf("%s_%d", db.Name, i), Dir: dir, Migrate: program.Migrate}
			if k.Server != "" {
				env.Server = fleet.Server(k.Server)
			}
			end, err := k.New(t.Context(), env)
			if err != nil {
				t.Fatal(err)
			}
			defer end.Close()
			keys = end.Sink()
		}
		db.Forward(t, name, k.Name, keys, more)
	}
	fill(t, db, mib, count)

	began := time.Now()
	relay := program.Start(t, db.URL, rig.Options{Limit: strconv.Itoa(limit), Volumes: []string{dir}})
	tooLarge, refused := 0, 0 // dead letters: by the memory's bound, by the far end's
	rig.Until(t, patience, "all settled", func(ctx context.Context) (bool, error) {
		if gone, err := relay.Exited(); gone {
			t.Fatalf("the relay ended: %v", err) // 137 is the kernel's doing
		}
		for i := range pipelines {
			if done, err := db.Forwarded(ctx, fmt.Sprintf("out%d", i)); err != nil || !done {
				return false, err
			}
		}
		return true, db.Pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE class = 'too_large'),
			count(*) FILTER (WHERE class = 'refused') FROM pgtrickle.relay_dead_letters`).Scan(&tooLarge, &refused)
	})
	took, peak := time.Since(began), peakOf(t, relay)
	fmt.Fprintf(rows, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%d MiB\t%d MiB\t%.1f\n",
		k.Name, map[bool]string{true: fmt.Sprintf("%d MiB", mib), false: "200 B"}[mib > 0], count, pipelines,
		count*pipelines-tooLarge-refused, tooLarge, refused, peak>>20, limit>>20, took.Seconds())
	if arrived == nil || mib == 0 {
		return
	}
	if tooLarge+refused > 0 {
		t.Errorf("%d dead letters; files and webhooks take rows of any size", tooLarge+refused)
	}
	got := arrived()
	var hashes []string
	err := db.Pool.QueryRow(t.Context(), `SELECT array_agg(encode(sha256(convert_to((payload -> 'inserted' -> 0)::text, 'UTF8')), 'hex'))
		FROM pgtrickle.outbox_events`).Scan(&hashes)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hashes {
		if got[h] != pipelines {
			t.Errorf("the row of hash %s arrived %d times, want %d; all: %v", h, got[h], pipelines, got)
		}
	}
}

// TestSource: an entry of Redis that is larger than the process's memory stops its pipeline
// alone. Once the process has more memory, the entry is delivered.
func TestSource(t *testing.T) {
	i := slices.IndexFunc(kinds, func(k ends.Kind) bool { return k.Name == "redis" })
	if i < 0 {
		t.Skip("MEMORY_BACKENDS leaves out redis")
	}
	db := rig.NewDatabase(t, fleet.Server("pg18").URL, "memory_source", program.Migrate)
	feed := func(name string, mib int) {
		end, err := kinds[i].New(t.Context(), ends.Env{Name: name, Server: fleet.Server("redis")})
		if err != nil {
			t.Fatal(err)
		}
		defer end.Close()
		if err := end.Produce(t.Context(), []ends.Record{{ID: name, Body: []byte(`"` + strings.Repeat("x", mib<<20) + `"`)}}); err != nil {
			t.Fatal(err)
		}
		db.Reverse(t, name, "redis", end.Source(), nil)
	}
	feed("large", 150)
	feed("usual", 1)
	arrived := func(id string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (there bool, err error) {
			err = db.Pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pgtrickle.back WHERE event_id = $1)`, id).Scan(&there)
			return there, err
		}
	}

	relay := program.Start(t, db.URL, rig.Options{Limit: strconv.Itoa(limit)})
	rig.Until(t, patience, "the error", func(context.Context) (bool, error) {
		if gone, err := relay.Exited(); gone {
			t.Fatalf("the relay ended: %v", err)
		}
		return strings.Contains(relay.Log(), "announced a reply of 1572"), nil
	})
	rig.Until(t, patience, "the other pipeline's message", arrived("usual"))
	t.Logf("peak %d MiB\n%s", peakOf(t, relay)>>20, relay.Log())
	if err := relay.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	program.Start(t, db.URL, rig.Options{Limit: strconv.Itoa(2 << 30)})
	rig.Until(t, patience, "the large message", arrived("large"))
}

// fill inserts rows, each in a transaction of its own if they are large.
func fill(t *testing.T, db *rig.Database, mib, count int) {
	t.Helper()
	if mib == 0 {
		db.Exec(t, `INSERT INTO events SELECT i, i, i, repeat('x', 100) FROM generate_series(1, $1::bigint) i`, count)
		return
	}
	for i := range count {
		db.Exec(t, `INSERT INTO events SELECT $1::bigint, $1::bigint, 1, string_agg(repeat(md5($1::bigint || ' ' || i), 1024), '')
			FROM generate_series(1, 32 * $2::int) i`, i, mib)
	}
}

var highWater = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakOf returns the most memory in bytes that the relay's process has had.
func peakOf(t *testing.T, relay *rig.Relay) int {
	t.Helper()
	pid, err := exec.CommandContext(t.Context(), "docker", "inspect", "-f", "{{.State.Pid}}", relay.Container()).Output()
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	m := highWater.FindSubmatch(status)
	if m == nil {
		t.Fatalf("no VmHWM in %s", status)
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// inFiles counts the payloads of envelopes in the files of dir.
func inFiles(t *testing.T, dir string) map[string]int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "out*"))
	if err != nil {
		t.Fatal(err)
	}
	counts := make(map[string]int)
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		for in := bufio.NewReader(f); ; {
			line, err := in.ReadBytes('\n')
			if err != nil {
				break
			}
			var envelope struct {
				Payload json.RawMessage `json:"payload"`
			}
			if err := json.Unmarshal(line, &envelope); err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(envelope.Payload)
			counts[hex.EncodeToString(sum[:])]++
		}
		_ = f.Close()
	}
	return counts
}

// hook takes events, and verifies their signatures, without holding their bodies.
type hook struct {
	url string
	mu  sync.Mutex
	got map[string]int
}

func newHook(t *testing.T) *hook {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &hook{url: "http://" + ln.Addr().String(), got: make(map[string]int)}
	server := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(ln) }() // until it is closed
	t.Cleanup(func() { _ = server.Close() })
	return h
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sum, mac := sha256.New(), hmac.New(sha256.New, []byte(secret))
	_, _ = io.WriteString(mac, r.Header.Get("Webhook-Id")+"."+r.Header.Get("Webhook-Timestamp")+".")
	n, err := io.Copy(io.MultiWriter(sum, mac), r.Body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	if err != nil || n != r.ContentLength || r.Header.Get("Webhook-Signature") != want {
		http.Error(w, fmt.Sprintf("%d bytes of %d, signature %t, %v", n, r.ContentLength, r.Header.Get("Webhook-Signature") == want, err), http.StatusBadGateway)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got[hex.EncodeToString(sum.Sum(nil))]++
}

func (h *hook) counts() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got
}
