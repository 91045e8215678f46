package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// createInbox is the table that pg_trickle's create_inbox makes.
const createInbox = `
CREATE TABLE orders_inbox (
    event_id text NOT NULL PRIMARY KEY, event_type text, source text, aggregate_id text, payload jsonb,
    received_at timestamptz NOT NULL DEFAULT now(), processed_at timestamptz, error text,
    retry_count int NOT NULL DEFAULT 0, trace_id text)`

const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestConformance(t *testing.T) {
	for name, tc := range map[string]struct{ ddl string }{
		"managed":         {createInbox},
		"lookup":          {"CREATE TABLE orders_inbox (event_id text, payload jsonb, received_at timestamptz, PRIMARY KEY (event_id, received_at)) PARTITION BY RANGE (received_at); CREATE TABLE p PARTITION OF orders_inbox DEFAULT"},
		"hash partitions": {"CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb, received_at timestamptz DEFAULT now()) PARTITION BY HASH (event_id); CREATE TABLE p0 PARTITION OF orders_inbox FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE p1 PARTITION OF orders_inbox FOR VALUES WITH (MODULUS 2, REMAINDER 1)"},
	} {
		t.Run(name, func(t *testing.T) {
			relaytest.TestSink(t, relaytest.SinkHarness{
				Dedup: true, JSONOnly: true, UTF8Only: true, NoHeaders: true,
				Refuse: func(_ testing.TB, m *relay.Message) { m.Row = []byte(`{"nul":"\u0000"}`) },
				New: func(t testing.TB) relaytest.SinkCase {
					pool := pgtest.Pool(t)
					mustExec(t, pool, tc.ddl)
					return relaytest.SinkCase{
						Open: func(t testing.TB) relay.Sink { return open(t, pool, inbox.Config{}) },
						Read: func(t testing.TB, n int) []relay.Message { return read(t, pool, n) },
					}
				},
			})
		})
	}
}

func open(t testing.TB, pool *pgxpool.Pool, cfg inbox.Config) *inbox.Sink {
	t.Helper()
	s, err := inbox.Open(context.Background(), pool, withTable(cfg))
	if err != nil {
		t.Fatalf("Open(%+v) = %v", cfg, err)
	}
	return s
}

func withTable(cfg inbox.Config) inbox.Config {
	if cfg.Table == "" {
		cfg.Schema, cfg.Table = "public", "orders_inbox"
	}
	if cfg.Source == "" {
		cfg.Source = "pipe"
	}
	return cfg
}

