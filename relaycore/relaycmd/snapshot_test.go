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
// kill -9 in between, and then cancels one.
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
	cli("1500 rows of p were selected", "snapshot", "p", "--where", "id % 2 = 0 -- even")
	eventually(t, "the selected rows came", 30*time.Second, func() bool { return len(lines(w.spool("p"))) == 1500 && finished() })

	w.exec(t, `SELECT pgtrickle.set_relay_outbox('p', config => (SELECT config || '{"snapshot_rate": 1000}' FROM pgtrickle.get_relay_config('p')))`)
	cli("all rows of p were requested", "snapshot", "p")
	eventually(t, "rows come", 20*time.Second, func() bool { return len(lines(w.spool("p"))) > 2000 })
	cli("runs already", "snapshot", "p")
	p.signal(t, syscall.SIGKILL)
	p = startRelay(t, w.url)
	eventually(t, "all rows came", 60*time.Second, func() bool { return finished() })
	distinct := make(map[string]bool)
	all := lines(w.spool("p"))
	for _, line := range all[1500:] {
		distinct[line] = true
	}
	if len(distinct) != 3000 {
		t.Errorf("%d rows came, want 3000", len(distinct))
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
