package outbox_test

import (
	"bytes"
	"context"
	"net/url"
	osexec "os/exec"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// identified returns a database with the relay's schema and an outbox of table orders.
func identified(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `CREATE TABLE orders (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.orders')`)
	return pool
}

// pipeline opens the outbox for a pipeline of that identity.
func pipeline(t *testing.T, pool *pgxpool.Pool, identity string, change ...func(*outbox.Config)) *outbox.Source {
	t.Helper()
	set := func(c *outbox.Config) { c.Outbox, c.Identity = "public.orders", identity }
	return open(t, pool, relay.Checkpoint{}, append([]func(*outbox.Config){set}, change...)...)
}

// TestIdentity: the same event has one id and, by two pipelines, two delivery ids. Events
// of two databases, and of a table that was created again, have different ids.
func TestIdentity(t *testing.T) {
	t.Parallel()
	one, other := identified(t), identified(t)
	for _, pool := range []*pgxpool.Pool{one, other} {
		exec(t, pool, `INSERT INTO orders VALUES (1)`)
	}
	a, b := receive(t, pipeline(t, one, "aaaaaaaaaaaa"), 1)[0], receive(t, pipeline(t, one, "bbbbbbbbbbbb"), 1)[0]
	if a.ID != b.ID || a.DeliveryID == b.DeliveryID || a.DeliveryID != relay.DeliveryID("aaaaaaaaaaaa", a.ID) {
		t.Errorf("two pipelines: ids %s and %s, deliveries %s and %s", a.ID, b.ID, a.DeliveryID, b.DeliveryID)
	}
	if again := receive(t, pipeline(t, one, "aaaaaaaaaaaa"), 1)[0]; again.ID != a.ID || again.DeliveryID != a.DeliveryID {
		t.Errorf("read again: %s and %s, want %s and %s", again.ID, again.DeliveryID, a.ID, a.DeliveryID)
	}
	if c := receive(t, pipeline(t, other, "aaaaaaaaaaaa"), 1)[0]; c.ID == a.ID {
		t.Errorf("two databases share %s", c.ID)
	}

	for name, sql := range map[string]string{
		"the outbox made anew": `SELECT pgtrickle.disable_outbox('public.orders'); SELECT pgtrickle.enable_outbox('public.orders')`,
		"ids begin again":      `TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY`,
	} {
		exec(t, one, sql)
		exec(t, one, `DELETE FROM orders WHERE id = 2; TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY; INSERT INTO orders VALUES (2)`)
		if c := receive(t, pipeline(t, one, "aaaaaaaaaaaa"), 1)[0]; rowOf(c.ID) != rowOf(a.ID) || c.ID == a.ID || c.DeliveryID == a.DeliveryID {
			t.Errorf("%s: %s after %s", name, c.ID, a.ID)
		}
	}
	legacy := func(c *outbox.Config) { c.Settings.DedupKeyFormat = "legacy" }
	if c := receive(t, pipeline(t, one, "aaaaaaaaaaaa", legacy), 1)[0]; c.ID != "outbox_orders:1:0" || c.DeliveryID != c.ID {
		t.Errorf("dedup_key_format legacy gives %s and %s", c.ID, c.DeliveryID)
	}
}

// TestIdentityAtAnUpgrade: while an older relay runs, every id has the old form. Then the
// rows that it may have published keep that form. A source that runs goes on with the new
// one, and reads nothing again.
func TestIdentityAtAnUpgrade(t *testing.T) {
	t.Parallel()
	pool := identified(t)
	older, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer older.Release()
	exec(t, pool, `INSERT INTO pgtrickle.relay_instances (instance_id, relay_group_id, backends, lock_key) VALUES ('older', 'g', '{}', 77);
		INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, checkpoint) SELECT 'g', 'forward', 'p',
			jsonb_build_object('of', jsonb_build_object('table', 'pgtrickle.outbox_orders'::regclass::oid::bigint));
		INSERT INTO orders VALUES (1)`)
	if _, err := older.Exec(t.Context(), `SELECT pg_advisory_lock(77)`); err != nil {
		t.Fatal(err)
	}
	src := pipeline(t, pool, "aaaaaaaaaaaa")
	if m := receive(t, src, 1)[0]; m.ID != "outbox_orders:1:0" || m.DeliveryID != m.ID {
		t.Errorf("beside an older relay: %s, %s", m.ID, m.DeliveryID)
	}

	if _, err := older.Exec(t.Context(), `SELECT pg_advisory_unlock(77)`); err != nil {
		t.Fatal(err)
	}
	for i := 2; ; i++ { // until the source has noticed
		exec(t, pool, `INSERT INTO orders VALUES ($1)`, i)
		if m := receive(t, src, 1)[0]; strings.HasPrefix(m.DeliveryID, "aaaaaaaaaaaa.") {
			break
		}
	}
	all := receive(t, pipeline(t, pool, "aaaaaaaaaaaa"), 2)
	if all[0].ID != "outbox_orders:1:0" || all[0].DeliveryID != all[0].ID {
		t.Errorf("the first row has %s, %s after the upgrade", all[0].ID, all[0].DeliveryID)
	}
	var first int64
	err = pool.QueryRow(context.Background(), `SELECT legacy_to FROM pgtrickle.relay_outbox_identities`).Scan(&first)
	if err != nil || first < 1 {
		t.Errorf("rows up to %d keep the old form, %v", first, err)
	}
}

