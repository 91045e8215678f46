package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// filled returns a database with table items of n rows and an outbox, and a pool of the
// relay's plain role.
func filled(t *testing.T, ddl string, n int) (pool, plain *pgxpool.Pool) {
	t.Helper()
	pool = pgtest.Pool(t)
	if err := migrate.Up(context.Background(), pool, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, ddl)
	exec(t, pool, `INSERT INTO items (id, v) SELECT g, 0 FROM generate_series(1, $1) g`, n)
	exec(t, pool, `SELECT pgtrickle.enable_outbox('public.items')`)
	return pool, pgtest.Open(t, plainRole(t, pool.Config().ConnString()))
}

func items(value string) func(*outbox.Config) {
	return func(c *outbox.Config) {
		c.Outbox, c.Settings.Startup, c.PollInterval = "public.items", value, 10*time.Millisecond
		c.ReadBytes = 64 << 10
	}
}

// mirror is what a receiver makes of messages: the rows by id.
type mirror map[int64]item

type item struct {
	ID int64 `json:"id"`
	V  int64 `json:"v"`
}

// apply applies one message. It reports a row that is older than the one before, unless
// the message may be a second delivery.
func (m mirror) apply(t testing.TB, msg *relay.Message, again bool) {
	t.Helper()
	if msg.Err != nil {
		t.Fatalf("%s: %v", msg.ID, msg.Err)
	}
	var row, before item
	if err := json.Unmarshal(msg.Row, &row); err != nil {
		t.Fatal(err)
	}
	if msg.Op == relay.OpDelete {
		delete(m, row.ID)
		return
	}
	if len(msg.Before) > 0 {
		if err := json.Unmarshal(msg.Before, &before); err != nil {
			t.Fatal(err)
		}
		if before.ID != row.ID {
			delete(m, before.ID)
		}
	}
	if was, found := m[row.ID]; found && was.V > row.V && !again {
		t.Errorf("row %d: version %d of %s follows %d", row.ID, row.V, msg.ID, was.V)
	}
	m[row.ID] = row
}

func (m mirror) equals(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	want := column[string](t, pool, `SELECT id || ' ' || v FROM items ORDER BY id`)
	for _, row := range want {
		var w item
		_, _ = fmt.Sscan(row, &w.ID, &w.V)
		if got, found := m[w.ID]; !found || got != w {
			t.Errorf("row %d: replayed %v (%v), the table has version %d", w.ID, got.V, found, w.V)
		}
	}
	if len(m) != len(want) {
		t.Errorf("%d rows were replayed, the table has %d", len(m), len(want))
	}
}

const itemsDDL = `CREATE TABLE items (id bigint PRIMARY KEY, v bigint NOT NULL, pad text DEFAULT repeat('x', 100))`

// TestStartupSnapshot replays a table from its rows and changes, while writers change it
// and the source ends again and again without a word.
func TestStartupSnapshot(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string]string{
		"plain": itemsDDL,
		"partitioned": `CREATE TABLE items (id bigint PRIMARY KEY, v bigint NOT NULL, pad text DEFAULT repeat('x', 100)) PARTITION BY HASH (id);
			CREATE TABLE items_0 PARTITION OF items FOR VALUES WITH (MODULUS 2, REMAINDER 0);
			CREATE TABLE items_1 PARTITION OF items FOR VALUES WITH (MODULUS 2, REMAINDER 1)`,
	} {
		for _, crashes := range []int{0, 12} {
			t.Run(fmt.Sprintf("%s %d", name, crashes), func(t *testing.T) {
				t.Parallel()
				pool, plain := filled(t, ddl, 6000)
				replayed(t, pool, plain, crashes)
			})
		}
	}
}

func replayed(t *testing.T, pool, plain *pgxpool.Pool, crashes int) {
	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() { write(ctx, t, pool, uint64(w)) })
	}
	defer writers.Wait()
	defer stop()

	src := open(t, plain, relay.Checkpoint{}, items("snapshot"))
	m, stored := mirror{}, checkpoint(t, src, nil)
	rnd := rand.New(rand.NewPCG(1, uint64(crashes)))
	rows, again := 0, false
	for crashed := 0; ; {
		msgs := some(t, src, 1+rnd.IntN(200))
		for i := range msgs {
			m.apply(t, &msgs[i], again)
			if msgs[i].FullRefresh {
				rows++
			}
		}
		if rnd.IntN(3) > 0 {
			stored = checkpoint(t, src, msgs)
		}
		if crashed < crashes && rnd.IntN(20) == 0 {
			crashed++
			again = true // what was not confirmed comes again
			src = open(t, plain, stored, items("snapshot"))
		}
		stored = checkpoint(t, src, msgs) // every message is settled in the end, or comes again
		if crashed == crashes && !strings.Contains(string(stored.State), `"backfill"`) {
			stop()
			break
		}
	}
	writers.Wait()
	last := column[int64](t, pool, `SELECT coalesce(max(id), 0) FROM pgtrickle.outbox_items`)[0]
	for checkpoint(t, src, nil).LastID < last {
		msgs := some(t, src, 1000)
		for i := range msgs {
			m.apply(t, &msgs[i], again)
		}
		checkpoint(t, src, msgs)
	}
	m.equals(t, pool)
	t.Logf("%d rows of the table, %d outbox rows", rows, last)
}

