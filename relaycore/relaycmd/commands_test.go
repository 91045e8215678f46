package relaycmd

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pipeline"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// command runs the binary against the world and wants status 0.
func (w *world) command(t *testing.T, args ...string) string {
	t.Helper()
	out, stderr, code := runBinary(t, nil, append(args, "--postgres-url", w.url)...)
	if code != 0 {
		t.Fatalf("%s = %d\n%s%s", strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// refused runs the binary and wants status 1 and that error.
func (w *world) refused(t *testing.T, want string, args ...string) {
	t.Helper()
	out, stderr, code := runBinary(t, nil, append(args, "--postgres-url", w.url)...)
	if code != 1 || !strings.Contains(stderr, want) {
		t.Errorf("%s = %d\n%s%s\nwant 1 and %q", strings.Join(args, " "), code, out, stderr, want)
	}
}

var varying = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d(:\d\d)?)?`)

// limited is what depends on the memory limit of the test's process.
var limited = regexp.MustCompile(`[0-9]+ bytes\b`)

// isGolden compares with a golden file what does not vary.
func (w *world) isGolden(t *testing.T, name, got string) {
	t.Helper()
	got = varying.ReplaceAllString(strings.ReplaceAll(got, w.dir, "/spools"), "TIME")
	got = limited.ReplaceAllString(got, "BYTES bytes")
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s\nrun with -update if that is intended", name, got, want)
	}
}

// What the commands that only look print.
func TestCommandsThatLook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", `"headers":{"X-Team":"shop"}`)
	w.exec(t, `SELECT pgtrickle.create_inbox('box'), pgtrickle.set_relay_inbox('r', config => $1::jsonb), pgtrickle.enable_relay('r')`,
		fmt.Sprintf(`{"source_type":"spool","spool_path":%q,"inbox_table":"box"}`, w.spool("in")))
	if err := os.WriteFile(w.spool("in"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.insert(t, 1, 2)
	w.exec(t, `UPDATE orders SET note = 'y' WHERE id = 2`)
	w.exec(t, `DELETE FROM orders WHERE id = 1`)

	w.isGolden(t, "check", w.command(t, "check"))
	w.isGolden(t, "preview", w.command(t, "preview", "p"))
	w.isGolden(t, "preview_json", w.command(t, "preview", "p", "-n", "1", "--from", "2", "--output", "json"))
	w.isGolden(t, "keys", w.command(t, "keys", "spool"))
	w.isGolden(t, "keys_json", w.command(t, "keys", "spool", "--output", "json"))
	w.isGolden(t, "dlq_list_empty", w.command(t, "dlq", "list"))
	w.isGolden(t, "verify_pending", w.command(t, "verify", "p"))
	var cursors int
	if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_cursors`).Scan(&cursors); err != nil || cursors != 0 {
		t.Errorf("looking has left %d checkpoints behind, %v", cursors, err)
	}
	if got := lines(w.spool("p")); len(got) != 0 {
		t.Errorf("looking has delivered %v", got)
	}

	startRelay(t, w.url)
	eventually(t, "delivery", patience, count(w.spool("p"))(4))
	eventually(t, "verify counts what is delivered", patience, func() bool {
		out := w.command(t, "verify", "p")
		return strings.Contains(out, "delivered               4") && strings.Contains(out, "settled up to id 4")
	})
	w.isGolden(t, "verify_delivered", w.command(t, "verify", "p"))
	if got, want := w.command(t, "preview", "p"), "nothing to deliver; --from ID shows delivered rows\n"; got != want {
		t.Errorf("preview = %q; want %q", got, want)
	}

	w.refused(t, `pipeline "q" not found; there are: p, r`, "preview", "q")
	w.refused(t, `pipeline "r" is a reverse pipeline`, "preview", "r")
	if out := w.command(t, "retry", "p"); out != "retry: the owner of p was notified\n" {
		t.Errorf("retry prints %q", out)
	}
	w.refused(t, `pipeline "missing" not found`, "retry", "missing")
	w.refused(t, `-n is 0; must be at least 1`, "preview", "p", "-n", "0")
	w.refused(t, `pipeline "q" not found`, "check", "q")
	w.refused(t, `unknown backend "spol"`, "keys", "spol")
}

func TestHealthcheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	p := startRelay(t, w.url)
	eventually(t, "owned", patience, func() bool { return p.owned() == 1 })
	if out := w.command(t, "healthcheck", "--metrics-addr", p.addr); out != "ok\n" {
		t.Errorf("healthcheck prints %q; want ok", out)
	}
	_, port, _ := strings.Cut(p.addr, ":")
	if out := w.command(t, "healthcheck", "--metrics-addr", "0.0.0.0:"+port); out != "ok\n" {
		t.Errorf("healthcheck prints %q; want ok", out)
	}
	w.command(t, "healthcheck", "--url", "http://"+p.addr+"/livez")
	w.raw(t, "p", `{"stream_table":"public.orders","sink_type":"spool"}`)
	eventually(t, "unhealthy", patience, func() bool { code, _ := p.get("/health"); return code == 503 })
	w.refused(t, `answered 503 Service Unavailable: {"status":"unhealthy"`, "healthcheck", "--metrics-addr", p.addr)
	w.refused(t, `connection refused`, "healthcheck", "--metrics-addr", freeAddr(t))
	if out := w.command(t, "healthcheck", "--live", "--metrics-addr", p.addr); out != "ok\n" {
		t.Errorf("healthcheck --live prints %q; want ok", out)
	}
}

// TestMetricsEndpoint: a relay with a token and TLS answers its own healthcheck with
// reasons, and other requests with a status. Its log names what is open to which peers.
func TestMetricsEndpoint(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.raw(t, "p", `{"stream_table":"public.orders","sink_type":"spool"}`)
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("token of the test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--metrics-token-file", token, "--metrics-tls-cert", cert, "--metrics-tls-key", key}
	p := startRelay(t, w.url, flags...)
	checked := append(flags, "--metrics-addr", p.addr)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool}}}
	ask := func(path, authorization string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+p.addr+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", authorization)
		resp, err := client.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	eventually(t, "ready", patience, func() bool { code, _ := ask("/readyz", ""); return code == 200 })
	eventually(t, "unhealthy", patience, func() bool { code, _ := ask("/health", ""); return code == 503 })
	w.refused(t, `"reasons":["forward pipeline \"p\"`, append([]string{"healthcheck"}, checked...)...)
	if out := w.command(t, append([]string{"healthcheck", "--live"}, checked...)...); out != "ok\n" {
		t.Errorf("healthcheck --live prints %q; want ok", out)
	}
	if code, body := ask("/health", ""); code != 503 || body != `{"status":"unhealthy"}`+"\n" {
		t.Errorf("/health without the token = %d %s", code, body)
	}
	for path, want := range map[string]int{"/metrics": 401, "/": 401, "/status.json": 401, "/readyz": 200} {
		if code, body := ask(path, "Bearer wrong"); code != want {
			t.Errorf("%s with a wrong token = %d %s, want %d", path, code, body, want)
		}
	}
	if code, body := ask("/metrics", "Bearer token of the test"); code != 200 {
		t.Errorf("/metrics = %d %s", code, body)
	}
	if log := p.log.String(); !strings.Contains(log, `msg="metrics endpoint open"`) || !strings.Contains(log, "tls=true probes=\"all peers\" metrics=token") {
		t.Error("the log does not report what is open")
	}

	other, _ := ca.Issue(t, "other")
	w.refused(t, "another certificate than --metrics-tls-cert", "healthcheck", "--metrics-addr", p.addr,
		"--metrics-tls-cert", other, "--metrics-tls-key", key)
	w.refused(t, "set both or none", "healthcheck", "--metrics-tls-cert", cert)
}

