package relaycmd

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestForgedIDs: a producer that forges the id of another's event takes its place in a
// shared inbox, unless id_scope of its pipeline is pipeline.
func TestForgedIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const id = "abcdefghijkl.0123456789:1:0"
	event := `{"dedup_key":"` + id + `","subject":"s","payload":%s,"op":"insert","is_full_refresh":false,"outbox_id":1,"refresh_id":null}` + "\n"
	start := func(name, scope, inbox, payload string) {
		t.Helper()
		path := w.spool(name)
		if err := os.WriteFile(path, fmt.Appendf(nil, event, payload), 0o644); err != nil {
			t.Fatal(err)
		}
		w.exec(t, `SELECT pgtrickle.set_relay_inbox($1, config => $2::jsonb), pgtrickle.enable_relay($1)`, name,
			fmt.Sprintf(`{"source_type":"spool","spool_path":%q,"inbox_table":%q,"id_scope":%q}`, path, inbox, scope))
	}
	for _, scope := range []string{"far_end", "pipeline"} {
		w.exec(t, `SELECT pgtrickle.create_inbox($1)`, "box_"+scope)
		start("hostile-"+scope, scope, "box_"+scope, `"hostile"`)
	}
	p := startRelay(t, w.url)
	arrived := func(box string, n int) {
		t.Helper()
		eventually(t, "arrival in "+box, patience, func() bool {
			var got int
			_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.`+box).Scan(&got)
			return got == n
		})
	}
	arrived("box_far_end", 1)
	arrived("box_pipeline", 1)
	start("real-pipeline", "far_end", "box_pipeline", `"real"`)
	arrived("box_pipeline", 2)
	start("real-far_end", "far_end", "box_far_end", `"real"`)
	eventually(t, "a warning", patience, func() bool { return strings.Contains(p.log.String(), "another event has this id") })
	arrived("box_far_end", 1)
	var ids string
	if err := w.pool.QueryRow(t.Context(), `SELECT string_agg(event_id, ' ' ORDER BY event_id) FROM pgtrickle.box_pipeline`).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	if want := id + " pipeline:hostile-pipeline:" + id; ids != want {
		t.Errorf("the ids are %q, want %q", ids, want)
	}
}
