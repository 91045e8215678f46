package relaycmd

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSnapshotProgress starts a pipeline with the rows of its table, and looks for its
// progress where operators look.
func TestSnapshotProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(t, 1, 2000)
	w.exec(t, `ANALYZE orders`)
	w.exec(t, `DELETE FROM pgtrickle.outbox_orders`)
	w.pipeline(t, "p", `"startup":"snapshot","snapshot_rate":200`)
	p := startRelay(t, w.url)
	env := []string{"PGTRICKLE_RELAY_POSTGRES_URL=" + w.url}
	eventually(t, "status shows the progress", 20*time.Second, func() bool {
		out, _, _ := runBinary(t, env, "status")
		return strings.Contains(out, "of about 2000, about")
	})
	eventually(t, "the metrics show the progress", 20*time.Second, func() bool {
		_, text := p.get("/metrics")
		return strings.Contains(text, `pgtrickle_relay_snapshot_total_rows{direction="forward",pipeline="p"} 2000`)
	})
	_, page := p.get("/status.json")
	if !strings.Contains(page, `"snapshot":{"rows":`) {
		t.Errorf("status.json has no progress: %s", page)
	}
	w.exec(t, `UPDATE orders SET note = 'y' WHERE id = 2000`)
	w.exec(t, `SELECT pgtrickle.set_relay_outbox('p', config => (SELECT config - 'snapshot_rate' FROM pgtrickle.get_relay_config('p')))`)
	eventually(t, "all rows and the change came", 30*time.Second, func() bool { return len(lines(w.spool("p"))) >= 2001 })
	eventually(t, "the progress is gone", 20*time.Second, func() bool {
		out, _, _ := runBinary(t, env, "status")
		_, text := p.get("/metrics")
		return !strings.Contains(out, "snapshot:") && !strings.Contains(text, "snapshot_rows{")
	})
	var left int
	if err := w.pool.QueryRow(context.Background(), `SELECT count(*) FROM pgtrickle.relay_cursors WHERE checkpoint ? 'backfill'`).Scan(&left); left != 0 || err != nil {
		t.Errorf("%d checkpoints have a backfill, %v", left, err)
	}
	seen := make(map[string]bool)
	for _, line := range lines(w.spool("p")) {
		if seen[line] {
			t.Errorf("%s came twice", line)
		}
		seen[line] = true
	}
}

// TestSnapshotCommand sends the rows of a running pipeline again: some, then all, with a
// kill -9 in the middle of both, and then cancels one.
func TestSnapshotCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(t, 1, 3000)
	w.pipeline(t, "p", `"startup":"latest"`)
	p := startRelay(t, w.url)
	env := []string{"PGTRICKLE_RELAY_POSTGRES_URL=" + w.url}
	cli := func(want string, args ...string) {
		t.Helper()
		out, errs, _ := runBinary(t, env, args...)
		if !strings.Contains(out+errs, want) {
			t.Fatalf("%v printed %s%s, want %s", args, out, errs, want)
		}
	}
	finished := func() bool {
		var left int
		err := w.pool.QueryRow(context.Background(), `SELECT count(*) FILTER (WHERE finished_at IS NULL) + (SELECT count(*) FROM pgtrickle.relay_snapshot_keys)
			+ (SELECT count(*) FROM pgtrickle.relay_cursors WHERE checkpoint ? 'backfill') FROM pgtrickle.relay_snapshot_requests`).Scan(&left)
		return err == nil && left == 0
	}
	cli(`no snapshot of pipeline "p" runs`, "snapshot", "cancel", "p")
	cli(`pipeline "q" not found`, "snapshot", "q")
	w.exec(t, `SELECT pgtrickle.set_relay_outbox('p', config => (SELECT config || '{"snapshot_rate": 1000}' FROM pgtrickle.get_relay_config('p')))`)
	for _, tc := range []struct {
		says  string
		where []string
		rows  int
	}{
		{"1500 rows of p were selected", []string{"--where", "id % 2 = 0 -- even"}, 1500},
		{"all rows of p were requested", nil, 3000},
	} {
		before := len(lines(w.spool("p")))
		cli(tc.says, append([]string{"snapshot", "p"}, tc.where...)...)
		eventually(t, "rows come", 20*time.Second, func() bool { return len(lines(w.spool("p"))) > before+500 })
		cli("runs already", "snapshot", "p")
		p.signal(t, syscall.SIGKILL)
		if n := len(lines(w.spool("p"))) - before; n >= tc.rows {
			t.Fatalf("the process was killed behind all %d rows", n)
		}
		p = startRelay(t, w.url)
		eventually(t, "all rows came", 60*time.Second, finished)
		distinct := make(map[string]bool)
		for _, line := range lines(w.spool("p"))[before:] {
			distinct[line] = true
		}
		if len(distinct) != tc.rows {
			t.Errorf("%d rows came, want %d", len(distinct), tc.rows)
		}
	}

	cli("all rows", "snapshot", "p")
	before := len(lines(w.spool("p")))
	eventually(t, "rows come", 20*time.Second, func() bool { return len(lines(w.spool("p"))) > before })
	cli("was notified", "snapshot", "cancel", "p")
	eventually(t, "the snapshot is cancelled", 20*time.Second, finished)
	cancelled := len(lines(w.spool("p")))
	if cancelled >= before+3000 {
		t.Error("the cancelled snapshot was complete")
	}
	w.exec(t, `UPDATE orders SET note = 'y' WHERE id = 1`)
	eventually(t, "changes go on", 20*time.Second, func() bool { return len(lines(w.spool("p"))) > cancelled })
	if got := len(lines(w.spool("p"))); got != cancelled+1 {
		t.Errorf("%d messages came behind the cancelled snapshot, want 1", got-cancelled)
	}
	eventually(t, "the log has it", 5*time.Second, func() bool { return strings.Contains(p.log.String(), "snapshot was cancelled") })
}

// TestSnapshotRequests looks at requests in status. One waits while no relay runs. Then it is
// refused, as the table has lost its primary key.
func TestSnapshotRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.insert(t, 1, 10)
	w.pipeline(t, "p", `"startup":"latest"`)
	env := []string{"PGTRICKLE_RELAY_POSTGRES_URL=" + w.url}
	status := func() string {
		out, _, _ := runBinary(t, env, "status")
		return out
	}
	if out := status(); strings.Contains(out, "snapshot") {
		t.Errorf("status shows a snapshot before one is requested: %s", out)
	}
	runBinary(t, env, "snapshot", "p")
	if out := status(); !strings.Contains(out, `warning: pipeline "p": snapshot that `) || !strings.Contains(out, "waits for its owner") {
		t.Errorf("status does not show the request: %s", out)
	}
	w.exec(t, `ALTER TABLE orders DROP CONSTRAINT orders_pkey`)
	startRelay(t, w.url)
	eventually(t, "status shows the refusal", 20*time.Second, func() bool {
		return strings.Contains(status(), "was refused: snapshot: table public.orders has no primary key")
	})
	w.exec(t, `ALTER TABLE orders ADD PRIMARY KEY (id); SELECT pgtrickle.outbox_upgrade('outbox_orders')`)
	runBinary(t, env, "snapshot", "p")
	eventually(t, "the next one is served", 20*time.Second, func() bool {
		return len(lines(w.spool("p"))) == 10 && !strings.Contains(status(), "snapshot")
	})
}
