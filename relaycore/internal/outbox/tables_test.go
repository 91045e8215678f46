package outbox_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/internal/retention"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `
		CREATE TABLE no_payload (id bigserial PRIMARY KEY);
		CREATE TABLE uuid_id (id uuid PRIMARY KEY, payload jsonb);
		CREATE TABLE uuid_key (event uuid PRIMARY KEY, n bigserial UNIQUE, payload jsonb);
		CREATE TABLE two_keys (tenant int, seq bigserial, payload jsonb, PRIMARY KEY (tenant, seq));
		CREATE TABLE no_index (id bigserial, payload jsonb);
		CREATE TABLE own_ids (id bigint PRIMARY KEY, payload jsonb);
		CREATE TABLE backwards (id bigint GENERATED ALWAYS AS IDENTITY (INCREMENT BY -1) PRIMARY KEY, payload jsonb);
		CREATE TABLE cycles (id int GENERATED ALWAYS AS IDENTITY (CYCLE) PRIMARY KEY, payload jsonb);
		CREATE VIEW a_view AS SELECT * FROM own_ids;
		CREATE TABLE null_xid (id bigserial PRIMARY KEY, payload jsonb, xid xid8 DEFAULT pg_current_xact_id()); CREATE INDEX ON null_xid (xid);
		CREATE TABLE future (id bigserial PRIMARY KEY, payload jsonb, xid xid8 NOT NULL DEFAULT pg_current_xact_id()); CREATE INDEX ON future (xid);
		INSERT INTO future (payload, xid) VALUES ('{}', '99999999999');
		CREATE TABLE fine (id bigserial PRIMARY KEY, payload jsonb)`)
	for name, tc := range map[string]struct {
		table    string
		settings outbox.Settings
		want     string
	}{
		"missing":       {table: "nobody", want: `there is no outbox "nobody"`},
		"no payload":    {table: "no_payload", want: "enable_outbox('public.no_payload')"},
		"uuid":          {table: "uuid_id", want: `ADD COLUMN seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE, then set id_column to seq`},
		"uuid key":      {table: "uuid_key", want: "set id_column"},
		"key of two":    {table: "two_keys", want: "set id_column"},
		"no index":      {table: "no_index", want: "CREATE UNIQUE INDEX CONCURRENTLY"},
		"own ids":       {table: "own_ids", want: "does not take its values from a sequence"},
		"backwards":     {table: "backwards", want: "INCREMENT BY 1"},
		"cycles":        {table: "cycles", want: "NO CYCLE"},
		"view":          {table: "a_view", want: "is not a table"},
		"null xid":      {table: "null_xid", want: `SELECT pgtrickle.outbox_add_xid('"public"."null_xid"') fills it and sets it NOT NULL`},
		"another's xid": {table: "future", want: "have transaction ids of another cluster"},
		"no xid":        {table: "fine", settings: outbox.Settings{Strategy: "window"}, want: `SELECT pgtrickle.outbox_add_xid('"public"."fine"')`},
		"wrong column":  {table: "fine", settings: outbox.Settings{KeyColumn: "aggregate"}, want: `key_column: table "public"."fine" has no column "aggregate"; it has id, payload`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := outbox.Open(context.Background(), pool, outbox.Config{Outbox: tc.table, Settings: tc.settings})
			if !relay.IsFatal(err) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Open(%s) = %v, want a fatal error with %q", tc.table, err, tc.want)
			}
		})
	}
}

// Where no column is called id, the rows' number is the primary key.
func TestIDIsThePrimaryKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `CREATE TABLE events (payload jsonb, tenant bigint, seq int GENERATED ALWAYS AS IDENTITY, PRIMARY KEY (seq) INCLUDE (tenant));
		INSERT INTO events (payload) VALUES ('{"n": 1}'), ('{"n": 2}')`)
	src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.Outbox = "events" })
	got := receive(t, src, 2)
	if ids(got[:2]) != "1:0 2:0" {
		t.Fatalf("received %s and %s, want 1:0 and 2:0", got[0].ID, got[1].ID)
	}
	waitFor(t, src, got, 2)
}

func TestOwnTable(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `CREATE SCHEMA shop;
		CREATE TABLE shop."Events" (seq int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_id text, op text, body text, hdr jsonb, written timestamp DEFAULT now());
		INSERT INTO shop."Events" (aggregate_id, op, body, hdr) VALUES ('a-1', 'U', '{"n": 1}', '{"trace": "x", "n": 5}'), ('a-2', 'insert', '[1]', NULL), (NULL, 'D', '{"n": 3}', '{}'),
			('a', 'X', '{}', NULL), ('a', 'I', 'no json', NULL), ('a', 'I', NULL, NULL)`)
	src, err := outbox.Open(context.Background(), pool, outbox.Config{Outbox: `shop."Events"`, Settings: outbox.Settings{
		IDColumn: "seq", KeyColumn: "aggregate_id", OpColumn: "op", PayloadColumn: "body", HeadersColumn: "hdr", CreatedColumn: "written",
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := receive(t, src, 6)
	want := []string{
		`Events:1:0 update key a-1 {"n": 1} [{n 5} {trace x}]`, `Events:2:0 insert key a-2 [1] []`, `Events:3:0 delete key  {"n": 3} []`,
		`Events:4:0 err operation "X" is none of`, `Events:5:0 err payload is not JSON`, `Events:6:0 err payload is null`,
	}
	for i, m := range got {
		s := fmt.Sprintf("%s %s key %s %s %v", m.ID, m.Op, m.Key, m.Row, m.Headers)
		if m.Err != nil {
			s = fmt.Sprintf("%s err %v", m.ID, strings.TrimPrefix(m.Err.Error(), fmt.Sprintf(`row %d of "shop"."Events": `, i+1)))
		}
		if !strings.HasPrefix(s, want[i]) || m.Time.IsZero() || m.StreamTable != "Events" {
			t.Errorf("message %d: %s at %s of %s, want %s", i, s, m.Time, m.StreamTable, want[i])
		}
	}
	waitFor(t, src, got, 6)
}

func TestPartitionedOutbox(t *testing.T) {
	t.Parallel()
	for _, strategy := range []string{"window", "fence"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			exec(t, pool, `CREATE SCHEMA pgtrickle; CREATE SEQUENCE pgtrickle.s;
				CREATE TABLE pgtrickle.outbox_orders (id bigint NOT NULL DEFAULT nextval('pgtrickle.s'), created_at timestamptz NOT NULL DEFAULT now(), inserted_count bigint DEFAULT 0,
					is_claim_check bool NOT NULL DEFAULT false, payload jsonb, PRIMARY KEY (id)) PARTITION BY RANGE (id);
				CREATE TABLE pgtrickle.p1 PARTITION OF pgtrickle.outbox_orders FOR VALUES FROM (0) TO (5);
				CREATE TABLE pgtrickle.p2 PARTITION OF pgtrickle.outbox_orders FOR VALUES FROM (5) TO (5000)`)
			if strategy == "window" {
				exec(t, pool, `ALTER TABLE pgtrickle.outbox_orders ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id(); CREATE INDEX ON pgtrickle.outbox_orders (xid)`)
			}
			src := open(t, pool, relay.Checkpoint{})
			slow := begin(t, pool)
			in(t, slow, `INSERT INTO pgtrickle.p1 (payload) VALUES ('{"v":1,"inserted":[{}]}')`) // locks the partition alone
			exec(t, pool, insertOne, 1, 7)
			got := receive(t, src, 7)
			nothing(t, src)
			nothing(t, src)
			commit(t, slow)
			got = append(got, receive(t, src, 1)...)
			if ids(got) != "2:0 3:0 4:0 5:0 6:0 7:0 8:0 1:0" {
				t.Fatalf("received %s", ids(got))
			}
			exec(t, pool, "DROP TABLE pgtrickle.p1; CREATE TABLE pgtrickle.p3 PARTITION OF pgtrickle.outbox_orders FOR VALUES FROM (5000) TO (9000)")
			exec(t, pool, insertOne, 1, 2)
			if got := receive(t, src, 2); ids(got) != "9:0 10:0" {
				t.Fatalf("received %s", ids(got))
			}
		})
	}
}

func TestTableChangesUnderTheReader(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		exec(t, pool, insertOne, 1, 5)
		got := receive(t, src, 5)
		checkpoint(t, src, got)

		t.Log("a column is dropped and added again")
		exec(t, pool, "ALTER TABLE pgtrickle.outbox_orders DROP COLUMN refresh_id; ALTER TABLE pgtrickle.outbox_orders ADD COLUMN refresh_id uuid, ADD COLUMN extra int")
		exec(t, pool, insertOne, 6, 6)
		got = receiveAgain(t, src, 1)
		if ids(got) != "6:0" {
			t.Fatalf("received %s, want 6:0", ids(got))
		}
		checkpoint(t, src, got)

		t.Log("the table is rewritten")
		exec(t, pool, "VACUUM FULL pgtrickle.outbox_orders")
		exec(t, pool, insertOne, 7, 7)
		got = receiveAgain(t, src, 1)
		checkpoint(t, src, got)

		t.Log("it is truncated, and ids go on")
		exec(t, pool, "TRUNCATE pgtrickle.outbox_orders")
		exec(t, pool, insertOne, 8, 8)
		got = receiveAgain(t, src, 1)
		if ids(got) != "8:0" {
			t.Fatalf("received %s, want 8:0", ids(got))
		}
		c := checkpoint(t, src, got)

		t.Log("it is truncated, and ids begin again")
		exec(t, pool, "TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY")
		exec(t, pool, insertOne, 1, 2)
		if got := receiveAgain(t, src, 2); ids(got) != "1:0 2:0" {
			t.Fatalf("received %s, want 1:0 2:0", ids(got))
		}
		src = open(t, pool, c)
		if got := receiveAgain(t, src, 2); ids(got) != "1:0 2:0" {
			t.Fatalf("received %s, want 1:0 2:0", ids(got))
		}

		t.Log("it is created anew")
		ddl := outboxDDL
		if src.Strategy() == "window" {
			ddl += withXid
		}
		exec(t, pool, "DROP TABLE pgtrickle.outbox_orders; "+fmt.Sprintf(ddl, "outbox_orders"))
		exec(t, pool, insertOne, 1, 1)
		if got := receiveAgain(t, src, 1); ids(got) != "1:0" {
			t.Fatalf("received %s, want 1:0", ids(got))
		}
	})
}

// receiveAgain is receive for a reader whose table has changed: an error on the
// way is what the engine would answer by trying again.
func receiveAgain(t testing.TB, src *outbox.Source, n int) []relay.Message {
	t.Helper()
	for range 5 {
		ctx, cancel := context.WithTimeout(context.Background(), 5e9)
		msgs, err := src.Receive(ctx, n)
		cancel()
		if err != nil {
			t.Logf("Receive: %v", err)
			continue
		}
		return append(msgs, receive(t, src, n-len(msgs))...)
	}
	t.Fatal("Receive does not recover")
	return nil
}

func TestCloneIsRefused(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, 3)
		src := open(t, pool, relay.Checkpoint{})
		got := receive(t, src, 3)
		c := checkpoint(t, src, got[:2])
		waitFor(t, src, got[2:], 3)

		name := pool.Config().ConnConfig.Database
		pool.Reset()
		server := pgtest.Pool(t)
		exec(t, server, "CREATE DATABASE "+name+"_copy TEMPLATE "+name)
		t.Cleanup(func() { exec(t, server, "DROP DATABASE "+name+"_copy WITH (FORCE)") })
		u, err := url.Parse(pool.Config().ConnString())
		if err != nil {
			t.Fatal(err)
		}
		u.Path = "/" + name + "_copy"
		copied := pgtest.Open(t, u.String())
		cfg := outbox.Config{Outbox: "outbox_orders", Checkpoint: c}
		if _, err := outbox.Open(context.Background(), copied, cfg); !relay.IsFatal(err) || !strings.Contains(err.Error(), "on_restore") {
			t.Fatalf("Open on a clone = %v, want a fatal error that names on_restore", err)
		}
		cfg.Settings.OnRestore = "rebase"
		clone, err := outbox.Open(context.Background(), copied, cfg)
		if err != nil {
			t.Fatal(err)
		}
		exec(t, copied, insertOne, 4, 4)
		again := receive(t, clone, 1)
		for again[len(again)-1].OutboxID != 4 {
			again = append(again, receive(t, clone, 1)...)
		}
	})
}

func TestSnapshotThatWentBackwardsIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, fmt.Sprintf(outboxDDL+withXid, "outbox_orders"))
	exec(t, pool, insertOne, 1, 3)
	src := open(t, pool, relay.Checkpoint{})
	c := waitFor(t, src, receive(t, src, 3), 3)
	at := strings.Index(string(c.State), `"lo":"`) + len(`"lo":"`)
	end := at + strings.IndexByte(string(c.State[at:]), '"')
	c.State = []byte(string(c.State[:at]) + "4000000000:4000000000:" + string(c.State[end:]))
	if _, err := outbox.Open(context.Background(), pool, outbox.Config{Outbox: "outbox_orders", Checkpoint: c}); !relay.IsFatal(err) || !strings.Contains(err.Error(), "lies before the checkpoint's") {
		t.Fatalf("Open = %v, want a refusal", err)
	}
	src = open(t, pool, c, func(cfg *outbox.Config) { cfg.Settings.OnRestore = "rebase" })
	exec(t, pool, insertOne, 4, 4)
	if got := receive(t, src, 1); ids(got) != "4:0" {
		t.Fatalf("received %s, want 4:0", ids(got))
	}
}

// TestIDsThatMayBeReused: the far end may have another row under an id once the server
// has gone back in time, or the table's ids have restarted.
func TestIDsThatMayBeReused(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, 3)
		src := open(t, pool, relay.Checkpoint{})
		c := waitFor(t, src, receive(t, src, 3), 3)
		if src = open(t, pool, c); src.Reused() {
			t.Error("ids are taken for reused after a restart")
		}
		promoted := c
		promoted.State = regexp.MustCompile(`"timeline":"\w+"`).ReplaceAll(c.State, []byte(`"timeline":"00000000"`))
		if src = open(t, pool, promoted); !src.Reused() {
			t.Errorf("ids are not taken for reused by another timeline than that of %s", promoted.State)
		}
		exec(t, pool, insertOne, 4, 4)
		if got := receive(t, src, 1); ids(got) != "4:0" {
			t.Fatalf("received %s, want 4:0", ids(got))
		}
		exec(t, pool, "TRUNCATE pgtrickle.outbox_orders RESTART IDENTITY")
		if src = open(t, pool, c); !src.Reused() {
			t.Error("ids are not taken for reused by a table that begins again")
		}
	})
}

func TestChangeOfStrategy(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders"))
	exec(t, pool, insertOne, 1, 3)
	src := open(t, pool, relay.Checkpoint{})
	c := checkpoint(t, src, receive(t, src, 3))
	exec(t, pool, fmt.Sprintf(withXid, "outbox_orders"))
	exec(t, pool, insertOne, 4, 5)
	src = open(t, pool, c)
	if got := receive(t, src, 2); src.Strategy() != "window" || ids(got) != "4:0 5:0" {
		t.Fatalf("%s received %s, want 4:0 5:0 by window", src.Strategy(), ids(got))
	}
	nothing(t, src)
}

// TestColumnIsAdded adds the column under writers and under a reader. The reader goes on
// with windows once the index is there, and neither loses nor repeats a row.
func TestColumnIsAdded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pool := pgtest.Pool(t)
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders"))
	exec(t, pool, insertOne, 1, 2000)
	src := open(t, pool, relay.Checkpoint{})
	const writers = 4
	theirs := pgtest.Open(t, pool.Config().ConnString()+"?pool_max_conns=4")
	var written atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for n := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(n+1) * time.Millisecond):
				}
				end := "COMMIT"
				if (i+n)%7 == 0 {
					end = "ROLLBACK"
				}
				if _, err := theirs.Exec(ctx, "BEGIN; "+strings.NewReplacer("$1::int", "1", "$2::int", "2").Replace(insertOne)+"; SELECT pg_sleep(0.003); "+end); err != nil {
					t.Error(err)
					return
				}
				if end == "COMMIT" {
					written.Add(2)
				}
			}
		})
	}
	seen := make(map[int64]int)
	read := func(until func() bool) {
		t.Helper()
		for !until() {
			waiting, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			msgs, err := src.Receive(waiting, 100)
			cancel()
			if err != nil && (ctx.Err() != nil || waiting.Err() == nil) {
				t.Fatalf("%d rows, by %s: %v", len(seen), src.Strategy(), err)
			}
			for _, m := range msgs {
				seen[m.OutboxID]++
			}
			checkpoint(t, src, msgs)
		}
	}
	read(func() bool { return len(seen) > 2100 })
	index := column[string](t, pool, `SELECT pgtrickle.outbox_add_xid('pgtrickle.outbox_orders')`)[0]
	read(func() bool { return len(seen) > 2200 })
	if src.Strategy() != "fence" {
		t.Fatal("windows are used without an index")
	}
	exec(t, pool, index)
	if got := column[*string](t, pool, `SELECT pgtrickle.outbox_add_xid('pgtrickle.outbox_orders')`)[0]; got != nil {
		t.Errorf("there is more to do: %s", *got)
	}
	more := len(seen) + 100
	read(func() bool { return len(seen) > more })
	close(stop)
	wg.Wait()
	read(func() bool { return src.Strategy() == "window" })
	exec(t, pool, insertOne, 1, 10)
	want := 2000 + int(written.Load()) + 10
	read(func() bool { return len(seen) >= want })
	nothing(t, src)
	for id, n := range seen {
		if n > 1 {
			t.Errorf("row %d came %d times", id, n)
		}
	}
	if len(seen) != want {
		t.Errorf("%d rows came, %d were committed", len(seen), want)
	}
	waitFor(t, src, nil, column[int64](t, pool, `SELECT last_value FROM pgtrickle.outbox_orders_id_seq`)[0])
}

func TestOvertakenByRetention(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, 9)
		src := open(t, pool, relay.Checkpoint{})
		c := waitFor(t, src, receive(t, src, 9)[:9], 9)
		exec(t, pool, insertOne, 10, 19)
		exec(t, pool, "DELETE FROM pgtrickle.outbox_orders WHERE id <= 15")
		src = open(t, pool, c)
		got := receive(t, src, 4)
		if ids(got) != "16:0 17:0 18:0 19:0" {
			t.Fatalf("received %s", ids(got))
		}
		c = waitFor(t, src, got, 19)
		for range 2 { // and after a restart
			if got := src.Overtaken(); got != 6 {
				t.Errorf("Overtaken = %d, want 6", got)
			}
			src = open(t, pool, c)
		}

		t.Log("nothing is left of the table")
		exec(t, pool, insertOne, 20, 22)
		exec(t, pool, "DELETE FROM pgtrickle.outbox_orders")
		src = open(t, pool, c)
		waitFor(t, src, nil, 22)
		if got := src.Overtaken(); got != 9 {
			t.Errorf("Overtaken = %d, want 9", got)
		}
	})
}

// An id that a running transaction has is not gone: it is known only at the end
// whether it was rolled back.
func TestOvertakenWaitsForWriters(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, 9)
		src := open(t, pool, relay.Checkpoint{})
		c := waitFor(t, src, receive(t, src, 9), 9)
		commits, rollsBack := begin(t, pool), begin(t, pool)
		in(t, commits, insertOne, 10, 10)
		in(t, rollsBack, insertOne, 11, 11)
		exec(t, pool, insertOne, 12, 12)
		exec(t, pool, "DELETE FROM pgtrickle.outbox_orders WHERE id <= 9")
		var log bytes.Buffer
		src = open(t, pool, c, func(c *outbox.Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		checkpoint(t, src, receive(t, src, 1))
		nothing(t, src)
		if got := src.Overtaken(); got != 0 || log.Len() > 0 {
			t.Errorf("Overtaken = %d while the writers run, want 0; log %s", got, &log)
		}
		commit(t, commits)
		checkpoint(t, src, receive(t, src, 1))
		if err := rollsBack.Rollback(context.Background()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, src, nil, 12)
		if got := src.Overtaken(); got != 1 || !strings.Contains(log.String(), "from_id=10 to_id=11 ids=1") {
			t.Errorf("Overtaken = %d, want the one that was rolled back; log %s", got, &log)
		}
	})
}

// The relay's own retention deletes no row before it is delivered, so an id that is
// missing at a restart was rolled back.
func TestOurRetentionOvertakesNobody(t *testing.T) {
	t.Parallel()
	for _, strategy := range []string{"window", "fence"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			pool := pgtest.Pool(t)
			if err := migrate.Up(ctx, pool, nil); err != nil {
				t.Fatal(err)
			}
			exec(t, pool, `SELECT pgtrickle.create_outbox('orders', 1); SELECT pgtrickle.relay_grant_access();
				INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) VALUES ('p', true, '{"stream_table": "outbox_orders", "sink_type": "stdout"}')`)
			exec(t, pool, `INSERT INTO pgtrickle.outbox_orders (created_at, payload) SELECT now() - interval '2 hours', '{"v":1,"inserted":[{}],"deleted":[]}' FROM generate_series(1, 9)`)
			plain := pgtest.Open(t, plainRole(t, pool.Config().ConnString()))
			var log bytes.Buffer
			set := func(c *outbox.Config) {
				c.Settings.Strategy, c.Logger = strategy, slog.New(slog.NewTextHandler(&log, nil))
			}
			src := open(t, plain, relay.Checkpoint{}, set)
			c := waitFor(t, src, receive(t, src, 9), 9)
			exec(t, pool, `INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, source, last_id) VALUES ('g', 'forward', 'p', 'pgtrickle.outbox_orders', 9)`)
			if got, err := retention.Sweep(ctx, pool, retention.Options{}); err != nil || len(got) != 1 || got[0].Deleted != 9 {
				t.Fatalf("Sweep = %+v, %v; want 9 rows deleted", got, err)
			}
			gone := begin(t, pool)
			in(t, gone, `INSERT INTO pgtrickle.outbox_orders (payload) VALUES ('{"v":1,"inserted":[{}],"deleted":[]}')`)
			if err := gone.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			src = open(t, plain, c, set)
			waitFor(t, src, nil, 10)
			if got := src.Overtaken(); got != 0 || log.Len() > 0 {
				t.Errorf("Overtaken = %d, want 0; log %s", got, &log)
			}
		})
	}
}

func TestClaimChecks(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ ddl, insert string }{
		"the extension's columns": {
			`CREATE TABLE pgtrickle.outbox_delta_rows_orders (outbox_id bigint NOT NULL, row_op text NOT NULL, row_data jsonb NOT NULL, row_num bigint NOT NULL, PRIMARY KEY (outbox_id, row_num))`,
			`INSERT INTO pgtrickle.outbox_delta_rows_orders SELECT 2, CASE WHEN n %% 5 = 0 THEN 'DELETE' ELSE 'INSERT' END, jsonb_build_object('n', n), n FROM generate_series(1, %d) n`,
		},
		"the documented columns": {
			`CREATE TABLE pgtrickle.outbox_delta_rows_outbox_orders (outbox_id bigint NOT NULL, op char(1) NOT NULL, payload jsonb NOT NULL, row_num bigint NOT NULL, PRIMARY KEY (outbox_id, row_num))`,
			`INSERT INTO pgtrickle.outbox_delta_rows_outbox_orders SELECT 2, CASE WHEN n %% 5 = 0 THEN 'D' ELSE 'I' END, jsonb_build_object('n', n), n FROM generate_series(1, %d) n`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const n = 3000
			pool := pgtest.Pool(t)
			exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders")+tc.ddl)
			exec(t, pool, insertOne, 1, 1)
			exec(t, pool, fmt.Sprintf("INSERT INTO pgtrickle.outbox_orders (is_claim_check, inserted_count) VALUES (true, %d)", n))
			exec(t, pool, fmt.Sprintf(tc.insert, n))
			exec(t, pool, insertOne, 3, 3)
			exec(t, pool, "INSERT INTO pgtrickle.outbox_orders (is_claim_check, inserted_count, payload) VALUES (true, 7, '{\"v\":1,\"claim_check\":true}'), (true, 0, NULL)")
			exec(t, pool, insertOne, 6, 6)
			small := func(c *outbox.Config) { c.ReadBytes = 2000 }
			src := open(t, pool, relay.Checkpoint{}, small)
			var c relay.Checkpoint
			for i := range n + 4 {
				m := receive(t, src, 1)[0]
				want := fmt.Sprintf("2:%d", i-1)
				switch i {
				case 0:
					want = "1:0"
				case n + 1:
					want = "3:0"
				case n + 2:
					want = "4:0"
				case n + 3:
					want = "6:0"
				default:
					if del := i%5 == 0; (m.Op == relay.OpDelete) != del || m.FullRefresh == del || string(m.Row) != fmt.Sprintf(`{"n": %d}`, i) {
						t.Fatalf("message %d = %s %v %s", i, m.Op, m.FullRefresh, m.Row)
					}
				}
				if rowOf(m.ID) != want || (m.Err != nil) != (i == n+2) {
					t.Fatalf("message %d is %s, %v; want %s", i, m.ID, m.Err, want)
				}
				c = checkpoint(t, src, []relay.Message{m})
				if i%700 == 350 { // a restart in the middle of a row
					src = open(t, pool, c, small)
				}
			}
			nothing(t, src)
			if c = checkpoint(t, src, nil); c.LastID != 6 {
				t.Fatalf("LastID = %d, want 6: %s", c.LastID, c.State)
			}
		})
	}
}

func TestRowsWithoutMessagesMoveTheCheckpoint(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		exec(t, pool, "INSERT INTO pgtrickle.outbox_orders (payload) VALUES ('[]'), (NULL), ('{\"v\":1,\"inserted\":[]}')")
		waitFor(t, src, nil, 3)
		select {
		case <-src.Moved():
		default:
		}
		exec(t, pool, "INSERT INTO pgtrickle.outbox_orders (payload) VALUES ('[]')")
		ctx, cancel := context.WithTimeout(context.Background(), 5e9)
		defer cancel()
		go func() { _, _ = src.Receive(ctx, 1) }()
		select {
		case <-src.Moved():
		case <-ctx.Done():
			t.Error("nothing says that the checkpoint moved")
		}
		cancel()
	})
}

func TestLag(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		src := open(t, pool, relay.Checkpoint{})
		lag := func() int64 {
			n, s, err := src.Lag(context.Background())
			if err != nil || (n > 0) != (s > 0) {
				t.Fatalf("Lag = %d, %f, %v", n, s, err)
			}
			return n
		}
		if n := lag(); n != 0 {
			t.Fatalf("Lag of an empty outbox = %d", n)
		}
		exec(t, pool, insertOne, 1, 30)
		if n := lag(); n != 30 {
			t.Fatalf("Lag = %d, want 30", n)
		}
		receive(t, src, 30)
		if n := lag(); n != 0 {
			t.Fatalf("Lag = %d, want 0", n)
		}
		exec(t, pool, insertOne, 1, 15000)
		if n := lag(); n < 14000 || n > 15000 {
			t.Fatalf("Lag = %d, want about 15000", n)
		}
	})
}

// TestHeadersKeyAndEventID: what a writer sets beside a row arrives with its message.
func TestHeadersKeyAndEventID(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	pool := pgtest.Pool(t)
	if err := migrate.Up(ctx, pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `CREATE TABLE public.orders (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.orders')`)
	exec(t, pool, `SELECT set_config('pgtrickle.headers', '{"traceparent": "00-1"}', true), set_config('pgtrickle.key', 'customer-7', true); INSERT INTO public.orders VALUES (1)`)
	exec(t, pool, `INSERT INTO public.orders VALUES (2)`)
	exec(t, pool, `SELECT pgtrickle.outbox_publish('outbox_orders', '{"id": 3}', p_headers => '{"a": "b"}', p_key => 'k', p_event_id => 'e:1:2')`)
	src, err := outbox.Open(ctx, pool, outbox.Config{Outbox: "public.orders"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range receive(t, src, 3) {
		got = append(got, fmt.Sprintf("%s %q %v %s", rowOf(m.ID), m.Key, m.Headers, m.WireHeaders(nil)[1].Value))
		if expected, _ := src.Expects(m.ID); !expected {
			t.Errorf("message %s is not expected before it is settled", m.ID)
		}
	}
	want := `1:0 "customer-7" [{traceparent 00-1}] 1
2:0 "" [] 2
1:2 "k" [{a b}] 3`
	if s := strings.Join(got, "\n"); s != want {
		t.Errorf("messages\n%s\nwant\n%s", s, want)
	}
}