// read waits for n rows: a cancelled insert may still be on its way in.
func read(t testing.TB, pool *pgxpool.Pool, n int) []relay.Message {
	t.Helper()
	deadline := time.Now().Add(relaytest.Patience())
	for {
		rows, err := pool.Query(context.Background(), "SELECT event_id, payload::text FROM orders_inbox ORDER BY received_at, ctid")
		if err != nil {
			t.Fatalf("read inbox: %v", err)
		}
		got, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (m relay.Message, err error) {
			var body string
			err = row.Scan(&m.ID, &body)
			m.Body = []byte(body)
			return m, err
		})
		if err != nil {
			t.Fatalf("read inbox: %v", err)
		}
		if len(got) >= n {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("the inbox holds %d rows, want %d", len(got), n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func mustExec(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql); err != nil {
		t.Fatalf("exec %s: %v", sql, err)
	}
}

func texts(t testing.TB, pool *pgxpool.Pool, sql string) []string {
	t.Helper()
	rows, err := pool.Query(context.Background(), sql)
	if err != nil {
		t.Fatalf("query %s: %v", sql, err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("query %s: %v", sql, err)
	}
	return got
}

func message(id, row string) relay.Message {
	return relay.Message{
		ID: id, Subject: "orders.insert", Key: "7", Row: []byte(row), Body: []byte("not this"),
		Headers: []relay.Header{{Name: "Traceparent", Value: traceparent}},
	}
}

func TestColumns(t *testing.T) {
	t.Parallel()
	fromBroker := message("b", `{"n":2}`)
	fromBroker.Origin = "kafka:orders"
	bare := relay.Message{ID: "c", Row: []byte(`3`), Headers: []relay.Header{{Name: "traceparent", Value: "rubbish"}}}
	batch := []relay.Message{message("a", `{"n":1}`), fromBroker, bare}
	for name, tc := range map[string]struct {
		ddl     string
		columns inbox.Columns
		query   string
		want    []string
	}{
		"managed": {
			ddl:   createInbox,
			query: "SELECT concat_ws('|', event_id, coalesce(event_type,'-'), source, coalesce(aggregate_id,'-'), payload, coalesce(trace_id,'-'), received_at IS NOT NULL, processed_at IS NULL) FROM orders_inbox ORDER BY received_at",
			want: []string{
				`a|orders.insert|pipe|7|{"n": 1}|0af7651916cd43dd8448eb211c80319c|t|t`,
				`b|orders.insert|kafka:orders|7|{"n": 2}|0af7651916cd43dd8448eb211c80319c|t|t`,
				`c|-|pipe|-|3|-|t|t`,
			},
		},
		"only what is needed": {
			ddl:   "CREATE TABLE orders_inbox (payload json, event_id varchar(20) UNIQUE)",
			query: "SELECT event_id || payload FROM orders_inbox",
			want:  []string{`a{"n":1}`, `b{"n":2}`, "c3"},
		},
		"names of its own": {
			ddl:     `CREATE TABLE orders_inbox ("Msg ID" text PRIMARY KEY, body text, kind text, origin text, agg text, at timestamp, trace text, received_at date)`,
			columns: inbox.Columns{ID: "Msg ID", Payload: "body", EventType: "kind", Source: "origin", AggregateID: "agg", ReceivedAt: "at", TraceID: "trace"},
			query:   `SELECT concat_ws('|', "Msg ID", body, kind, origin, agg, at IS NOT NULL, trace) FROM orders_inbox WHERE "Msg ID" = 'b'`,
			want:    []string{`b|{"n":2}|orders.insert|kafka:orders|7|t|0af7651916cd43dd8448eb211c80319c`},
		},
		"turned off": {
			ddl:     "CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb, source text DEFAULT 'mine', trace_id text)",
			columns: inbox.Columns{Source: "-", TraceID: "-"},
			query:   "SELECT source || coalesce(trace_id, '-') FROM orders_inbox WHERE event_id = 'a'",
			want:    []string{"mine-"},
		},
		"from pgt_inbox_config": {
			ddl: `CREATE SCHEMA pgtrickle;
				CREATE TABLE pgtrickle.pgt_inbox_config (inbox_name text PRIMARY KEY, inbox_schema text, id_column text, event_type_column text, received_at_column text);
				INSERT INTO pgtrickle.pgt_inbox_config VALUES ('orders_inbox', 'public', 'key', 'type', 'seen');
				CREATE TABLE orders_inbox (key text PRIMARY KEY, type text, seen timestamptz, payload jsonb)`,
			query: "SELECT key || type || (seen IS NOT NULL) FROM orders_inbox WHERE key = 'b'",
			want:  []string{"borders.inserttrue"},
		},
		"other types": {
			ddl: `CREATE DOMAIN label AS varchar(30); CREATE TYPE kind AS ENUM ('orders.insert');
				CREATE TABLE orders_inbox (event_id label PRIMARY KEY, payload bytea, event_type kind, aggregate_id int, received_at int DEFAULT 5)`,
			query: "SELECT concat_ws('|', event_id, convert_from(payload, 'UTF8'), event_type, aggregate_id + 1, received_at) FROM orders_inbox WHERE event_id = 'a'",
			want:  []string{`a|{"n":1}|orders.insert|8|5`},
		},
		"columns that fill themselves": {
			ddl: `CREATE TABLE orders_inbox (seq bigint GENERATED ALWAYS AS IDENTITY, n int NOT NULL GENERATED ALWAYS AS ((payload->>'n')::int) STORED,
				event_id text UNIQUE, payload jsonb, state text NOT NULL DEFAULT 'new')`,
			query: "SELECT concat_ws('|', seq, event_id, n, state) FROM orders_inbox ORDER BY seq LIMIT 2",
			want:  []string{"1|a|1|new", "2|b|2|new"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			mustExec(t, pool, tc.ddl)
			messages := slices.Clone(batch)
			if name == "columns that fill themselves" {
				messages = messages[:2] // the third has no n
			}
			if err := open(t, pool, inbox.Config{Columns: tc.columns}).Publish(context.Background(), messages); err != nil {
				t.Fatalf("Publish = %v", err)
			}
			if got := texts(t, pool, tc.query); !slices.Equal(got, tc.want) {
				t.Errorf("rows = %q, want %q", got, tc.want)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		ddl  string
		cfg  inbox.Config
		want string
	}{
		"no table":          {cfg: inbox.Config{Table: "orders_inbox"}, want: `inbox table "pgtrickle"."orders_inbox" does not exist: create it with SELECT pgtrickle.create_inbox('orders_inbox', 'pgtrickle')`},
		"no table, dotted":  {cfg: inbox.Config{Table: "app.in"}, want: `inbox table "app"."in" does not exist`},
		"a view":            {ddl: "CREATE VIEW orders_inbox AS SELECT 'x' AS event_id, 'y' AS payload", want: "is not a table"},
		"no id":             {ddl: "CREATE TABLE orders_inbox (event_ids text PRIMARY KEY, payload jsonb)", want: `has no column "event_id" for the event id: did you mean "event_ids"?`},
		"no payload":        {ddl: "CREATE TABLE orders_inbox (event_id text PRIMARY KEY, at date)", want: `has no column "payload" for the payload: it has event_id, at`},
		"misspelt column":   {ddl: createInbox, cfg: inbox.Config{Columns: inbox.Columns{Source: "sauce"}}, want: `has no column "sauce" for the source: did you mean "source"?`},
		"one for two":       {ddl: createInbox, cfg: inbox.Config{Columns: inbox.Columns{Source: "event_type"}}, want: `column "event_type" of inbox "public"."orders_inbox" has two meanings`},
		"no unique key":     {ddl: "CREATE TABLE orders_inbox (event_id text, payload jsonb)", want: `has no unique key on "event_id" (not partial, not deferrable): ALTER TABLE "public"."orders_inbox" ADD UNIQUE ("event_id")`},
		"partial key":       {ddl: "CREATE TABLE orders_inbox (event_id text, payload jsonb); CREATE UNIQUE INDEX ON orders_inbox (event_id) WHERE payload IS NOT NULL", want: "no unique key"},
		"deferrable key":    {ddl: "CREATE TABLE orders_inbox (event_id text UNIQUE DEFERRABLE, payload jsonb)", want: "no unique key"},
		"wider key":         {ddl: "CREATE TABLE orders_inbox (event_id text, payload jsonb, source text, PRIMARY KEY (event_id, source))", want: "no unique key"},
		"generated":         {ddl: "CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb, source text GENERATED ALWAYS AS (event_id) STORED)", want: `column "source" of inbox "public"."orders_inbox" is generated`},
		"unfilled column":   {ddl: "CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb, tenant text NOT NULL)", want: `column "tenant" of inbox "public"."orders_inbox" is NOT NULL without a default`},
		"unindexed, parted": {ddl: "CREATE TABLE orders_inbox (event_id text, payload jsonb, at date) PARTITION BY RANGE (at)", want: "has no index by which a duplicate is found"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if tc.ddl != "" {
				mustExec(t, pool, tc.ddl)
			}
			_, err := inbox.Open(context.Background(), pool, withTable(tc.cfg))
			if err == nil || !relay.IsFatal(err) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Open = %v (fatal: %t), want a fatal error with %q", err, relay.IsFatal(err), tc.want)
			}
		})
	}
}

func TestDottedName(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, "CREATE SCHEMA app; CREATE TABLE app.in (event_id text PRIMARY KEY, payload jsonb)")
	s := open(t, pool, inbox.Config{Table: "app.in"})
	if name, err := s.Destination(nil); name != `"app"."in"` || err != nil {
		t.Errorf("Destination = %s, %v", name, err)
	}
}

func TestDuplicates(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, createInbox)
	s := open(t, pool, inbox.Config{})
	a, b := message("a", "1"), message("b", "2")
	if err := s.Publish(context.Background(), []relay.Message{a, b, a, b}); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if n := s.TakeDuplicates(); n != 2 {
		t.Errorf("TakeDuplicates = %d after two messages sent twice in a batch, want 2", n)
	}
	if err := s.Publish(context.Background(), []relay.Message{a}); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if first, second := s.TakeDuplicates(), s.TakeDuplicates(); first != 1 || second != 0 {
		t.Errorf("TakeDuplicates = %d, then %d; want 1, then 0", first, second)
	}
}

// An id that the inbox has with another payload is no copy: it is counted and logged, with
// both origins. The form of the JSON makes no difference.
func TestConflicts(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, createInbox)
	var log strings.Builder
	s := open(t, pool, inbox.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))})
	event := func(id, row, origin string) relay.Message {
		m := message(id, row)
		m.Row, m.Origin = []byte(row), origin
		return m
	}
	if err := s.Publish(t.Context(), []relay.Message{event("a", `{"x":1,"y":2}`, "nats:A"), event("b", `1`, "nats:A")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Publish(t.Context(), []relay.Message{event("a", `{"y": 2, "x": 1}`, "nats:A"), event("c", `1`, "nats:B")}); err != nil {
		t.Fatal(err)
	}
	if n := s.TakeConflicts(); n != 0 || log.Len() > 0 {
		t.Errorf("TakeConflicts = %d after a copy, log %q; want 0", n, log.String())
	}
	if err := s.Publish(t.Context(), []relay.Message{event("b", `2`, "nats:B"), event("d", `1`, "nats:B"), event("d", `2`, "nats:B")}); err != nil {
		t.Fatal(err)
	}
	if n := s.TakeConflicts(); n != 2 {
		t.Errorf("TakeConflicts = %d, want 2", n)
	}
	for _, want := range []string{"another event has this id", "origin=nats:B", "events=2"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q: %s", want, log.String())
		}
	}
}

