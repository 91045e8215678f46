package relaycmd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
)

const patience = 15 * time.Second // for what has no time limit of its own, on a busy machine

func (w *world) epoch(t *testing.T, name string) (epoch int64) {
	t.Helper()
	if err := w.pool.QueryRow(t.Context(), `SELECT epoch FROM pgtrickle.relay_cursors WHERE pipeline = $1`, name).Scan(&epoch); err != nil {
		t.Fatal(err)
	}
	return epoch
}

// Every change of the catalog takes effect within a second, and touches only the
// pipeline that it is about.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "stays", "")
	w.pipeline(t, "moves", "")
	p := startRelay(t, w.url)
	w.insert(t, 1, 10)
	eventually(t, "delivery", patience, count(w.spool("stays"))(10))
	eventually(t, "delivery", patience, count(w.spool("moves"))(10))
	stays := w.epoch(t, "stays")
	const soon = 5 * time.Second // by notification: the catalog is polled every 30 s only

	w.exec(t, `SELECT pgtrickle.set_relay_outbox('moves', config => $1::jsonb)`,
		fmt.Sprintf(`{"stream_table":"public.orders","sink":{"type":"spool","path":%q}}`, w.spool("elsewhere")))
	took := eventually(t, "new configuration", soon, func() bool { _, err := os.Stat(w.spool("elsewhere")); return err == nil })
	t.Logf("a changed pipeline runs after %s", took.Round(time.Millisecond))
	w.insert(t, 11, 20)
	eventually(t, "delivery", patience, count(w.spool("elsewhere"))(10))

	w.pipeline(t, "added", "")
	took = eventually(t, "added pipeline", soon, func() bool { _, err := os.Stat(w.spool("added")); return err == nil })
	t.Logf("an added pipeline runs after %s", took.Round(time.Millisecond))
	eventually(t, "owned", patience, func() bool { return p.owned() == 3 })

	w.exec(t, `SELECT pgtrickle.disable_relay('moves')`)
	took = eventually(t, "disabled pipeline", soon, func() bool { return p.owned() == 2 })
	t.Logf("a disabled pipeline is drained after %s", took.Round(time.Millisecond))
	w.exec(t, `SELECT pgtrickle.delete_relay('added')`)
	eventually(t, "deleted pipeline", soon, func() bool { return p.owned() == 1 })
	eventually(t, "series of a deleted pipeline disappear", soon, func() bool {
		_, metrics := p.get("/metrics")
		return !strings.Contains(metrics, `"added"`) && strings.Contains(metrics, `pgtrickle_relay_messages_published_total{direction="forward",pipeline="stays"} 20`)
	})
	w.insert(t, 21, 30)
	eventually(t, "delivery", patience, count(w.spool("stays"))(30))
	if got := len(lines(w.spool("elsewhere"))); got != 10 {
		t.Errorf("the disabled pipeline has delivered %d, want the 10 from before", got)
	}
	if got := w.epoch(t, "stays"); got != stays {
		t.Errorf("the untouched pipeline went from epoch %d to %d", stays, got)
	}

	// A bad change stops that pipeline alone, and /health reports why.
	w.raw(t, "stays", `{"stream_table":"public.orders","sink_type":"spool","spool_pathh":"x"}`)
	eventually(t, "bad configuration in health", soon, func() bool {
		code, body := p.get("/health")
		return code == 503 && strings.Contains(body, `key \"spool_pathh\": unknown key; did you mean \"spool_path\"?`)
	})
	if code, _ := p.get("/readyz"); code != 200 {
		t.Errorf("/readyz = %d: one bad pipeline must not take the process out", code)
	}
	w.pipeline(t, "stays", "")
	w.exec(t, `SELECT pgtrickle.set_relay_outbox('stays', config => $1::jsonb)`,
		fmt.Sprintf(`{"stream_table":"public.orders","sink_type":"spool","spool_path":%q}`, w.spool("stays")))
	eventually(t, "repaired", soon, func() bool { code, _ := p.get("/health"); return code == 200 && p.owned() == 1 })

	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit status %d after SIGTERM, want 0", code)
	}
	if out := p.out.String(); out != "" {
		t.Errorf("standard output has %q; logs belong to standard error", out)
	}
}