// some returns the messages that come within a moment.
func some(t testing.TB, src *outbox.Source, limit int) []relay.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	msgs, err := src.Receive(ctx, limit)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	return msgs
}

// write changes rows in transactions of a random length until ctx ends.
func write(ctx context.Context, t testing.TB, pool *pgxpool.Pool, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 7))
	for ctx.Err() == nil {
		tx, err := pool.Begin(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		for range 1 + rnd.IntN(3) {
			id := 1 + rnd.Int64N(7000)
			_, err = tx.Exec(context.Background(), []string{
				`INSERT INTO items VALUES ($1, (SELECT coalesce(max(v), 0) FROM items WHERE id = $1)) ON CONFLICT (id) DO UPDATE SET v = items.v + 1`,
				`UPDATE items SET v = v + 1 WHERE id = $1`,
				`UPDATE items SET v = v + 1 WHERE id BETWEEN $1 AND $1 + 20`,
				`DELETE FROM items WHERE id = $1`,
				`UPDATE items SET id = id + 3500, v = v + 1 WHERE id = $1 AND $1 < 3000 AND NOT EXISTS (SELECT FROM items WHERE id = $1 + 3500)`,
				`UPDATE items SET id = id - 3500, v = v + 1 WHERE id = $1 AND $1 > 3500 AND NOT EXISTS (SELECT FROM items WHERE id = $1 - 3500)`,
			}[rnd.IntN(6)], id)
			if err != nil {
				break // a deadlock, or two writers of one key
			}
			time.Sleep(time.Duration(rnd.IntN(3)) * time.Millisecond)
		}
		if err == nil {
			err = tx.Commit(context.Background())
		}
		_ = tx.Rollback(context.Background())
		_ = err
	}
}

// TestStartupSnapshotRefusals lists what has no rows to read first.
func TestStartupSnapshotRefusals(t *testing.T) {
	t.Parallel()
	pool, plain := filled(t, itemsDDL, 1)
	exec(t, pool, `CREATE TABLE nokey (a int); SELECT pgtrickle.enable_outbox('public.nokey');
		CREATE TABLE old (a int PRIMARY KEY); SELECT pgtrickle.enable_outbox('public.old'); DROP FUNCTION public.pgtrickle_outbox_old_rows(text[], integer, bigint, bigint);
		CREATE SCHEMA hidden; CREATE TABLE hidden.t (a int PRIMARY KEY); SELECT pgtrickle.enable_outbox('hidden.t');
		REVOKE USAGE ON SCHEMA hidden FROM pgtrickle_relay; SELECT pgtrickle.create_outbox('events')`)
	exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_plain"))
	for _, tc := range []struct{ outbox, strategy, want string }{
		{"public.nokey", "auto", "table public.nokey has no primary key; add one, then SELECT pgtrickle.outbox_upgrade('outbox_nokey')"},
		{"public.old", "auto", "is missing or outdated; SELECT pgtrickle.outbox_upgrade('outbox_old')"},
		{"hidden.t", "auto", "the relay may not use schema hidden; GRANT USAGE ON SCHEMA hidden TO pgtrickle_relay"},
		{"events", "auto", "outbox outbox_events records the changes of no table; set startup to earliest or latest"},
		{"public.items", "fence", "startup snapshot needs snapshot windows: set outbox_strategy to auto"},
		{"outbox_plain", "auto", "needs snapshot windows: outbox_strategy window: \"pgtrickle\".\"outbox_plain\" has no column of type xid8"},
	} {
		db := plain
		if tc.outbox == "outbox_plain" {
			db = pool
		}
		_, err := outbox.Open(context.Background(), db, outbox.Config{
			Outbox: tc.outbox, Group: "g", Pipeline: "p", Settings: outbox.Settings{Startup: "snapshot", Strategy: tc.strategy},
		})
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s", tc.outbox, err, tc.want)
		}
	}
}

// TestStartupSnapshotOfLargeRows reads rows that do not fit into a chunk, and one that
// does not fit into memory.
func TestStartupSnapshotOfLargeRows(t *testing.T) {
	t.Parallel()
	pool, plain := filled(t, itemsDDL, 4)
	exec(t, pool, `UPDATE items SET pad = repeat('x', id::int * 1000000) WHERE id > 1`)
	src := open(t, plain, relay.Checkpoint{}, items("snapshot"), func(c *outbox.Config) { c.MaxRow = 3500000 })
	var got []relay.Message
	asked := false
	for len(got) < 4 {
		msgs := some(t, src, 100)
		asked = asked || src.Wants() > 0
		got = append(got, msgs...)
		checkpoint(t, src, msgs)
	}
	for i := range got {
		var row item
		switch err := got[i].Err; {
		case i == 3:
			if err == nil || !strings.Contains(err.Error(), "row {4} of the table of pgtrickle.outbox_items") {
				t.Errorf("row 4: %v", err)
			}
		case err != nil || json.Unmarshal(got[i].Row, &row) != nil || row.ID != int64(i+1):
			t.Errorf("row %d: %v, %.40s", i+1, err, got[i].Row)
		}
	}
	if !asked {
		t.Error("large rows were read unasked")
	}
}