// After many new batches the sink expects the next one to be new as well.
func TestDuplicatesAmongNewBatches(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, createInbox)
	s := open(t, pool, inbox.Config{})
	published := 0
	publish := func(batches int) {
		for range batches {
			published++
			if err := s.Publish(t.Context(), []relay.Message{message(fmt.Sprint(published), "1"), message(fmt.Sprint(published, "b"), "1")}); err != nil {
				t.Fatalf("Publish = %v", err)
			}
		}
	}
	for round, batch := range [][]relay.Message{
		{message("new", "1"), message("3", "1"), message("newer", "1")}, // one is there
		{message("twice", "1"), message("twice", "1")},
		{message("1", "1")},
	} {
		publish(50)
		if n := s.TakeDuplicates(); n != 0 {
			t.Fatalf("round %d: TakeDuplicates = %d after new batches, want 0", round, n)
		}
		if err := s.Publish(t.Context(), batch); err != nil {
			t.Fatalf("round %d: Publish = %v", round, err)
		}
		if n := s.TakeDuplicates(); n != 1 {
			t.Errorf("round %d: TakeDuplicates = %d, want 1", round, n)
		}
	}
	publish(50)
	bad := message("bad", "1")
	bad.Row = []byte("{")
	if err := s.Publish(t.Context(), []relay.Message{bad}); !relay.IsPermanent(err) {
		t.Errorf("Publish of a row that is not JSON = %v, want permanent", err)
	}
	mustExec(t, pool, "ALTER TABLE orders_inbox ADD CHECK (event_id <> 'unwanted')")
	publish(50)
	if err := s.Publish(t.Context(), []relay.Message{message("unwanted", "1")}); !relay.IsPermanent(err) {
		t.Errorf("Publish against a check = %v, want permanent", err)
	}
	want := fmt.Sprint(2*published + 3)
	if got := texts(t, pool, "SELECT count(*)::text FROM orders_inbox")[0]; got != want {
		t.Errorf("rows = %s, want %s", got, want)
	}
}