// Replay publishes again, marked, beside the running pipeline, whose checkpoint
// it does not touch.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", `"spool_full":true`)
	startRelay(t, w.url)
	for i := range 6 { // one outbox row each
		w.insert(t, i+1, i+1)
	}
	full := func() []string {
		b, _ := os.ReadFile(w.spool("p"))
		return strings.Split(strings.TrimSpace(named(string(b))), "\n")
	}
	cursor := func() (c string) {
		if err := w.pool.QueryRow(t.Context(), `SELECT format('%s %s %s %s', epoch, last_id, delivered, checkpoint) FROM pgtrickle.relay_cursors`).Scan(&c); err != nil {
			return err.Error()
		}
		return c
	}
	eventually(t, "delivery and checkpoint", patience, func() bool { return len(full()) == 6 && strings.Contains(cursor(), " 6 6 ") })
	before := cursor()
	delivered := full()
	for i, line := range delivered {
		if want := fmt.Sprintf(`outbox_orders.identity_:%d:0 insert {"id":%d,"note":"x"}`, i+1, i+1); line != want {
			t.Errorf("delivered %q; want %q", line, want)
		}
	}
	if out, want := w.command(t, "replay", "p", "--from", "2", "--to", "4"), "replayed rows 2 to 4 of p: 3 messages published, 0 refused\n"; out != want {
		t.Errorf("replay prints %q; want %q", out, want)
	}
	again := full()[6:]
	if len(again) != 3 {
		t.Fatalf("replayed %q; want rows 2 to 4", again)
	}
	for i, line := range again {
		if want := fmt.Sprintf(`outbox_orders.identity_:%d:0 insert replayed {"id":%d,"note":"x"}`, i+2, i+2); line != want {
			t.Errorf("replayed %q; want %q", line, want)
		}
	}
	out := w.command(t, "replay", "p", "--from", "6", "--to", "99", "--new-ids", "--output", "json")
	var report pipeline.ReplayReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || report != (pipeline.ReplayReport{Pipeline: "p", From: 6, To: 99, Published: 1}) {
		t.Errorf("replay prints %s, %v; want one published", out, err)
	}
	if last := full()[9]; !strings.HasPrefix(last, "outbox_orders.identity_:6:0:replay:") {
		t.Errorf("replayed %q; want a new id", last)
	}
	time.Sleep(time.Second) // for a checkpoint that should not come
	if got := cursor(); got != before {
		t.Errorf("the checkpoint went from %s to %s", before, got)
	}
	w.insert(t, 7, 7)
	eventually(t, "the pipeline goes on", patience, func() bool { return len(full()) == 11 })
	if got, want := full()[10], `outbox_orders.identity_:7:0 insert {"id":7,"note":"x"}`; got != want {
		t.Errorf("delivered %q; want %q, not marked", got, want)
	}
	w.refused(t, `select the rows with --from ID --to ID`, "replay", "p")
	w.refused(t, `the first not greater than the last`, "replay", "p", "--from", "5", "--to", "4")
}

// withReadsHeld runs the binary while a lock makes its first read of the
// outbox wait for three seconds, twice. What it asks of the table as it opens it
// must wait, too, but not for long.
func (w *world) withReadsHeld(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	lock := func() chan pgx.Tx {
		locked := make(chan pgx.Tx, 1)
		go func() {
			defer close(locked)
			tx, err := w.pool.Begin(context.WithoutCancel(t.Context()))
			if err == nil {
				_, err = tx.Exec(context.WithoutCancel(t.Context()), `LOCK pgtrickle.outbox_orders IN ACCESS EXCLUSIVE MODE`)
			}
			if err != nil {
				t.Error(err)
				return
			}
			locked <- tx
		}()
		return locked
	}
	waiting := func() (n int, read bool) {
		err := w.pool.QueryRow(t.Context(), `SELECT count(*), coalesce(bool_or(query LIKE '%pg_current_snapshot()%' AND application_name = 'test-relay'), false)
			FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE relation = 'pgtrickle.outbox_orders'::regclass AND NOT granted`).Scan(&n, &read)
		if err != nil {
			t.Error(err)
		}
		return n, read
	}
	held := <-lock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		stdout, stderr, code = runBinary(t, nil, append(args, "--postgres-url", w.url)...)
	}()
	ended := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	reads := 0
	for {
		var read bool
		eventually(t, "the command waits", patience, func() bool {
			var n int
			n, read = waiting()
			return n > 0 || ended()
		})
		if ended() {
			break
		}
		if read && reads < 2 {
			reads++
			time.Sleep(3 * time.Second)
		}
		next := lock()
		eventually(t, "the next lock stands behind it", patience, func() bool { n, _ := waiting(); return n > 1 || ended() })
		if err := held.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
		held = <-next
	}
	if err := held.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if reads == 0 {
		t.Error("no read was held up")
	}
	return stdout, stderr, code
}

