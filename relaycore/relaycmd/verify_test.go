package relaycmd

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestVerifyOfSource accounts for the messages of two sources that use one id, and of a far
// end that has lost some.
func TestVerifyOfSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `SELECT pgtrickle.create_inbox('box')`)
	p := startRelay(t, w.url)
	start := func(name, lines string) {
		t.Helper()
		path := w.spool(name)
		if err := os.WriteFile(path, []byte(lines), 0o644); err != nil {
			t.Fatal(err)
		}
		w.exec(t, `SELECT pgtrickle.set_relay_inbox($1, config => $2::jsonb), pgtrickle.enable_relay($1)`, name,
			fmt.Sprintf(`{"source_type":"spool","spool_path":%q,"inbox_table":"box","event_id_from":"body:id"}`, path))
	}
	verified := func(name string, lines ...string) (out, errs string) {
		t.Helper()
		eventually(t, "verify of "+name, patience, func() bool {
			out, errs, _ = runBinary(t, []string{"PGTRICKLE_RELAY_POSTGRES_URL=" + w.url}, "verify", name)
			for _, line := range lines {
				if !strings.Contains(out, line) {
					return false
				}
			}
			return true
		})
		return out, errs
	}

	start("one", `{"id":"a","n":1}`+"\n"+`{"id":"b","n":1}`+"\nno json\n")
	if _, errs := verified("one", "delivered               2", "dead                    1", "skipped                 0", "missed                  0"); errs != "" {
		t.Errorf("verify of a source that lost nothing fails: %s", errs)
	}
	start("two", `{"id":"a","n":2}`+"\n"+`{"id":"c","n":2}`+"\n")
	if _, errs := verified("two", "skipped                 1"); !strings.Contains(errs, "had the ids of 1 other events already") {
		t.Errorf("verify of a source whose ids another one uses = %s", errs)
	}
	w.command(t, "verify", "two", "--accept-skipped")
	if _, errs := verified("two", "skipped                 0"); errs != "" {
		t.Errorf("verify after --accept-skipped = %s", errs)
	}

	p.signal(t, syscall.SIGTERM)
	p.exit(t)
	w.exec(t, `UPDATE pgtrickle.relay_cursors SET far_ends = '{"x": {"missed": 3}, "y": {"missed": 4, "remade": 1}, "z": {}}' WHERE pipeline = 'two'`)
	out, errs := verified("two", "missed                  7")
	if !strings.Contains(out, "far end made again      1") || !strings.Contains(errs, "lost messages before") {
		t.Errorf("verify of a source that lost messages = %s%s", out, errs)
	}
}