// A killed process is replaced as soon as its connection is seen to close, not
// after a timeout, with nothing lost.
func TestTakeoverAfterKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 6 {
		w.pipeline(t, fmt.Sprintf("p%d", i), "")
	}
	// Which instance wins which pipeline follows from tstandby names: these share.
	a, b := startRelay(t, w.url, "--instance-id", "a"), startRelay(t, w.url, "--instance-id", "b")
	// Each pipeline that the newcomer wins is drained by the other, so both work.
	eventually(t, "the work is shared", patience, func() bool {
		return a.owned() > 0 && b.owned() > 0 && a.owned()+b.owned() == 6
	})
	for _, p := range []*process{a, b} {
		if code, body := p.get("/health"); code != 200 {
			t.Errorf("/health = %d %s", code, body)
		}
	}
	w.insert(t, 1, 100)
	for i := range 6 {
		eventually(t, "delivery", patience, count(w.spool(fmt.Sprintf("p%d", i)))(100))
	}
	var worst time.Duration
	for round, name := range []string{"c", "d", "a"} {
		eventually(t, "each has some", patience, func() bool { return b.owned() < 6 && a.owned()+b.owned() == 6 })
		killed := time.Now()
		a.signal(t, syscall.SIGKILL)
		// Less than the 6 s after which PostgreSQL gives a silent session's locks away.
		eventually(t, "takeover", 5*time.Second, func() bool { return b.owned() == 6 })
		took := time.Since(killed)
		worst = max(worst, took)
		t.Logf("round %d: all six pipelines run again %s after kill -9", round, took.Round(time.Millisecond))
		w.insert(t, 1000*(round+1), 1000*(round+1)+9)
		a = startRelay(t, w.url, "--instance-id", name)
		eventually(t, "the work is shared again", patience, func() bool { return a.owned() > 0 && a.owned()+b.owned() == 6 })
		a, b = b, a
	}
	t.Logf("the slowest took %s", worst.Round(time.Millisecond))
	for i := range 6 {
		spool := w.spool(fmt.Sprintf("p%d", i))
		eventually(t, "all rows", patience, func() bool { return len(distinct(lines(spool))) == 130 })
	}
}

func distinct(ids []string) []string {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return slices.Compact(ids)
}

// On SIGTERM another instance takes over and nothing is delivered twice.
func TestHandover(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 4 {
		w.pipeline(t, fmt.Sprintf("p%d", i), "")
	}
	a, b := startRelay(t, w.url, "--instance-id", "a"), startRelay(t, w.url, "--instance-id", "b")
	eventually(t, "the work is shared", patience, func() bool { return a.owned()+b.owned() == 4 && b.owned() > 0 && a.owned() > 0 })
	stop := make(chan struct{})
	wrote := make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				wrote <- n
				return
			default:
				w.insert(t, n, n)
			}
		}
	}()
	eventually(t, "rows on tstandby way", patience, count(w.spool("p0"))(20))
	a.signal(t, syscall.SIGTERM)
	eventually(t, "handover", patience, func() bool { return b.owned() == 4 })
	if code := a.exit(t); code != 0 {
		t.Errorf("exit status %d, want 0", code)
	}
	close(stop)
	n := <-wrote
	for i := range 4 {
		spool := w.spool(fmt.Sprintf("p%d", i))
		eventually(t, "all rows", patience, count(spool)(n))
		if got := lines(spool); len(got) != n || len(distinct(got)) != n {
			t.Errorf("p%d: %d lines, %d distinct, want %d: a planned handover neither loses nor repeats", i, len(got), len(distinct(got)), n)
		}
	}
}