// However long it takes to read an outbox, that it is slow does not mean that it is
// at its end.
func TestSlowOutboxIsReadOn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"preview": {[]string{"preview", "p", "-n", "5"}, "outbox_orders.identity_:2:0\n"},
		"replay":  {[]string{"replay", "p", "--from", "1", "--to", "2"}, "replayed rows 1 to 2 of p: 2 messages published, 0 refused\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.pipeline(t, "p", "")
			w.insert(t, 1, 1)
			w.insert(t, 2, 2)
			if out, stderr, code := w.withReadsHeld(t, c.args...); code != 0 || !strings.Contains(out, c.want) {
				t.Errorf("%s = %d\n%s%s\nwant 0 and %q", strings.Join(c.args, " "), code, out, stderr, c.want)
			}
		})
	}
}

// A range that has no rows, or none at its end, ends the replay at once.
func TestReplayOfRangesWithoutRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	for i := range 9 {
		w.insert(t, i+1, i+1)
	}
	w.exec(t, `DELETE FROM pgtrickle.outbox_orders WHERE id BETWEEN 3 AND 6`)
	w.exec(t, `INSERT INTO pgtrickle.outbox_orders (inserted_count, payload) VALUES (0, NULL)`) // row 10 has no message
	for name, c := range map[string]struct {
		from, to  string
		published int64
	}{
		"deleted rows":         {"3", "6", 0},
		"deleted at its end":   {"1", "5", 2},
		"behind the table":     {"11", "20", 0},
		"no row with that end": {"8", "9000000000000000000", 2},
		"a row that is empty":  {"9", "10", 1},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			out := w.command(t, "replay", "p", "--from", c.from, "--to", c.to, "--output", "json")
			var report pipeline.ReplayReport
			if err := json.Unmarshal([]byte(out), &report); err != nil || report.Published != c.published {
				t.Errorf("replay prints %s, %v; want %d published", out, err, c.published)
			}
			if took := time.Since(began); took > pipeline.MaxHeld {
				t.Errorf("replay took %s", took)
			}
		})
	}
	if out, want := w.command(t, "preview", "p", "--from", "11"), "nothing to deliver; --from ID shows delivered rows\n"; out != want {
		t.Errorf("preview = %q; want %q", out, want)
	}
}

// Rows of the range that the gap fence holds back for good are not passed over in
// silence.
func TestReplayOfRowsHeldBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `CREATE TABLE gaps (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, payload jsonb)`)
	w.exec(t, `SELECT pgtrickle.set_relay_outbox('p', config => $1::jsonb)`,
		fmt.Sprintf(`{"stream_table":"public.gaps","sink_type":"spool","spool_path":%q,"outbox_strategy":"fence","batch_size":10000}`, w.spool("p")))
	w.exec(t, `INSERT INTO gaps SELECT 2 * g, '{}' FROM generate_series(1, 80000) g`)
	w.exec(t, `SELECT setval('gaps_id_seq', 160000)`)
	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context()) // it only holds a lock
	if _, err := tx.Exec(t.Context(), `INSERT INTO gaps VALUES (1, '{}')`); err != nil {
		t.Fatal(err)
	}
	w.refused(t, `are held back, because open transactions may still fill gaps`, "replay", "p", "--from", "1", "--to", "160000")
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out, want := w.command(t, "replay", "p", "--from", "1", "--to", "160000"), "80000 messages published, 0 refused\n"; !strings.Contains(out, want) {
		t.Errorf("replay prints %q; want %q", out, want)
	}
}

