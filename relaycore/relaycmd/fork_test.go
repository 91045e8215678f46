package relaycmd

import (
	"syscall"
	"testing"
)

// TestForkCommand: in a copy that nothing detects, the events that follow have other ids
// than in its original. A relay that runs would go on with the old ones.
func TestForkCommand(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if out := w.command(t, "fork"); out != "fork: 0 outboxes have ids of their own\n" {
		t.Errorf("fork without an outbox prints %q", out)
	}
	w.pipeline(t, "p", "")
	w.insert(t, 1, 1)
	relay := startRelay(t, w.url)
	eventually(t, "delivery", patience, count(w.spool("p"))(1))
	w.refused(t, "fork: a relay runs in this database; stop it first", "fork")
	const identity = `SELECT identity FROM pgtrickle.relay_outbox_identities`
	var before, after string
	if err := w.pool.QueryRow(t.Context(), identity).Scan(&before); err != nil {
		t.Fatal(err)
	}
	relay.signal(t, syscall.SIGKILL)
	<-relay.done
	eventually(t, "fork after the relay has ended", patience, func() bool {
		out, _, code := runBinary(t, nil, "fork", "--postgres-url", w.url)
		return code == 0 && out == "fork: 1 outboxes have ids of their own\n"
	})
	w.insert(t, 2, 2)
	startRelay(t, w.url)
	eventually(t, "delivery", patience, count(w.spool("p"))(2))
	if err := w.pool.QueryRow(t.Context(), identity).Scan(&after); err != nil || before == after {
		t.Errorf("identity %s, then %s, %v", before, after, err)
	}
}