// SIGTERM lets the batch in hand finish; a second signal does not.
func TestSignals(t *testing.T) {
	t.Parallel()
	t.Run("drain", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.pipeline(t, "slow", `"spool_delay":"1500ms"`)
		p := startRelay(t, w.url)
		eventually(t, "owned", patience, func() bool { return p.owned() == 1 })
		w.insert(t, 1, 5)
		eventually(t, "in flight", patience, func() bool {
			_, m := p.get("/metrics")
			return strings.Contains(m, `messages_consumed_total{direction="forward",pipeline="slow"} 5`)
		})
		p.signal(t, syscall.SIGHUP) // ignored
		p.signal(t, syscall.SIGTERM)
		eventually(t, "not ready while draining", time.Second, func() bool { code, _ := p.get("/readyz"); return code == 503 })
		if code, _ := p.get("/livez"); code != 200 {
			t.Errorf("/livez = %d while draining, want 200", code)
		}
		if code := p.exit(t); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
		if got := len(lines(w.spool("slow"))); got != 5 {
			t.Errorf("%d messages delivered, want the 5 in hand", got)
		}
		var delivered int
		if err := w.pool.QueryRow(t.Context(), `SELECT delivered FROM pgtrickle.relay_cursors`).Scan(&delivered); err != nil || delivered != 5 {
			t.Errorf("checkpoint says %d delivered, %v; want 5", delivered, err)
		}
	})
	for name, args := range map[string][]string{"second signal": nil, "drain timeout": {"--drain-timeout", "200ms"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.pipeline(t, "stuck", `"spool_delay":"1h"`)
			p := startRelay(t, w.url, args...)
			eventually(t, "owned", patience, func() bool { return p.owned() == 1 })
			w.insert(t, 1, 5)
			eventually(t, "in flight", patience, func() bool {
				_, m := p.get("/metrics")
				return strings.Contains(m, `messages_consumed_total{direction="forward",pipeline="stuck"} 5`)
			})
			p.signal(t, syscall.SIGTERM)
			if args == nil {
				eventually(t, "draining", patience, func() bool { return strings.Contains(p.log.String(), "signal received") })
				p.signal(t, syscall.SIGTERM)
			}
			if code := p.exit(t); code != 1 || !strings.Contains(p.log.String(), name) {
				t.Errorf("exit status %d, want 1 and the cause %q in the log", code, name)
			}
		})
	}
}

// An idle source whose sequence is watched sees a row as fast as a busy one. How long
// the row's transaction took, and what was rolled back, makes no difference.
func TestIdleOutboxIsWoken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	startRelay(t, w.url)
	w.insert(t, 1, 10)
	eventually(t, "delivery", patience, count(w.spool("p"))(10))
	// By itself it would now poll every 600 ms, and less often soon.
	time.Sleep(5 * time.Second)
	best := time.Hour // of three: one may meet a busy machine
	for try := range 3 {
		tx, err := w.pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(t.Context(), `INSERT INTO orders VALUES ($1)`, 11+2*try); err != nil {
			t.Fatal(err)
		}
		w.exec(t, fmt.Sprintf(`DO $$ BEGIN INSERT INTO orders VALUES (%d); RAISE EXCEPTION 'rolled back'; EXCEPTION WHEN raise_exception THEN NULL; END $$`, 12+2*try))
		time.Sleep(3 * time.Second)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		best = min(best, eventually(t, "a late row", patience, count(w.spool("p"))(11+try)))
	}
	t.Logf("delivered %s after its commit", best.Round(time.Millisecond))
	if best > 450*time.Millisecond {
		t.Errorf("delivered %s after its commit at best, want about poll_interval_ms", best)
	}
}

