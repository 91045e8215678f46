package exttest_test

import (
	"bytes"
	"context"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// TestDumpAndRestore dumps a database with the extension and restores it into another
// one. Pipelines and registrations are not carried; the steps of docs/extension.md carry
// them. The pipeline goes on with on_restore: rebase: its snapshot state is carried, so
// that what is deleted by then is deleted at the receiver, too.
func TestDumpAndRestore(t *testing.T) {
	t.Parallel()
	from, url := extension(t)
	tool(t, from)
	up(t, from)
	exec(t, from, pipeline)
	exec(t, from, `INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, epoch) VALUES ('g', 'forward', 'p', 1)`)
	exec(t, from, `TRUNCATE `+exttest.Source("public.orders")+`; INSERT INTO `+exttest.Source("public.orders")+` (id) VALUES (1), (2)`)
	exttest.Refresh(t, from, "public.orders", 2, 0, false)
	src, err := restored(from, relay.Checkpoint{}, "refuse")
	if err != nil {
		t.Fatal(err)
	}
	c, err := src.Checkpoint(look(t, src, 2))
	if err != nil {
		t.Fatal(err)
	}
	exec(t, from, `UPDATE pgtrickle.relay_cursors SET checkpoint = $1, last_id = $2`, c.State, c.LastID)
	if err := src.Committed(t.Context(), c); err != nil {
		t.Fatal(err)
	}

	to := exttest.URL(t)
	pool := pgtest.Open(t, to)
	exttest.Install(t, pool)
	if exttest.Real() { // the dump has them
		exec(t, pool, `DROP FUNCTION pgtrickle.fixture_stream_table, pgtrickle.fixture_refresh`)
	}
	dump := filepath.Join(t.TempDir(), "dump.sql")
	run(t, "pg_dump", "--extension=plpgsql", "--file="+dump, url)
	run(t, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", dump, to)
	up(t, pool)
	if got := names(t, pool); got != "" {
		t.Errorf("pipelines %q were carried", got)
	}
	if _, err := restored(pool, c, "rebase"); err == nil || !strings.Contains(err.Error(), "enable_outbox") {
		t.Errorf("Open without a registration: %v", err)
	}

	var copied bytes.Buffer
	conn, into := acquire(t, from), acquire(t, pool)
	if _, err := conn.PgConn().CopyTo(t.Context(), &copied, `COPY pgtrickle.relay_outbox_config TO STDOUT`); err != nil {
		t.Fatal(err)
	}
	if _, err := into.PgConn().CopyFrom(t.Context(), &copied, `COPY pgtrickle.relay_outbox_config FROM STDIN`); err != nil {
		t.Fatal(err)
	}
	if got := names(t, pool); got != "p" {
		t.Errorf("pipelines %q, want p", got)
	}
	if exttest.Real() { // it restores its stream tables as tables that it no longer refreshes
		exec(t, pool, `DROP TABLE public.orders; DELETE FROM pgtrickle.pgt_stream_tables; ALTER TABLE fixture_public.orders SET SCHEMA public`)
	}
	exttest.EnableOutbox(t, pool, "public.orders")
	exec(t, pool, `SELECT pgtrickle.relay_grant_access()`)
	if _, err := restored(pool, c, "refuse"); err == nil || !strings.Contains(err.Error(), "on_restore") {
		t.Errorf("Open of a copy: %v", err)
	}
	exec(t, pool, `DELETE FROM `+exttest.Source("public.orders")+` WHERE id = 1`)
	exttest.Refresh(t, pool, "public.orders", 0, 1, false)
	if src, err = restored(pool, c, "rebase"); err != nil {
		t.Fatal(err)
	}
	got := look(t, src, 2)
	if got[0].Op != relay.OpDelete || !strings.Contains(string(got[0].Row), `"id": 1`) || !got[1].FullRefresh || !strings.Contains(string(got[1].Row), `"id": 2`) {
		t.Errorf("got %s %s, %s %s; want a delete of 1, and 2 as a snapshot", got[0].Op, got[0].Row, got[1].Op, got[1].Row)
	}
}

func restored(pool *pgxpool.Pool, c relay.Checkpoint, onRestore string) (*outbox.Source, error) {
	return outbox.Open(context.Background(), pool, outbox.Config{
		Outbox: "public.orders", Group: "g", Pipeline: "p", Epoch: 1, Checkpoint: c, Settings: outbox.Settings{OnRestore: onRestore},
	})
}

// look returns n messages, which must be all.
func look(t *testing.T, src *outbox.Source, n int) (all []relay.Message) {
	t.Helper()
	for {
		batch, err := src.Look(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		if all = append(all, batch...); len(batch) == 0 {
			break
		}
	}
	if len(all) != n {
		t.Fatalf("%d messages, want %d", len(all), n)
	}
	return all
}

func acquire(t *testing.T, pool *pgxpool.Pool) *pgx.Conn {
	t.Helper()
	c, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Release)
	return c.Conn()
}

// tool skips the test if pg_dump is older than the server: it refuses such servers.
func tool(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	var server int
	if err := pool.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&server); err != nil {
		t.Fatal(err)
	}
	var own int
	for word := range strings.FieldsSeq(run(t, "pg_dump", "--version")) {
		if n, err := strconv.Atoi(strings.Split(word, ".")[0]); err == nil {
			own = n
			break
		}
	}
	if own < server {
		t.Skipf("pg_dump %d does not dump PostgreSQL %d; the servers of other versions run this test", own, server)
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := osexec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
