package relaycmd

import (
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"syscall"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

//go:embed testdata/twins.sql
var twins string

// TestHostileTwins: no session of the relay, of its commands or of its functions uses what
// another role has made in schema public. That holds for functions, operators, types and
// relations, and even where the search path has that schema before pg_catalog.
func TestHostileTwins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `CREATE TABLE public.more (id int PRIMARY KEY, t text) PARTITION BY RANGE (id); CREATE TABLE public.piece PARTITION OF public.more DEFAULT;
		CREATE TABLE public.own (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb);
		CREATE TABLE public.parts (event_id text, payload jsonb, at date DEFAULT '2026-01-01') PARTITION BY RANGE (at);
		CREATE TABLE public.part PARTITION OF public.parts DEFAULT; CREATE INDEX ON public.parts (event_id); INSERT INTO public.parts VALUES ('line:1', '"another"');
		SELECT pgtrickle.create_inbox('box'); INSERT INTO pgtrickle.box (event_id, payload) VALUES ('line:1', '"another"')`)
	w.pool = pgtest.Open(t, w.withPath(t, "pg_catalog")) // the test's own statements are no subject of it
	if _, err := w.pool.Exec(t.Context(), twins); err != nil {
		t.Fatal(err)
	}
	var made int
	if err := w.pool.QueryRow(t.Context(), `SELECT public.make_twins()`).Scan(&made); err != nil || made < 3000 {
		t.Fatalf("made %d twins, %v", made, err)
	}
	w.exec(t, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$`)

	w.hostile(t, fmt.Sprintf(`
		SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"public.orders","sink_type":"spool","spool_path":%[1]q}');
		SELECT pgtrickle.set_relay_outbox('own', config => '{"stream_table":"public.own","sink_type":"spool","spool_path":%[2]q}');
		SELECT pgtrickle.set_relay_inbox('r', config => '{"source_type":"spool","spool_path":%[3]q,"inbox_table":"box"}');
		SELECT pgtrickle.set_relay_inbox('q', config => '{"source_type":"spool","spool_path":%[3]q,"inbox_table":"parts","inbox_schema":"public"}');
		SELECT pgtrickle.enable_relay('p'); SELECT pgtrickle.enable_relay('own'); SELECT pgtrickle.enable_relay('r'); SELECT pgtrickle.enable_relay('q');
		INSERT INTO public.orders VALUES (1, 'a'), (2, 'b'); UPDATE public.orders SET note = 'c'; DELETE FROM public.orders WHERE true; TRUNCATE public.orders;
		INSERT INTO public.orders VALUES (3, 'd'); INSERT INTO public.own (payload) VALUES ('{}')`, w.spool("p"), w.spool("own"), w.spool("in")))
	if err := os.WriteFile(w.spool("in"), []byte(`{"a":1}`+"\n"+`{"a":2}`+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := startRelay(t, w.url)
	eventually(t, "delivery", patience, count(w.spool("p"))(7))
	eventually(t, "delivery of an outbox of one's own", patience, count(w.spool("own"))(1))
	for _, inbox := range []string{"pgtrickle.box", "public.parts"} {
		eventually(t, "arrival in "+inbox, patience, func() bool {
			var n int
			_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM `+inbox).Scan(&n)
			return n == 2
		})
	}
	for _, args := range [][]string{{"check"}, {"status"}, {"preview", "p"}, {"verify", "p"}, {"dlq", "list"}, {"migrate"}, {"migrate", "--release-extension"}} {
		w.command(t, args...)
	}
	w.hostile(t, `
		SELECT pgtrickle.list_relay_configs(); SELECT pgtrickle.get_relay_config('p'); SELECT pgtrickle.outbox_status('orders'); SELECT pgtrickle.relay_dlq_list('p');
		SELECT pgtrickle.relay_snapshot('p', 'true'); SELECT pgtrickle.relay_snapshot_cancel('p'); SELECT pgtrickle.relay_retry('p');
		SELECT pgtrickle.inbox_status(); SELECT pgtrickle.inbox_health('box'); SELECT pgtrickle.create_inbox('more'); SELECT pgtrickle.drop_inbox('more');
		SELECT pgtrickle.outbox_truncate_policy('public.orders', 'ignore'); SELECT pgtrickle.outbox_upgrade('public.orders');
		SELECT pgtrickle.enable_outbox('public.more'); INSERT INTO public.more VALUES (1, 'a'); SELECT pgtrickle.outbox_attach_partitions('public.more');
		SELECT pgtrickle.outbox_publish('public.orders', '{"a":1}'); SELECT pgtrickle.replay_inbox_messages('box', '{line:1}');
		SELECT pgtrickle.relay_dlq_retry('p'); SELECT pgtrickle.relay_dlq_discard('p'); SELECT pgtrickle.relay_pipeline_owner('q', 'postgres');
		SELECT pgtrickle.disable_relay('p'); SELECT pgtrickle.delete_relay('own'); SELECT pgtrickle.relay_grant_access()`)
	w.hostile(t, w.command(t, "migrate", "--sql"))
	p.signal(t, syscall.SIGINT)
	p.exit(t)
	w.hostile(t, `SELECT pgtrickle.rename_relay('p', 'renamed'); SELECT pgtrickle.disable_outbox('public.orders');
		SELECT pgtrickle.disable_outbox('public.more', true)`)

	var ran bool
	if err := w.pool.QueryRow(t.Context(), `SELECT is_called FROM public.ran`).Scan(&ran); err != nil || ran {
		t.Errorf("a twin was used: %t, %v; the log of the relay or of the server names it", ran, err)
	}
}

// withPath returns the database's URL for sessions with a search path.
func (w *world) withPath(t *testing.T, path string) string {
	t.Helper()
	u, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("search_path", path)
	u.RawQuery = q.Encode()
	return u.String()
}

// hostile runs statements in a session that finds the twins first.
func (w *world) hostile(t *testing.T, sql string) {
	t.Helper()
	if _, err := pgtest.Open(t, w.withPath(t, "public,pg_catalog")).Exec(t.Context(), sql); err != nil {
		t.Errorf("%s: %v", sql[:min(len(sql), 300)], err)
	}
}

// TestInboxCodeFindsItsNames: a trigger and a domain's check of a user's inbox name tables
// and functions without their schema. The relay's own sessions would not find these.
func TestInboxCodeFindsItsNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, `CREATE TABLE public.seen (id text);
		CREATE FUNCTION public.has_text(text) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT length($1) > 0';
		CREATE FUNCTION public.is_good(text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN has_text($1); END';
		CREATE DOMAIN public.good AS text CHECK (is_good(VALUE));
		CREATE TABLE public.mine (event_id good PRIMARY KEY, payload jsonb);
		CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO seen VALUES (NEW.event_id); RETURN NULL; END';
		CREATE TRIGGER note AFTER INSERT ON public.mine FOR EACH ROW EXECUTE FUNCTION note()`)
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('r', config => $1::jsonb), pgtrickle.enable_relay('r')`,
		fmt.Sprintf(`{"source_type":"spool","spool_path":%q,"inbox_table":"mine","inbox_schema":"public"}`, w.spool("in")))
	if err := os.WriteFile(w.spool("in"), []byte(`{"a":1}`+"\n"+`{"a":2}`+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	startRelay(t, w.url)
	eventually(t, "the trigger has seen both", patience, func() bool {
		var n int
		err := w.pool.QueryRow(t.Context(), `SELECT count(*) FROM public.seen JOIN public.mine ON id = event_id`).Scan(&n)
		return err == nil && n == 2
	})
}