func TestReverse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `SELECT pgtrickle.create_inbox('orders_inbox')`)
	if err := os.WriteFile(w.spool("in"), []byte("{\"a\":1}\nnot json\n{\"a\":2}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"source_type":"spool","spool_path":%q,"inbox_table":"orders_inbox"}`, w.spool("in"))
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('both', config => $1::jsonb)`, config)
	w.pipeline(t, "both", "") // the same name in the other direction; enables both
	p := startRelay(t, w.url)
	eventually(t, "both run", patience, func() bool { return p.owned() == 2 })
	w.insert(t, 1, 3)
	eventually(t, "forward", patience, count(w.spool("both"))(3))
	var rows, dead int
	eventually(t, "reverse", patience, func() bool {
		_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.orders_inbox`).Scan(&rows)
		_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters WHERE body = 'not json'`).Scan(&dead)
		return rows == 2 && dead == 1
	})
	out, _, code := runBinary(t, nil, "status", "--postgres-url", w.url, "--output", "json")
	if code != 0 || strings.Count(out, `"state": "running"`) != 2 || !strings.Contains(out, `"dead_letters": 1`) {
		t.Errorf("status = %d %s", code, out)
	}
	out, _, code = runBinary(t, nil, "dlq", "list", "both", "--postgres-url", w.url)
	if code != 0 || !strings.Contains(out, "decode") {
		t.Errorf("dlq list = %d %s", code, out)
	}
	out, stderr, code := runBinary(t, nil, "dlq", "discard", "both", "--postgres-url", w.url)
	if code != 1 || !strings.Contains(stderr, "--all") {
		t.Errorf("dlq discard without a filter = %d %s%s, want it refused", code, out, stderr)
	}
	if out, stderr, code = runBinary(t, nil, "dlq", "discard", "both", "--class", "decode", "--postgres-url", w.url); code != 0 || !strings.Contains(out, "discard: 1") {
		t.Errorf("dlq discard = %d %s%s", code, out, stderr)
	}
}

// What an operator sees when something is wrong: in health, in the log, once.
func TestBadPipelines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "good", "")
	for name, config := range map[string]string{
		"unknown-key":     `{"stream_table":"public.orders","sink_type":"spool","spool_pth":"x"}`,
		"wrong-type":      `{"stream_table":"public.orders","sink":{"type":"spool","path":["x"]}}`,
		"no-key":          `{"stream_table":"public.orders","sink":{"type":"spool"}}`,
		"missing-table":   `{"stream_table":"public.nowhere","sink_type":"spool","spool_path":"` + w.spool("t") + `"}`,
		"unset-secret":    `{"stream_table":"public.orders","sink_type":"spool","spool_path":"x","spool_token":"${env:PGTRICKLE_SECRET_UNSET}"}`,
		"unknown-backend": `{"stream_table":"public.orders","sink_type":"spol"}`,
		"far-end":         `{"stream_table":"public.orders","sink_type":"spool","spool_path":"` + w.spool("no/such/dir") + `"}`,
	} {
		w.raw(t, name, config)
	}
	p := startRelay(t, w.url)
	w.insert(t, 1, 10)
	eventually(t, "the good one delivers", patience, count(w.spool("good"))(10))
	for _, want := range []string{
		`forward pipeline \"unknown-key\" is invalid: key \"spool_pth\": unknown key; did you mean \"spool_path\"?`,
		`forward pipeline \"wrong-type\" is invalid: key \"sink.path\": wants string, not a list`,
		`forward pipeline \"no-key\" is invalid: key \"sink.path\": is required: File.`,
		`forward pipeline \"missing-table\" is failed: open outbox \"public.nowhere\"`,
		`forward pipeline \"unset-secret\" is invalid: key \"spool_token\": ${env:PGTRICKLE_SECRET_UNSET}: environment variable is not set`,
		`forward pipeline \"unknown-backend\": no live instance has backend \"spol\"`,
		`forward pipeline \"far-end\" is failed: open spool sink: open ` + w.spool("no/such/dir"),
	} {
		eventually(t, want, patience, func() bool { _, body := p.get("/health"); return strings.Contains(body, want) })
	}
	_, metrics := p.get("/metrics")
	for _, want := range []string{
		`pgtrickle_relay_pipeline_healthy{direction="forward",pipeline="unknown-key"} 0`,
		`pgtrickle_relay_pipeline_healthy{direction="forward",pipeline="missing-table"} 0`,
		`pgtrickle_relay_pipeline_healthy{direction="forward",pipeline="good"} 1`,
		`pgtrickle_relay_pipeline_unserved{backend="spol",direction="forward",pipeline="unknown-backend"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	eventually(t, "a second look at the catalog", patience, func() bool { return strings.Count(p.log.String(), "unknown-key") > 0 })
	if n := strings.Count(p.log.String(), "spool_pth"); n != 1 {
		t.Errorf("the log says %d times what is wrong with one pipeline, want once:\n%s", n, p.log)
	}
	out, _, code := runBinary(t, nil, "check", "--postgres-url", w.url)
	for _, want := range []string{`OK   forward pipeline "good" (spool)`, `FAIL forward pipeline "missing-table" (spool)`, `SKIP forward pipeline "unknown-backend" (spol)`} {
		if code != 1 || !strings.Contains(out, want) {
			t.Errorf("check = %d, lacks %q:\n%s", code, want, out)
		}
	}
	out, _, _ = runBinary(t, nil, "status", "--postgres-url", w.url)
	for _, want := range []string{"did you mean \"spool_path\"?", `no live instance has backend "spol"`} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
}

// An outbox and an inbox that the relay may not use stop the pipelines on them
// alone. The log reports them once, /health has what they need, and all commands
// still work.
func TestDeniedTables(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.url = exttest.RelayRole(t, w.pool, w.url)
	w.exec(t, `CREATE TABLE others (id int PRIMARY KEY, note text)`)
	w.exec(t, `SELECT pgtrickle.enable_outbox('public.others'), pgtrickle.create_inbox('box')`)
	w.pipeline(t, "good", "")
	w.raw(t, "bad", fmt.Sprintf(`{"stream_table":"public.others","sink_type":"spool","spool_path":%q}`, w.spool("bad")))
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('in', config => $1::jsonb), pgtrickle.enable_relay('in')`,
		fmt.Sprintf(`{"source_type":"spool","spool_path":%q,"inbox_table":"box"}`, w.spool("in")))
	if err := os.WriteFile(w.spool("in"), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.exec(t, `REVOKE SELECT ON pgtrickle.outbox_others FROM pgtrickle_relay`)
	w.exec(t, `REVOKE INSERT ON pgtrickle.box FROM pgtrickle_relay`)

	p := startRelay(t, w.url)
	w.insert(t, 1, 10)
	w.exec(t, `INSERT INTO others VALUES (1, 'x')`)
	eventually(t, "the good one delivers", patience, count(w.spool("good"))(10))
	for _, want := range []string{
		`forward pipeline \"bad\" is failed: open outbox \"public.others\": no permission to read`,
		`GRANT SELECT ON \"pgtrickle\".\"outbox_others\" TO pgtrickle_relay`,
		`reverse pipeline \"in\" is failed: `,
		`GRANT INSERT ON `,
	} {
		eventually(t, want, patience, func() bool { _, body := p.get("/health"); return strings.Contains(body, want) })
	}
	if code, body := p.get("/readyz"); code != 200 {
		t.Errorf("/readyz = %d %s; want 200", code, body)
	}
	if !strings.Contains(p.log.String(), `msg="inbox triggers have relay's rights"`) {
		t.Error("the log does not report that one login writes inboxes and the relay's tables")
	}
	const warning = `missing="SELECT ON pgtrickle.outbox_others, INSERT ON pgtrickle.box" cure="run SELECT pgtrickle.relay_grant_access()`
	if n := strings.Count(p.log.String(), warning); n != 1 {
		t.Errorf("the log has %d times %q, want once", n, warning)
	}
	for _, args := range [][]string{{"status"}, {"dlq", "list"}, {"verify", "good"}} {
		w.command(t, args...)
	}
	if out := w.command(t, "preview", "good", "--from", "1", "-n", "1"); !strings.Contains(out, "outbox_orders.identity_:1:0") {
		t.Errorf("preview prints %q; want the first message", out)
	}
	out, _, code := runBinary(t, nil, "check", "--postgres-url", w.url)
	if code != 1 || !strings.Contains(out, `OK   forward pipeline "good"`) || !strings.Contains(out, `no permission to read "pgtrickle"."outbox_others"`) {
		t.Errorf("check = %d:\n%s\nwant the good one in order, and what the bad one lacks", code, out)
	}

	for _, want := range []string{"SELECT ON pgtrickle.outbox_others", "INSERT ON pgtrickle.box"} {
		if out := w.command(t, "migrate"); !strings.Contains(out, "still missing for this role: "+want+": run SELECT pgtrickle.relay_grant_access()") {
			t.Errorf("migrate prints\n%s\nwant it to say that %s is missing, and what to run", out, want)
		}
	}

	w.exec(t, `SELECT pgtrickle.relay_grant_access()`)
	eventually(t, "delivery once granted", 3*patience, count(w.spool("bad"))(1))
	eventually(t, "all run", 3*patience, func() bool { code, _ := p.get("/health"); return code == 200 })
}