// TestRetryPrintsWarnings: the operator sees which dead letters stay.
func TestRetryPrintsWarnings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `INSERT INTO pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, message_id, body, error, class, status, outbox_id)
		VALUES ('default', 'forward', 'p', 'a', '', 'e', 'refused', 'dead', 1), ('default', 'forward', 'p', 'b', '', 'e', 'decode', 'dead', 7)`)
	out, stderr, code := runBinary(t, nil, "dlq", "retry", "p", "--postgres-url", w.url)
	if want := "warning: relay: 1 more dead letters of p are outbox rows that could not be decoded, from row 7 on, and stay\n"; code != 0 ||
		out != "retry: 1 dead letters\n" || stderr != want {
		t.Errorf("dlq retry = %d %q %q, want the warning %q", code, out, stderr, want)
	}
}

// A dead letter blocks its key alone. Retried, it and what is parked behind it
// are delivered in order by the process that runs; discarded, what is behind it.
func TestRedrive(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", `"spool_full":true,"spool_poison":"bad"`)
	p := startRelay(t, w.url)
	poison := w.spool("p") + ".poison"
	if err := os.WriteFile(poison, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	set := func(id int, note string) {
		w.exec(t, `INSERT INTO orders VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET note = excluded.note`, id, note)
	}
	notes := regexp.MustCompile(`"id":7,"note":"(\w+)"`)
	ofSeven := func() string { // the notes of key 7, as they arrived
		b, _ := os.ReadFile(w.spool("p"))
		var got []string
		for _, m := range notes.FindAllStringSubmatch(string(b), -1) {
			got = append(got, m[1])
		}
		return strings.Join(got, " ")
	}
	deadLetters := func() string {
		var got []string
		var all []store.DeadLetter
		if err := json.Unmarshal([]byte(w.command(t, "dlq", "list", "p", "--output", "json")), &all); err != nil {
			t.Fatal(err)
		}
		for _, l := range all {
			got = append(got, fmt.Sprintf("%s %s %s %d", l.Key, l.Status, l.Class, l.Attempts))
		}
		return strings.Join(got, ", ")
	}
	set(7, "one")
	set(7, "bad")
	set(7, "two")
	set(7, "three")
	set(8, "other")
	eventually(t, "the other key is delivered", patience, func() bool { b, _ := os.ReadFile(w.spool("p")); return strings.Contains(string(b), "other") })
	eventually(t, "one dead, two parked", patience, func() bool { return deadLetters() == "7 dead refused 1, 7 parked parked 0, 7 parked parked 0" })
	if got := ofSeven(); got != "one" {
		t.Errorf("key 7 has %q; want what is before the dead letter", got)
	}
	w.isGolden(t, "dlq_list", w.command(t, "dlq", "list", "p"))
	w.isGolden(t, "dlq_list_limit", w.command(t, "dlq", "list", "p", "--limit", "2"))
	w.isGolden(t, "dlq_summary", w.command(t, "dlq", "summary"))
	if out := w.command(t, "status"); !strings.Contains(out, `warning: forward pipeline "p" has 1 dead letters and 2 parked messages`) {
		t.Errorf("status does not warn of dead letters:\n%s", out)
	}

	// As long as the far end refuses it, it stays, and so does all behind it.
	if out := w.command(t, "dlq", "retry", "p"); out != "retry: 1 dead letters\n" {
		t.Errorf("dlq retry prints %q", out)
	}
	eventually(t, "refused again", patience, func() bool { return deadLetters() == "7 dead refused 2, 7 parked parked 0, 7 parked parked 0" })
	if got := ofSeven(); got != "one" {
		t.Errorf("key 7 has %q; want nothing behind the dead letter", got)
	}
	if err := os.Remove(poison); err != nil {
		t.Fatal(err)
	}
	set(7, "four") // behind the parked ones, while they are still there
	w.command(t, "dlq", "retry", "p", "--key", "7", "--class", "refused")
	eventually(t, "redriven in order", patience, func() bool { return ofSeven() == "one bad two three four" && deadLetters() == "" })

	// Discarded, what is behind it is delivered without it.
	if err := os.WriteFile(poison, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	set(7, "bad")
	set(7, "five")
	eventually(t, "one dead, one parked", patience, func() bool { return deadLetters() == "7 dead refused 1, 7 parked parked 0" })
	w.refused(t, "--all", "dlq", "discard", "p")
	w.refused(t, `invalid value "x" for flag -id: "x" is not a number`, "dlq", "discard", "p", "--id", "x")
	w.refused(t, `invalid value "yesterday" for flag -before: not a time such as`, "dlq", "discard", "p", "--before", "yesterday")
	if out := w.command(t, "dlq", "discard", "p", "--key", "7", "--class", "refused"); out != "discard: 1 dead letters\n" {
		t.Errorf("dlq discard prints %q", out)
	}
	eventually(t, "the rest in order", patience, func() bool { return ofSeven() == "one bad two three four five" && deadLetters() == "" })
	eventually(t, "nothing is left over", patience, func() bool {
		out := w.command(t, "verify", "p")
		return strings.Contains(out, "unaccounted             0") && strings.Contains(out, "pending                 0")
	})
	if p.owned() != 1 {
		t.Errorf("the pipeline does not run any more")
	}
}

// TestRename: a pipeline that is renamed continues after its checkpoint, under the identity
// that it had. While it runs, and by UPDATE alone, it cannot be renamed.
func TestRename(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "old", "")
	p := startRelay(t, w.url)
	w.insert(t, 1, 50)
	eventually(t, "50 arrive", patience, func() bool { return len(lines(w.spool("old"))) == 50 })
	refused := func(sql, want string) {
		t.Helper()
		if _, err := w.pool.Exec(t.Context(), sql); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", sql, err, want)
		}
	}
	refused(`SELECT pgtrickle.rename_relay('old', 'new')`, `pipeline "old" runs on`)
	refused(`UPDATE pgtrickle.relay_outbox_config SET name = 'new'`, "would lose its checkpoint")
	refused(`SELECT pgtrickle.rename_relay('other', 'new')`, "not found")

	identity := func() (id string) {
		if err := w.pool.QueryRow(t.Context(), `SELECT pipeline || ' ' || identity FROM pgtrickle.relay_cursors`).Scan(&id); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := identity()
	w.exec(t, `SELECT pgtrickle.disable_relay('old')`)
	eventually(t, "it is renamed", patience, func() bool {
		_, err := w.pool.Exec(t.Context(), `SELECT pgtrickle.rename_relay('old', 'new')`)
		return err == nil
	})
	w.exec(t, `SELECT pgtrickle.enable_relay('new')`)
	w.insert(t, 51, 60)
	eventually(t, "60 arrive", patience, func() bool { return len(lines(w.spool("old"))) >= 60 })
	if got := lines(w.spool("old")); len(got) != 60 || len(slices.Compact(slices.Sorted(slices.Values(got)))) != 60 {
		t.Errorf("%d messages arrived, want 60 once each", len(got))
	}
	if after := identity(); after != strings.Replace(before, "old ", "new ", 1) {
		t.Errorf("the identity was %q and is %q", before, after)
	}
	if n := p.owned(); n != 1 {
		t.Errorf("the relay runs %d pipelines", n)
	}
}

// TestMigrateReports: the command prints what it has done.
func TestMigrateReports(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	w := &world{url: url, pool: pgtest.Open(t, url)}
	for _, want := range []string{"installed the catalog", "the catalog is up to date", "updated the catalog"} {
		if strings.HasPrefix(want, "updated") {
			w.exec(t, `UPDATE pgtrickle.relay_migrations SET checksum = 'old'`)
		}
		if out := w.command(t, "migrate"); !strings.HasPrefix(out, want+"\n") {
			t.Errorf("migrate printed %q, want %q", out, want)
		}
	}
}