// TestIdentityOfATableSwappedUnderASource: the source notices before it delivers a row of
// the new table that this is another one. So no row gets two ids.
func TestIdentityOfATableSwappedUnderASource(t *testing.T) {
	t.Parallel()
	pool := identified(t)
	exec(t, pool, `INSERT INTO orders VALUES (1), (2)`)
	src := pipeline(t, pool, "aaaaaaaaaaaa")
	before := receive(t, src, 2)
	checkpoint(t, src, before)
	exec(t, pool, `BEGIN; SELECT pgtrickle.disable_outbox('public.orders'); SELECT pgtrickle.enable_outbox('public.orders');
		INSERT INTO orders VALUES (3), (4); COMMIT`)
	after := receive(t, src, 2)
	identity := func(m relay.Message) string { return m.ID[:12] }
	if identity(after[0]) == identity(before[0]) || identity(after[1]) != identity(after[0]) {
		t.Errorf("ids %s and %s after %s", after[0].ID, after[1].ID, before[0].ID)
	}
	checkpoint(t, src, after)
	if again, err := src.Look(t.Context(), 2); err != nil || len(again) != 0 {
		t.Errorf("received %d more, %v; want each row once", len(again), err)
	}
}

// TestFork: a copy of a database whose original goes on. With on_restore fork what the copy
// sends has ids of its own, once and for all. With continue it has those of the original,
// as after a move.
func TestFork(t *testing.T) {
	t.Parallel()
	original := identified(t)
	exec(t, original, `INSERT INTO orders VALUES (1); INSERT INTO orders VALUES (2)`)
	src := pipeline(t, original, "aaaaaaaaaaaa")
	sent := receive(t, src, 2)
	at := checkpoint(t, src, sent[:1])
	forked, continued := clone(t, original, "_forked"), clone(t, original, "_continued")
	for _, pool := range []*pgxpool.Pool{original, forked, continued} {
		exec(t, pool, `INSERT INTO orders VALUES (3)`)
	}
	sent = append(sent, receiveAgain(t, src, 1)...)

	read := func(pool *pgxpool.Pool, onRestore string, at relay.Checkpoint) (*outbox.Source, []relay.Message) {
		t.Helper()
		src := pipeline(t, pool, "aaaaaaaaaaaa", func(c *outbox.Config) { c.Checkpoint, c.Settings.OnRestore = at, onRestore })
		got := receive(t, src, 1)
		for got[len(got)-1].OutboxID < sent[2].OutboxID {
			got = append(got, receive(t, src, 1)...)
		}
		return src, got
	}
	_, moved := read(continued, "continue", at)
	if undelivered := moved[len(moved)-2]; undelivered.ID != sent[1].ID {
		t.Errorf("continue: row 2 has id %s, want %s", undelivered.ID, sent[1].ID)
	}
	src, own := read(forked, "fork", at)
	for _, m := range own {
		for _, o := range sent {
			if m.ID == o.ID || m.DeliveryID == o.DeliveryID {
				t.Errorf("fork: the original has sent %s, too", m.ID)
			}
		}
	}
	exec(t, forked, `INSERT INTO orders VALUES (4)`)
	_, again := read(forked, "fork", checkpoint(t, src, own))
	identity, _, _ := strings.Cut(own[0].ID, ".")
	if next := again[len(again)-1]; !strings.HasPrefix(next.ID, identity+".") {
		t.Errorf("fork: after a restart ids are %s, before %s", next.ID, own[0].ID)
	}
}