// Without the database or the catalog a relay stays up, is not ready, and reports
// what is missing. It starts its pipelines once that is there.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	t.Run("no server", func(t *testing.T) {
		t.Parallel()
		p := startRelay(t, "postgres://nobody:hunter2@"+freeAddr(t)+"/nothing")
		eventually(t, "unhealthy", patience, func() bool {
			code, body := p.get("/health")
			return code == 503 && strings.Contains(body, "is the server running")
		})
		if code, _ := p.get("/livez"); code != 200 {
			t.Errorf("/livez = %d, want 200", code)
		}
		if code, _ := p.get("/readyz"); code != 503 {
			t.Errorf("/readyz = %d, want 503", code)
		}
		time.Sleep(3 * time.Second) // some retries, which must not be logged
		if n := strings.Count(p.log.String(), "database not ready"); n != 1 {
			t.Errorf("logged %d times, want once:\n%s", n, p.log)
		}
		if strings.Contains(p.log.String(), "hunter2") {
			t.Errorf("the log shows the password:\n%s", p.log)
		}
		p.signal(t, syscall.SIGTERM)
		if code := p.exit(t); code != 0 {
			t.Errorf("exit status %d, want 0", code)
		}
	})
	t.Run("no catalog", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.exec(t, `DROP SCHEMA pgtrickle CASCADE`)
		p := startRelay(t, w.url)
		eventually(t, "what to run", patience, func() bool { code, body := p.get("/readyz"); return code == 503 && strings.Contains(body, "migrate") })
		if out, stderr, code := runBinary(t, nil, "migrate", "--postgres-url", w.url); code != 0 {
			t.Fatalf("migrate = %d %s%s", code, out, stderr)
		}
		eventually(t, "ready", patience, func() bool { code, _ := p.get("/readyz"); return code == 200 })
	})
	t.Run("auto-migrate", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.exec(t, `DROP SCHEMA pgtrickle CASCADE`)
		p := startRelay(t, w.url, "--auto-migrate")
		eventually(t, "ready", patience, func() bool { code, _ := p.get("/readyz"); return code == 200 })
	})
	t.Run("connections killed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.pipeline(t, "p", "")
		p := startRelay(t, w.url)
		w.insert(t, 1, 10)
		eventually(t, "delivery", patience, count(w.spool("p"))(10))
		w.exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test-relay' AND datname = current_database()`)
		w.insert(t, 11, 20)
		eventually(t, "delivery", patience, func() bool { return len(distinct(lines(w.spool("p")))) == 20 })
		eventually(t, "healthy again", patience, func() bool { code, _ := p.get("/health"); return code == 200 })
	})
}

