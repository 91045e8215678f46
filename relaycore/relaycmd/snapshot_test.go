package relaycmd

import (
	"context"
	"strings"
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