// clone copies the database of pool.
func clone(t *testing.T, pool *pgxpool.Pool, suffix string) *pgxpool.Pool {
	t.Helper()
	name := pool.Config().ConnConfig.Database
	server := pgtest.Pool(t)
	exec(t, server, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '`+name+`'`)
	pool.Reset() // its connections are gone
	eventually(t, "the sessions end", func() bool {
		_, err := server.Exec(t.Context(), "CREATE DATABASE "+name+suffix+" TEMPLATE "+name)
		return err == nil
	})
	t.Cleanup(func() { exec(t, server, "DROP DATABASE "+name+suffix+" WITH (FORCE)") })
	u, err := url.Parse(pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name + suffix
	return pgtest.Open(t, u.String())
}

// TestIdentityOfADump: pg_dump and a restore change oids, and here the tables of two
// outboxes have swapped theirs. Each finds its own identity, and on_restore decides
// whether the copy keeps it. A table that is created again under the name of a restored
// one is another outbox.
func TestIdentityOfADump(t *testing.T) {
	t.Parallel()
	original := identified(t)
	exec(t, original, `CREATE TABLE customers (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.customers');
		INSERT INTO orders VALUES (1), (2); INSERT INTO customers VALUES (1), (2)`)
	customers := func(c *outbox.Config) { c.Outbox = "public.customers" }
	sent := receive(t, pipeline(t, original, "aaaaaaaaaaaa"), 2)
	others := receive(t, pipeline(t, original, "aaaaaaaaaaaa", customers), 2)

	for name, tc := range map[string]struct {
		onRestore string
		same      bool
	}{
		"continue": {"continue", true},
		"fork":     {"fork", false},
	} {
		restored := dump(t, original, "_"+name)
		exec(t, restored, `UPDATE pgtrickle.relay_outbox_identities SET outbox = 1 WHERE name LIKE '%orders%';
			UPDATE pgtrickle.relay_outbox_identities SET outbox = 'pgtrickle.outbox_orders'::regclass WHERE name LIKE '%customers%';
			UPDATE pgtrickle.relay_outbox_identities SET outbox = 'pgtrickle.outbox_customers'::regclass WHERE name LIKE '%orders%'`)
		_, err := outbox.Open(t.Context(), restored, outbox.Config{Outbox: "public.orders", Group: "g", Pipeline: "p"})
		if err == nil || !relay.IsFatal(err) || !strings.Contains(err.Error(), "set on_restore to continue") {
			t.Errorf("%s: opened with refuse: %v", name, err)
		}
		set := func(c *outbox.Config) { c.Settings.OnRestore = tc.onRestore }
		for range 2 { // the second finds what the first has left
			got := receive(t, pipeline(t, restored, "aaaaaaaaaaaa", set), 2)
			other := receive(t, pipeline(t, restored, "aaaaaaaaaaaa", set, customers), 2)
			for i := range got {
				if (got[i].ID == sent[i].ID) != tc.same || (other[i].ID == others[i].ID) != tc.same {
					t.Errorf("%s: ids %s and %s, in the original %s and %s", name, got[i].ID, other[i].ID, sent[i].ID, others[i].ID)
				}
			}
		}
		if _, err := outbox.Open(t.Context(), restored, outbox.Config{Outbox: "public.orders", Group: "g", Pipeline: "p"}); err != nil {
			t.Errorf("%s: opened with refuse afterwards: %v", name, err)
		}

		before := receive(t, pipeline(t, restored, "aaaaaaaaaaaa"), 1)[0]
		exec(t, restored, `SELECT pgtrickle.disable_outbox('public.orders'); SELECT pgtrickle.enable_outbox('public.orders');
			INSERT INTO orders VALUES (3)`)
		if after := receive(t, pipeline(t, restored, "aaaaaaaaaaaa"), 1)[0]; after.ID[:12] == before.ID[:12] {
			t.Errorf("%s: the outbox was created again and has %s after %s", name, after.ID, before.ID)
		}
	}
}

// TestIdentityOfARenamedOutbox: the identity is that of the table, whatever it is called.
// A dump finds the table by the name that it has last.
func TestIdentityOfARenamedOutbox(t *testing.T) {
	t.Parallel()
	original := pgtest.Pool(t)
	if err := migrate.Up(t.Context(), original, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, original, `CREATE TABLE "Own" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload json); INSERT INTO "Own" (payload) VALUES ('{}')`)
	named := func(name, onRestore string) func(*outbox.Config) {
		return func(c *outbox.Config) { c.Outbox, c.Settings.OnRestore = name, onRestore }
	}
	before := receive(t, pipeline(t, original, "aaaaaaaaaaaa", named("public.Own", "")), 1)[0]
	exec(t, original, `ALTER TABLE "Own" RENAME TO "Mine"`)
	if after := receive(t, pipeline(t, original, "aaaaaaaaaaaa", named("public.Mine", "")), 1)[0]; after.ID[:12] != before.ID[:12] {
		t.Errorf("renamed: %s after %s", after.ID, before.ID)
	}
	if after := receive(t, pipeline(t, dump(t, original, "_copy"), "aaaaaaaaaaaa", named("public.Mine", "continue")), 1)[0]; after.ID[:12] != before.ID[:12] {
		t.Errorf("restored: %s after %s", after.ID, before.ID)
	}
}

// dump restores a dump of pool's database into another one. It copies the database if the
// client's pg_dump is older than the server, which it refuses.
func dump(t *testing.T, pool *pgxpool.Pool, suffix string) *pgxpool.Pool {
	t.Helper()
	to := pgtest.URL(t)
	out, err := osexec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-c", `pg_dump "$1" | psql -X -q -v ON_ERROR_STOP=1 "$2"`, "-",
		pool.Config().ConnString(), to).CombinedOutput()
	if bytes.Contains(out, []byte("server version mismatch")) {
		return clone(t, pool, suffix)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return pgtest.Open(t, to)
}