// TestStartupSnapshotRate bounds the rows a second.
func TestStartupSnapshotRate(t *testing.T) {
	t.Parallel()
	_, plain := filled(t, itemsDDL, 300)
	src := open(t, plain, relay.Checkpoint{}, items("snapshot"), func(c *outbox.Config) { c.Settings.SnapshotRate = 200 })
	began := time.Now()
	for n := 0; n < 300; {
		msgs := some(t, src, 1000)
		n += len(msgs)
		checkpoint(t, src, msgs)
	}
	if took := time.Since(began); took < 1100*time.Millisecond || took > 6*time.Second {
		t.Errorf("300 rows at 200 a second took %v", took)
	}
}

// TestRequestedSnapshot replays a table from the rows that relay_snapshot asks for, and from
// changes. Writers change it meanwhile, and the source ends again and again without a word.
func TestRequestedSnapshot(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]string{"all": "", "some": "id % 3 = 0 AND length(pad) > 0"} {
		for _, crashes := range []int{0, 12} {
			t.Run(fmt.Sprintf("%s %d", name, crashes), func(t *testing.T) {
				t.Parallel()
				pool, plain := filled(t, itemsDDL, 6000)
				requested(t, pool, plain, where, crashes)
			})
		}
	}
}

func requested(t *testing.T, pool, plain *pgxpool.Pool, where string, crashes int) {
	ctx, stop := context.WithCancel(context.Background())
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() { write(ctx, t, pool, uint64(w)) })
	}
	defer writers.Wait()
	defer stop()

	exec(t, pool, `SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table": "public.items", "sink_type": "stdout"}')`)
	leased := func(c *outbox.Config) { c.Epoch, c.Group, c.Pipeline = 1, "g", "p" }
	src := open(t, plain, relay.Checkpoint{}, items("latest"), leased)
	m, stored := mirror{}, checkpoint(t, src, nil)
	exec(t, pool, `SELECT pgtrickle.relay_snapshot('p', nullif($1, ''))`, where)
	src = open(t, plain, stored, items("latest"), leased)
	rnd := rand.New(rand.NewPCG(2, uint64(crashes)))
	crashed, rows := 0, 0
	for begun := false; crashed < crashes || !begun || strings.Contains(string(stored.State), `"backfill"`); {
		msgs := some(t, src, 1+rnd.IntN(200))
		for i := range msgs {
			m.apply(t, &msgs[i], true)
			if msgs[i].FullRefresh {
				rows++
			}
		}
		if crashed < crashes && rnd.IntN(10) == 0 {
			crashed++
			src = open(t, plain, stored, items("latest"), leased)
			continue // what was not confirmed comes again
		}
		stored = checkpoint(t, src, msgs)
		begun = begun || strings.Contains(string(stored.State), `"backfill"`)
		if err := src.Committed(context.Background(), stored); err != nil {
			t.Fatal(err)
		}
	}
	if got := column[int64](t, pool, `SELECT count(*) FROM pgtrickle.relay_snapshot_requests WHERE finished_at IS NULL OR error IS NOT NULL
		UNION ALL SELECT count(*) FROM pgtrickle.relay_snapshot_keys`); got[0] != 0 || got[1] != 0 {
		t.Errorf("%d requests are not finished, %d blocks of keys are left", got[0], got[1])
	}
	stop()
	writers.Wait()
	last := column[int64](t, pool, `SELECT coalesce(max(id), 0) FROM pgtrickle.outbox_items`)[0]
	for checkpoint(t, src, nil).LastID < last {
		msgs := some(t, src, 1000)
		for i := range msgs {
			m.apply(t, &msgs[i], true)
		}
		checkpoint(t, src, msgs)
	}
	t.Logf("%d rows of the table, %d outbox rows", rows, last)
	if where == "" {
		m.equals(t, pool)
		return
	}
	for _, row := range column[string](t, pool, `SELECT id || ' ' || v FROM items ORDER BY id`) {
		var w item
		_, _ = fmt.Sscan(row, &w.ID, &w.V)
		if got, found := m[w.ID]; found && got != w || !found && w.ID%3 == 0 {
			t.Errorf("row %d: replayed %v (%v), the table has version %d", w.ID, got.V, found, w.V)
		}
		delete(m, w.ID)
	}
	if len(m) != 0 {
		t.Errorf("%d rows were replayed that the table does not have", len(m))
	}
}
