package relaycmd

import (
	"fmt"
	"strings"
	"testing"
)

// TestMigrateFinish: while an older relay runs, ids keep the old form and the command names
// the relay. Then it sets the boundary at once, for a pipeline that does not run, too.
func TestMigrateFinish(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if out := w.command(t, "migrate", "--finish"); !strings.HasSuffix(out, "no pipeline reads an outbox\n") {
		t.Errorf("without a pipeline it prints %q", out)
	}
	w.pipeline(t, "p", "")
	w.exec(t, `SELECT pgtrickle.disable_relay('p')`)
	w.insert(t, 1, 3)
	older, err := w.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer older.Release()
	for _, sql := range []string{
		`INSERT INTO pgtrickle.relay_instances (instance_id, relay_group_id, binary_name, version, hostname, pid, backends, lock_key)
			VALUES ('older', 'blue', 'relay-spool', 'v0.1.0', 'host7', 42, '{}', 77)`,
		`INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, checkpoint)
			SELECT 'blue', 'forward', 'p', jsonb_build_object('of', jsonb_build_object('table', 'pgtrickle.outbox_orders'::regclass::oid::bigint))`,
		`SELECT pg_advisory_lock(77)`,
	} {
		if _, err := older.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	w.refused(t, "migrate --finish: 1 older relays run, one is relay-spool v0.1.0 of group blue, process 42 on host7: "+
		"stop them, then run it again", "migrate", "--finish")
	if w.identities(t) != 0 {
		t.Error("the refused command has set a boundary")
	}

	if _, err := older.Exec(t.Context(), `SELECT pg_advisory_unlock(77)`); err != nil {
		t.Fatal(err)
	}
	var highest int64
	if err := w.pool.QueryRow(t.Context(), `SELECT max(id) FROM pgtrickle.outbox_orders`).Scan(&highest); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("pgtrickle.outbox_orders: rows up to id %d keep their ids of the old form\n", highest)
	for range 2 { // the second changes nothing
		if out := w.command(t, "migrate", "--finish"); !strings.HasSuffix(out, want) {
			t.Errorf("it prints %q, want %q at the end", out, want)
		}
		w.insert(t, 4, 4)
		w.exec(t, `DELETE FROM orders WHERE id = 4`)
	}
	w.exec(t, `SELECT pgtrickle.enable_relay('p')`)
	startRelay(t, w.url)
	eventually(t, "delivery", patience, count(w.spool("p"))(int(highest)+4))
	ids := lines(w.spool("p"))
	if !strings.HasPrefix(ids[highest-1], "outbox_orders:") || strings.HasPrefix(ids[highest], "outbox_orders:") {
		t.Errorf("ids at the boundary are %s and %s", ids[highest-1], ids[highest])
	}
}

// TestMigrateFinishGoesOn: a pipeline whose outbox is gone does not keep the others back,
// and one with the old form for ever stays as it is.
func TestMigrateFinishGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pipeline(t, "a", "")
	w.exec(t, `CREATE TABLE gone (id int PRIMARY KEY); CREATE TABLE kept (id int PRIMARY KEY);
		SELECT pgtrickle.enable_outbox('public.gone'); SELECT pgtrickle.enable_outbox('public.kept')`)
	w.pipeline(t, "b", `"stream_table": "public.gone"`)
	w.pipeline(t, "c", `"stream_table": "public.kept", "dedup_key_format": "legacy"`)
	w.exec(t, `SELECT pgtrickle.disable_outbox('public.gone')`)
	out, stderr, code := runBinary(t, nil, "migrate", "--finish", "--postgres-url", w.url)
	want := "pgtrickle.outbox_kept: every row has an id of the old form, by dedup_key_format legacy\n" +
		"pgtrickle.outbox_orders: every row has an id of the new form\n"
	if code == 0 || !strings.HasSuffix(out, want) || !strings.Contains(stderr, `migrate --finish: pipeline "b": `) {
		t.Errorf("exit %d, output %q, error %q", code, out, stderr)
	}
}

// identities counts the outboxes with an identity.
func (w *world) identities(t *testing.T) (n int) {
	t.Helper()
	if err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_outbox_identities`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