// Two sinks that see no unique key must still not both insert.
func TestLookupIsSafeBetweenSinks(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, "CREATE TABLE orders_inbox (event_id text, payload jsonb, received_at timestamptz, PRIMARY KEY (event_id, received_at)) PARTITION BY RANGE (received_at); CREATE TABLE p PARTITION OF orders_inbox DEFAULT")
	const writers, batches = 4, 30
	failures := make(chan error, writers)
	for range writers {
		s := open(t, pool, inbox.Config{})
		go func() {
			for i := range batches {
				batch := make([]relay.Message, 20)
				for j := range batch {
					batch[j] = message(fmt.Sprint(i*10+j), "1")
				}
				if err := s.Publish(context.Background(), batch); err != nil {
					failures <- err
					return
				}
			}
			failures <- nil
		}()
	}
	for range writers {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if got := texts(t, pool, "SELECT count(*) || '/' || count(DISTINCT event_id) FROM orders_inbox")[0]; got != "310/310" {
		t.Errorf("rows/ids = %s, want 310/310", got)
	}
}

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	permanent, fatal, transient := relay.IsPermanent, relay.IsFatal, func(err error) bool { return !relay.IsPermanent(err) && !relay.IsFatal(err) }
	for name, tc := range map[string]struct {
		ddl   string // before Open
		after string // after Open
		m     relay.Message
		is    func(error) bool
	}{
		"not JSON":          {ddl: createInbox, m: message("a", "{"), is: permanent},
		"nul in jsonb":      {ddl: createInbox, m: message("a", `"\u0000"`), is: permanent},
		"nul in id":         {ddl: createInbox, m: message("a\x00", "1"), is: permanent},
		"not UTF-8":         {ddl: createInbox, m: message("a", "\"\xff\""), is: permanent},
		"id too long":       {ddl: "CREATE TABLE orders_inbox (event_id varchar(5) PRIMARY KEY, payload jsonb)", m: message("123456", "1"), is: permanent},
		"id not a UUID":     {ddl: "CREATE TABLE orders_inbox (event_id uuid PRIMARY KEY, payload jsonb)", m: message("a", "1"), is: permanent},
		"check":             {ddl: createInbox, after: "ALTER TABLE orders_inbox ADD CHECK (payload <> '1')", m: message("a", "1"), is: permanent},
		"not null":          {ddl: createInbox, after: "ALTER TABLE orders_inbox ADD more int NOT NULL", m: message("a", "1"), is: permanent},
		"foreign key":       {ddl: "CREATE TABLE k (k text PRIMARY KEY); CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb, aggregate_id text REFERENCES k)", m: message("a", "1"), is: permanent},
		"other unique key":  {ddl: "CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb UNIQUE); INSERT INTO orders_inbox VALUES ('z', '1')", m: message("a", "1"), is: permanent},
		"index row too big": {ddl: createInbox, m: message(incompressible(9000), "1"), is: permanent},
		"trigger":           {ddl: createInbox, after: "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'; CREATE TRIGGER no BEFORE INSERT ON orders_inbox FOR EACH ROW EXECUTE FUNCTION no()", m: message("a", "1"), is: permanent},
		"table dropped":     {ddl: createInbox, after: "DROP TABLE orders_inbox", m: message("a", "1"), is: fatal},
		"column dropped":    {ddl: createInbox, after: "ALTER TABLE orders_inbox DROP source", m: message("a", "1"), is: fatal},
		"key dropped":       {ddl: createInbox, after: "ALTER TABLE orders_inbox DROP CONSTRAINT orders_inbox_pkey", m: message("a", "1"), is: fatal},
		"no partition":      {ddl: "CREATE TABLE orders_inbox (event_id text PRIMARY KEY, payload jsonb) PARTITION BY HASH (event_id)", m: message("a", "1"), is: fatal},
		"lock timeout":      {ddl: createInbox, after: "BEGIN", m: message("a", "1"), is: transient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			pool := pgtest.Open(t, with(t, url, "lock_timeout", "100ms"))
			mustExec(t, pool, tc.ddl)
			s := open(t, pool, inbox.Config{})
			switch tc.after {
			case "":
			case "BEGIN":
				tx, err := pool.Begin(context.Background())
				if err != nil {
					t.Fatalf("begin: %v", err)
				}
				defer func() { _ = tx.Rollback(context.Background()) }()
				if _, err := tx.Exec(context.Background(), "LOCK TABLE orders_inbox"); err != nil {
					t.Fatalf("lock: %v", err)
				}
			default:
				mustExec(t, pool, tc.after)
			}
			err := s.Publish(context.Background(), []relay.Message{tc.m})
			if err == nil || !tc.is(err) || !strings.Contains(err.Error(), `insert into "public"."orders_inbox"`) {
				t.Errorf("Publish = %v (permanent %t, fatal %t)", err, relay.IsPermanent(err), relay.IsFatal(err))
			}
		})
	}
}