// A process that is stopped loses its pipelines to one that is not, and moves
// nothing when it is continued.
func TestZombie(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	// Of these two names the first wins the pipeline, so it stays where it is.
	zombie := startRelay(t, w.url, "--instance-id", "a")
	eventually(t, "owned", patience, func() bool { return zombie.owned() == 1 })
	w.insert(t, 1, 10)
	eventually(t, "delivery", patience, count(w.spool("p"))(10))
	epoch := w.epoch(t, "p")
	standby := startRelay(t, w.url, "--instance-id", "c")
	eventually(t, "the standby is ready", patience, func() bool { code, _ := standby.get("/readyz"); return code == 200 })
	eventually(t, "checkpoint", patience, func() bool { // what is not in it is rightly delivered again
		var delivered int
		_ = w.pool.QueryRow(t.Context(), `SELECT delivered FROM pgtrickle.relay_cursors`).Scan(&delivered)
		return delivered == 10
	})
	zombie.signal(t, syscall.SIGSTOP)
	var version int
	if err := w.pool.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version >= 140000 {
		took := eventually(t, "the standby takes over", patience, func() bool { return standby.owned() == 1 })
		t.Logf("a stopped process was replaced after %s", took.Round(time.Millisecond))
		w.insert(t, 11, 20)
		eventually(t, "delivery", patience, count(w.spool("p"))(20))
	} else {
		// Without idle_session_timeout a stopped process keeps its locks for as long as
		// its kernel answers. It must give them up itself when it is continued.
		w.insert(t, 11, 20)
		time.Sleep(6 * time.Second)
		if standby.owned() != 0 {
			t.Error("PostgreSQL 13 has ended a session that was idle: say so in package lease's documentation")
		}
	}
	zombie.signal(t, syscall.SIGCONT)
	eventually(t, "the zombie notices", patience, func() bool { return strings.Contains(zombie.log.String(), "lease session lost") })
	w.insert(t, 21, 30)
	eventually(t, "delivery", patience, count(w.spool("p"))(30))
	if got := lines(w.spool("p")); len(got) != len(distinct(got)) {
		t.Errorf("%d lines, %d distinct: the zombie has published: %v", len(got), len(distinct(got)), got)
	}
	if got := w.epoch(t, "p"); got <= epoch {
		t.Errorf("epoch %d, want more than %d", got, epoch)
	}
}

