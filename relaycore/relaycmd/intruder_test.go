package relaycmd

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestStrangerAtALock: any role can queue for a pipeline's lock and then hold it for ever.
// Health, status and log name the session, and what ends it.
func TestStrangerAtALock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "p", "")
	role := w.pool.Config().ConnConfig.Database + "_mallory"
	w.exec(t, `CREATE ROLE `+role+` LOGIN`)
	t.Cleanup(func() { _, _ = w.pool.Exec(t.Context(), `DROP ROLE `+role) })
	config := w.pool.Config().ConnConfig.Copy()
	config.User = role
	mallory, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer mallory.Close(t.Context())
	if _, err := mallory.Exec(t.Context(), `SELECT pg_advisory_lock(hashtext('default'), hashtext('p'))`); err != nil {
		t.Fatal(err)
	}

	p := startRelay(t, w.url)
	cure := fmt.Sprintf("SELECT pg_terminate_backend(%d)", mallory.PgConn().PID())
	reason := `is failing: role \"` + role + `\", which is no relay, holds the pipeline's lock`
	eventually(t, reason, patience, func() bool {
		code, body := p.get("/health")
		return code != 200 && strings.Contains(body, reason) && strings.Contains(body, cure)
	})
	if out := w.command(t, "status"); !strings.Contains(out, "failing") || !strings.Contains(out, cure) {
		t.Errorf("status prints\n%s\nwant the pipeline failing, and %s", out, cure)
	}
	if log := p.log.String(); !strings.Contains(log, `msg="another role at pipeline's lock"`) || !strings.Contains(log, cure) {
		t.Errorf("the log does not name the session")
	}

	w.exec(t, cure)
	w.insert(t, 1, 5)
	eventually(t, "delivery", patience, count(w.spool("p"))(5))
	eventually(t, "health", patience, func() bool { code, _ := p.get("/health"); return code == 200 })
}