// A policy that refuses one row is about that row, though PostgreSQL gives it the code of
// a missing privilege. A privilege that is missing stops the pipeline.
func TestRowSecurity(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	admin := pgtest.Open(t, url)
	role := texts(t, admin, "SELECT 'inbox_test_' || substr(md5(random()::text || clock_timestamp()), 1, 12)")[0]
	mustExec(t, admin, createInbox+fmt.Sprintf(`; CREATE ROLE %[1]s; GRANT SELECT, INSERT ON orders_inbox TO %[1]s;
		ALTER TABLE orders_inbox ENABLE ROW LEVEL SECURITY;
		CREATE POLICY p ON orders_inbox USING (true) WITH CHECK (event_id <> 'bad')`, role))
	t.Cleanup(func() { _, _ = admin.Exec(context.Background(), "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	s := open(t, pgtest.Open(t, with(t, url, "role", role)), inbox.Config{})
	dead := relaytest.Settle(t, s, []relay.Message{message("a", "1"), message("bad", "1"), message("c", "1")})
	if !slices.Equal(dead, []string{"bad"}) {
		t.Errorf("dead letters %v, want bad", dead)
	}
	var n int
	if err := admin.QueryRow(t.Context(), "SELECT count(*) FROM orders_inbox").Scan(&n); err != nil || n != 2 {
		t.Errorf("the inbox has %d rows, %v; want 2", n, err)
	}
	mustExec(t, admin, "REVOKE INSERT ON orders_inbox FROM "+role)
	if err := s.Publish(t.Context(), []relay.Message{message("d", "1")}); !relay.IsFatal(err) {
		t.Errorf("Publish without the privilege = %v, want a fatal error", err)
	}
}

// with adds a parameter to a connection URL.
func with(t testing.TB, base, name, value string) string {
	t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		t.Fatalf("parse %q: %v", base, err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

func incompressible(n int) string {
	b := make([]byte, 0, n)
	for i := uint32(1); len(b) < n; i = i*1664525 + 1013904223 {
		b = append(b, fmt.Sprintf("%08x", i)...)
	}
	return string(b)
}

// A connection that dies between two batches costs one transient error at most.
func TestReconnects(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, createInbox)
	s := open(t, pool, inbox.Config{})
	for i := range 3 {
		batch := []relay.Message{message(fmt.Sprint(i), "1")}
		err := s.Publish(context.Background(), batch)
		if err != nil {
			if relay.IsPermanent(err) || relay.IsFatal(err) {
				t.Fatalf("Publish on a dead connection = %v, want a transient error", err)
			}
			if err = s.Publish(context.Background(), batch); err != nil {
				t.Fatalf("second Publish = %v", err)
			}
		}
		_, _ = pool.Exec(context.Background(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()")
	}
}

func TestPrivileges(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		ddl, grant string
		want       string // "" = works
	}{
		"insert only":              {createInbox, "GRANT INSERT ON orders_inbox TO %s", ""},
		"insert and select id":     {createInbox, "GRANT INSERT, SELECT (event_id) ON orders_inbox TO %s", ""},
		"insert on some columns":   {createInbox, "GRANT INSERT (event_id, payload) ON orders_inbox TO %s", `no INSERT privilege on column "event_type"`},
		"nothing":                  {createInbox, "SELECT '%s'", `no INSERT privilege on column "event_id"`},
		"two keys, insert only":    {createInbox + "; CREATE UNIQUE INDEX ON orders_inbox (trace_id)", "GRANT INSERT ON orders_inbox TO %s", `GRANT SELECT ("event_id")`},
		"two keys, with select id": {createInbox + "; CREATE UNIQUE INDEX ON orders_inbox (trace_id)", "GRANT INSERT, SELECT (event_id) ON orders_inbox TO %s", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			admin := pgtest.Open(t, url)
			role := texts(t, admin, "SELECT 'inbox_test_' || substr(md5(random()::text || clock_timestamp()), 1, 12)")[0]
			mustExec(t, admin, tc.ddl)
			mustExec(t, admin, "CREATE ROLE "+role)
			t.Cleanup(func() { mustExec(t, admin, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
			mustExec(t, admin, fmt.Sprintf(tc.grant, role))
			pool := pgtest.Open(t, with(t, url, "role", role))
			s, err := inbox.Open(context.Background(), pool, withTable(inbox.Config{}))
			if tc.want != "" {
				if !relay.IsFatal(err) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Open = %v, want a fatal error with %q", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatalf("Open = %v", err)
			}
			a, b := message("a", "1"), message("b", "1")
			b.Headers = nil
			for range 2 {
				if err := s.Publish(context.Background(), []relay.Message{a, b}); err != nil {
					t.Fatalf("Publish = %v", err)
				}
			}
			if n := s.TakeDuplicates(); n != 2 {
				t.Errorf("TakeDuplicates = %d, want 2", n)
			}
		})
	}
}

// Behind a transaction pooler the user's URL turns prepared statements off.
func TestWithoutPreparedStatements(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	for _, ddl := range []string{createInbox, "DROP TABLE orders_inbox; CREATE TABLE orders_inbox (event_id text, payload jsonb, received_at timestamptz, PRIMARY KEY (event_id, received_at)) PARTITION BY RANGE (received_at); CREATE TABLE p PARTITION OF orders_inbox DEFAULT"} {
		pool := pgtest.Open(t, with(t, url, "default_query_exec_mode", "exec"))
		mustExec(t, pool, ddl)
		s := open(t, pool, inbox.Config{})
		for range 2 {
			if err := s.Publish(context.Background(), []relay.Message{message("a", "1"), message("b", "1")}); err != nil {
				t.Fatalf("Publish = %v", err)
			}
		}
		if n := s.TakeDuplicates(); n != 2 {
			t.Errorf("TakeDuplicates = %d, want 2", n)
		}
		if got := texts(t, pool, "SELECT name FROM pg_prepared_statements"); len(got) > 0 {
			t.Errorf("prepared statements: %v", got)
		}
	}
}

func TestGuarantee(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Open(t, with(t, url, "synchronous_commit", "off"))
	mustExec(t, pool, createInbox)
	if g := open(t, pool, inbox.Config{}).Guarantee(); g.Delivery != "effectively once" || !strings.Contains(g.Weakest, "synchronous_commit") {
		t.Errorf("Guarantee = %+v, want the weakest link to be synchronous_commit", g)
	}
	mustExec(t, pool, "ALTER TABLE orders_inbox SET UNLOGGED")
	if g := open(t, pool, inbox.Config{}).Guarantee(); !strings.Contains(g.Weakest, "unlogged") {
		t.Errorf("Guarantee = %+v, want the weakest link to be the unlogged table", g)
	}
	if err := open(t, pool, inbox.Config{}).Ping(context.Background()); err != nil {
		t.Errorf("Ping = %v", err)
	}
	pool.Close()
	if _, err := inbox.Open(context.Background(), pool, withTable(inbox.Config{})); err == nil || relay.IsFatal(err) || errors.Is(err, pgx.ErrNoRows) {
		t.Errorf("Open on a closed pool = %v, want a transient error", err)
	}
}

// TestLargePayloadIsNotKept: an idle sink has let go of a large payload and of the buffers
// that it made for it.
func TestLargePayloadIsNotKept(t *testing.T) {
	pool := pgtest.Pool(t)
	mustExec(t, pool, createInbox)
	s := open(t, pool, inbox.Config{})
	heap := func() int {
		runtime.GC()
		runtime.GC() // empties pools
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int(stats.HeapAlloc)
	}
	before := heap()
	m := relaytest.Message(1, "")
	m.Row = []byte(`"` + strings.Repeat("x", 16<<20) + `"`)
	m.Body = m.Row
	if err := s.Publish(t.Context(), []relay.Message{m}); err != nil {
		t.Fatal(err)
	}
	if kept := heap() - before; kept > 4<<20 {
		t.Errorf("%d bytes are held after a payload of 16 MiB", kept)
	}
	runtime.KeepAlive(s)
}