// A process that is stopped while it stores a dead letter holds no lock that the
// next owner must wait for.
func TestZombieWithADeadLetter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var version int
	if err := w.pool.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 140000 {
		t.Skip("PostgreSQL 13 has no idle_session_timeout: a stopped process keeps its pipelines")
	}
	w.pipeline(t, "p", `"spool_poison":"x"`)
	if err := os.WriteFile(w.spool("p")+".poison", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	zombie := startRelay(t, w.url, "--instance-id", "a")
	eventually(t, "owned", patience, func() bool { return zombie.owned() == 1 })
	standby := startRelay(t, w.url, "--instance-id", "c")
	eventually(t, "the standby is ready", patience, func() bool { code, _ := standby.get("/readyz"); return code == 200 })

	tx, err := w.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	if _, err := tx.Exec(t.Context(), `LOCK pgtrickle.relay_dead_letters IN SHARE MODE`); err != nil {
		t.Fatal(err)
	}
	w.insert(t, 1, 1)
	eventually(t, "the dead letter is being stored", patience, func() bool {
		var waiting bool
		err := w.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'pgtrickle.relay_dead_letters'::regclass AND NOT granted)`).Scan(&waiting)
		return err == nil && waiting
	})
	zombie.signal(t, syscall.SIGSTOP)
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := eventually(t, "the standby takes over", patience, func() bool { return standby.owned() == 1 })
	t.Logf("a process that was stopped while it stored a dead letter was replaced after %s", took.Round(time.Millisecond))
	w.insert(t, 2, 2)
	eventually(t, "the dead letters of both", patience, func() bool {
		var n int
		_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters`).Scan(&n)
		return n == 2
	})
}

// A second process with the id of a live one exits, and the first goes on. A process
// that replaces a killed or a stopped one with the same id is not refused.
func TestTwins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	first := startRelay(t, w.url, "--instance-id", "same")
	eventually(t, "owned", patience, func() bool { return first.owned() == 1 })

	twin := startRelay(t, w.url, "--instance-id", "same")
	if code := twin.exit(t); code != 1 || !strings.Contains(twin.log.String(), `instance id "same" is in use by process`) {
		t.Errorf("the twin exits with %d and logs %s", code, twin.log.String())
	}
	w.insert(t, 1, 10)
	eventually(t, "delivery by the first", patience, count(w.spool("p"))(10))
	if code, body := first.get("/health"); code != 200 {
		t.Errorf("/health of the first = %d %s", code, body)
	}

	first.signal(t, syscall.SIGKILL)
	second := startRelay(t, w.url, "--instance-id", "same")
	took := eventually(t, "owned after kill -9", patience, func() bool { return second.owned() == 1 })
	t.Logf("a restart after kill -9 takes over in %s", took.Round(time.Millisecond))

	var version int
	if err := w.pool.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 140000 {
		return // no idle_session_timeout: a stopped process keeps its lock
	}
	second.signal(t, syscall.SIGSTOP)
	third := startRelay(t, w.url, "--instance-id", "same")
	took = eventually(t, "owned after SIGSTOP", patience, func() bool { return third.owned() == 1 })
	t.Logf("a restart beside a stopped process takes over in %s", took.Round(time.Millisecond))
	second.signal(t, syscall.SIGCONT)
	if code := second.exit(t); code != 1 {
		t.Errorf("the continued process exits with %d, want 1", code)
	}
	if third.owned() != 1 {
		t.Error("the third has lost its pipeline to the continued process")
	}
}
