package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

var orders = store.Key{Direction: relay.Forward, Name: "orders"}

// newDatabase returns a migrated database in which orders has epoch 1.
func newDatabase(t *testing.T) *pgxpool.Pool {
	t.Helper()
	pool := pgtest.Pool(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if err := migrate.Up(t.Context(), conn.Conn(), nil); err != nil {
		t.Fatalf("migrate: %v", err)
	}
	setEpoch(t, pool, orders, 1)
	return pool
}

// setEpoch does what acquiring the lease does.
func setEpoch(t *testing.T, pool *pgxpool.Pool, id store.Key, epoch int64) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `
		INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, epoch) VALUES ($1, $2, $3, $4)
		ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET epoch = excluded.epoch`,
		"default", id.Direction, id.Name, epoch)
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, pool *pgxpool.Pool, epoch int64) (*store.Ledger, engine.State) {
	t.Helper()
	l, state, err := store.New(pool, "default").Open(t.Context(), orders, epoch, "owner")
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	return l, state
}

func TestCommitIsWhatTheNextOwnerFinds(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, state := open(t, pool, 1)
	if state.Position != "" || state.Checkpoint.State != nil || state.Clean {
		t.Errorf("state of a new pipeline = %+v, want none", state)
	}
	l.SetSource(func() string { return "pgtrickle.outbox_orders" })
	for _, c := range []engine.Commit{
		{Position: "p0"},
		{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{"at":7}`), LastID: 7}, Position: "p1", Delivered: 7},
		{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{"at":9}`), LastID: 5}, Delivered: 2, Skipped: 3},
	} {
		if err := l.Commit(t.Context(), c); err != nil {
			t.Fatalf("Commit(%+v) = %v", c, err)
		}
	}
	if err := l.SetStatus(t.Context(), store.StatusStopped, ""); err != nil {
		t.Fatal(err)
	}
	setEpoch(t, pool, orders, 2)
	_, state = open(t, pool, 2)
	want := engine.State{
		Checkpoint: relay.Checkpoint{State: json.RawMessage(`{"at": 9}`), LastID: 7}, // the id never falls
		Source:     "pgtrickle.outbox_orders", Position: "p1", Started: true, Clean: true, NoDeadLetters: true,
	}
	if diff := cmp.Diff(want, state); diff != "" {
		t.Errorf("state, -want +got\n%s", diff)
	}
	var last, delivered, skipped int64
	err := pool.QueryRow(t.Context(), `SELECT o.last_change_id, c.delivered, c.skipped FROM pgtrickle.relay_consumer_offsets o, pgtrickle.relay_cursors c
		WHERE o.relay_group_id = 'default' AND o.pipeline_id = 'orders'`).Scan(&last, &delivered, &skipped)
	if err != nil || last != 7 || delivered != 9 || skipped != 3 {
		t.Errorf("public offset %d, delivered %d, skipped %d, %v; want 7, 9, 3", last, delivered, skipped, err)
	}
}

// What a source knows of its far ends outlives it, and an old owner cannot change it.
func TestFarEnds(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	old, _ := open(t, pool, 1)
	if err := old.KeepFarEnds(t.Context(), `{"S": {"id": "a"}}`); err != nil {
		t.Fatal(err)
	}
	setEpoch(t, pool, orders, 2)
	if err := old.KeepFarEnds(t.Context(), `{}`); !errors.Is(err, engine.ErrFenced) {
		t.Errorf("KeepFarEnds of an old owner = %v, want ErrFenced", err)
	}
	if _, state := open(t, pool, 2); state.FarEnds != `{"S": {"id": "a"}}` {
		t.Errorf("far ends = %s", state.FarEnds)
	}
}

func TestAnOldOwnerMovesNothing(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	old, _ := open(t, pool, 1)
	setEpoch(t, pool, orders, 2)
	for name, err := range map[string]error{
		"checkpoint": old.Commit(t.Context(), engine.Commit{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{}`), LastID: 99}}),
		"letters":    old.Commit(t.Context(), engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "k")}}),
		"status":     old.SetStatus(t.Context(), store.StatusRunning, ""),
	} {
		if !errors.Is(err, engine.ErrFenced) {
			t.Errorf("%s by an old owner = %v, want ErrFenced", name, err)
		}
	}
	if _, _, err := store.New(pool, "default").Open(t.Context(), orders, 1, "late"); !errors.Is(err, engine.ErrFenced) {
		t.Errorf("Open under an old epoch = %v, want ErrFenced", err)
	}
	var moved int
	err := pool.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pgtrickle.relay_dead_letters) + (SELECT sum(last_id) FROM pgtrickle.relay_cursors)
		+ (SELECT count(*) FROM pgtrickle.relay_consumer_offsets)`).Scan(&moved)
	if err != nil || moved != 0 {
		t.Errorf("an old owner left %d traces, %v", moved, err)
	}
}

// A promoted standby has the epoch of the old owner, and may lack rows that the owner
// has delivered. The owner has not noticed yet that the server is another one.
func TestAnOwnerMovesNothingOnAPromotedStandby(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	old, _ := open(t, pool, 1)
	commit(t, old, engine.Commit{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{"at":7}`), LastID: 7}})
	redefine(t, pool, `RETURN overlay(pg_catalog.pg_walfile_name($1) PLACING '00000FFF' FROM 1)`)
	ahead := relay.Checkpoint{State: json.RawMessage(`{"at":9}`), LastID: 9}
	for name, c := range map[string]engine.Commit{"checkpoint": {Checkpoint: &ahead}, "letters": {Checkpoint: &ahead, DeadLetters: []engine.DeadLetter{refused(8, "k")}}} {
		if err := old.Commit(t.Context(), c); !errors.Is(err, engine.ErrFenced) {
			t.Errorf("commit of %s = %v, want ErrFenced", name, err)
		}
	}
	next, state := open(t, pool, 1)
	if state.Checkpoint.LastID != 7 {
		t.Errorf("the checkpoint is at %d, want 7", state.Checkpoint.LastID)
	}
	commit(t, next, engine.Commit{Checkpoint: &ahead})
}

// Where the timeline may not be read, commits go by the epoch alone.
func TestCommitWithoutATimeline(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	redefine(t, pool, `RAISE insufficient_privilege`)
	l, _ := open(t, pool, 1)
	commit(t, l, engine.Commit{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{"at":7}`), LastID: 7}})
}

// redefine makes pg_walfile_name do something else.
func redefine(t *testing.T, pool *pgxpool.Pool, what string) {
	t.Helper()
	db := pgx.Identifier{pool.Config().ConnConfig.Database}.Sanitize()
	if _, err := pool.Exec(t.Context(), `CREATE SCHEMA redefined; CREATE FUNCTION redefined.pg_walfile_name(pg_lsn) RETURNS text LANGUAGE plpgsql AS $$ BEGIN `+what+`; END $$;
		ALTER DATABASE `+db+` SET search_path = redefined, pg_catalog, public`); err != nil {
		t.Fatal(err)
	}
	pool.Reset() // sessions have the old path
}

func refused(n int, key string) engine.DeadLetter {
	m := relaytest.Message(n, key)
	m.Before = []byte(`{"n":0}`)
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-1"}, {Name: "odd", Value: "a\"b\x00c"}}
	return engine.DeadLetter{Message: m, Class: engine.ClassRefused, Reason: "too large \x00", Attempts: 1}
}

func parked(n int, key string) engine.DeadLetter {
	return engine.DeadLetter{Message: relaytest.Message(n, key), Class: engine.ClassParked, Reason: "waits"}
}

func commit(t *testing.T, l *store.Ledger, c engine.Commit) {
	t.Helper()
	if err := l.Commit(t.Context(), c); err != nil {
		t.Fatalf("Commit = %v", err)
	}
}

func deliverable(t *testing.T, l *store.Ledger) (ids []string, found []engine.DeadLetter) {
	t.Helper()
	found, err := l.Deliverable(t.Context(), 100)
	if err != nil {
		t.Fatalf("Deliverable = %v", err)
	}
	for i := range found {
		ids = append(ids, found[i].Message.ID)
	}
	return ids, found
}

func dlq(t *testing.T, pool *pgxpool.Pool, call string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), "SELECT pgtrickle."+call); err != nil {
		t.Fatalf("%s: %v", call, err)
	}
}

func TestDeadLettersOfAKeyKeepTheirOrder(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a"), refused(2, "b"), parked(3, "a"), parked(4, "b"), refused(5, "")}})
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{parked(6, "a"), refused(7, "")}})
	if _, state := open(t, pool, 1); state.NoDeadLetters {
		t.Error("the state of a pipeline with dead letters says that it has none")
	}
	if ids, _ := deliverable(t, l); len(ids) > 0 {
		t.Errorf("deliverable before any retry: %v", ids)
	}
	keys, err := l.ParkedKeys(t.Context())
	if err != nil || len(keys) != 2 {
		t.Errorf("ParkedKeys = %v, %v; want a and b", keys, err)
	}

	dlq(t, pool, `relay_dlq_retry('orders', p_key => 'a')`)
	ids, letters := deliverable(t, l)
	if diff := cmp.Diff([]string{"outbox_orders:1:0", "outbox_orders:3:0", "outbox_orders:6:0"}, ids); diff != "" {
		t.Fatalf("deliverable after the retry of a, -want +got\n%s", diff)
	}
	m, sent := letters[0].Message, refused(1, "a").Message
	if string(m.Row) != string(sent.Row) || string(m.Before) != string(sent.Before) || m.Op != sent.Op || m.OutboxID != 1 ||
		m.StreamTable != "orders" || m.Time.IsZero() || !cmp.Equal(m.Headers, []relay.Header{{Name: "traceparent", Value: "00-1"}, {Name: "odd", Value: "a\"b\uFFFDc"}}) {
		t.Errorf("letter came back as %+v, was %+v", m, sent)
	}

	// 1 is delivered; 3 is refused in turn and blocks 6.
	dead := parked(3, "a")
	dead.Class, dead.Reason, dead.Attempts = engine.ClassRefused, "too large", 1
	commit(t, l, engine.Commit{Redriven: []int64{letters[0].ID}, DeadLetters: []engine.DeadLetter{dead, parked(6, "a")}})
	if ids, _ := deliverable(t, l); len(ids) > 0 {
		t.Errorf("deliverable behind a dead letter: %v", ids)
	}

	// Discarding the head sets the rest free.
	dlq(t, pool, `relay_dlq_discard('orders', p_ids => ARRAY(SELECT id FROM pgtrickle.relay_dead_letters WHERE message_id = 'outbox_orders:3:0'))`)
	if ids, _ := deliverable(t, l); !cmp.Equal(ids, []string{"outbox_orders:6:0"}) {
		t.Errorf("deliverable after the discard of the head = %v, want the parked one behind it", ids)
	}
	// Dead letters without a key do not wait for each other.
	dlq(t, pool, `relay_dlq_retry('orders', p_ids => ARRAY(SELECT id FROM pgtrickle.relay_dead_letters WHERE message_id = 'outbox_orders:7:0'))`)
	if ids, _ := deliverable(t, l); !cmp.Equal(ids, []string{"outbox_orders:6:0", "outbox_orders:7:0"}) {
		t.Errorf("deliverable = %v, want 6 and 7", ids)
	}
}

func TestADeadLetterIsStoredOnce(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	for range 3 {
		commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a")}})
	}
	var rows, attempts int
	err := pool.QueryRow(t.Context(), `SELECT count(*), max(attempts) FROM pgtrickle.relay_dead_letters`).Scan(&rows, &attempts)
	if err != nil || rows != 1 || attempts != 3 {
		t.Errorf("%d rows, %d attempts, %v; want 1 and 3", rows, attempts, err)
	}
}

// Ids start over when a table is truncated or created again. Another message with the
// id of a stored dead letter is kept, with its own body.
func TestAnotherMessageWithTheSameID(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		stored string
		next   engine.DeadLetter
		want   string
	}{
		"refused after dead":    {"dead", refused(1, "b"), "dead refused 1"},
		"refused after parked":  {"parked", refused(1, "b"), "dead refused 1"},
		"refused after retried": {"retry", refused(1, "b"), "dead refused 1"},
		"parked behind dead":    {"dead", parked(1, "b"), "parked parked 0"},
		"parked after retried":  {"retry", parked(1, "b"), "parked parked 0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newDatabase(t)
			l, _ := open(t, pool, 1)
			commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a"), refused(2, "b")}})
			if _, err := pool.Exec(t.Context(), `UPDATE pgtrickle.relay_dead_letters SET status = $1, attempts = 7, created_at = 'epoch'`, tc.stored); err != nil {
				t.Fatal(err)
			}
			m := &tc.next.Message
			m.Row, m.Before, m.Op, m.Subject, m.OutboxID = []byte(`{"new":1}`), []byte(`{"new":0}`), relay.OpDelete, "elsewhere", 9
			m.Headers, m.ContentType, m.StreamTable, m.RefreshID = []relay.Header{{Name: "new", Value: "1"}}, "text/new", "fresh", "r9"
			m.FullRefresh, m.Origin, m.Time = true, "new", time.Unix(9, 0)
			commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{tc.next}})
			var got, fresh string
			err := pool.QueryRow(t.Context(), `
				SELECT concat_ws(' ', status, class, attempts), concat_ws(' ', key, convert_from(body, 'UTF8'), convert_from(before, 'UTF8'), op, subject,
					outbox_id, headers, content_type, stream_table, refresh_id, full_refresh, origin, extract(epoch FROM message_time)::int, created_at > 'epoch')
				FROM pgtrickle.relay_dead_letters WHERE message_id = $1`, m.ID).Scan(&got, &fresh)
			if err != nil || got != tc.want {
				t.Errorf("the letter is %q, %v; want %q", got, err, tc.want)
			}
			if want := `b {"new":1} {"new":0} delete elsewhere 9 [["new", "1"]] text/new fresh r9 t new 9 t`; fresh != want {
				t.Errorf("the letter has %s, want %s", fresh, want)
			}
		})
	}
}

// A dead message that is delivered again before it is retried is still dead, even if
// it would have to wait for its key.
func TestADeadLetterStaysDead(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	again := refused(1, "a")
	again.Class = engine.ClassParked
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a"), again}}) // in one commit
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{again}})                  // and in another
	if ids, _ := deliverable(t, l); len(ids) > 0 {
		t.Errorf("deliverable = %v, want nothing", ids)
	}
	dlq(t, pool, `relay_dlq_retry('orders')`)
	if _, letters := deliverable(t, l); len(letters) != 1 || letters[0].Class != engine.ClassRefused || letters[0].Attempts != 1 {
		t.Errorf("deliverable = %+v, want one letter, refused once", letters)
	}
}

// A dead letter that occurs twice in one commit is stored once, at its first place.
func TestADeadLetterTwiceInACommit(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{parked(1, "a"), refused(2, "a"), refused(1, "a"), refused(1, "a")}})
	dlq(t, pool, `relay_dlq_retry('orders')`)
	ids, letters := deliverable(t, l)
	if !cmp.Equal(ids, []string{"outbox_orders:1:0", "outbox_orders:2:0"}) || letters[0].Attempts != 2 {
		t.Errorf("deliverable = %+v, want 1, tried twice, and 2", letters)
	}
}

// If one commit drops a delivered dead letter and stores another message with its id,
// the second is kept.
func TestADeadLetterReplacesADeliveredOne(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a"), refused(2, "b")}})
	dlq(t, pool, `relay_dlq_retry('orders')`)
	_, letters := deliverable(t, l)
	next := refused(1, "a")
	next.Message.Row = []byte(`{"new":1}`)
	commit(t, l, engine.Commit{Redriven: []int64{letters[0].ID, letters[1].ID}, DeadLetters: []engine.DeadLetter{next}})
	dlq(t, pool, `relay_dlq_retry('orders')`)
	if _, letters := deliverable(t, l); len(letters) != 1 || string(letters[0].Message.Row) != `{"new":1}` {
		t.Errorf("letters = %+v, want the new one", letters)
	}
}

// What could not be encoded is encoded again when it is redriven, from its row.
func TestAnUnencodedLetterKeepsItsRow(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	letter := refused(1, "a")
	m := &letter.Message
	letter.Class, m.Err, m.Body = engine.ClassEncode, relay.Permanent(errors.New("the row has no field")), nil
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{letter}})
	dlq(t, pool, `relay_dlq_retry('orders')`)
	if _, letters := deliverable(t, l); len(letters) != 1 || string(letters[0].Message.Row) != string(m.Row) || letters[0].Message.Err != nil {
		t.Errorf("letters = %+v, want one with the row %s", letters, m.Row)
	}
}

// An owner can be suspended or disconnected at any time. The next owner must still be
// able to change the cursor.
func TestAnOwnerLeavesNoLockBehind(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	watched := pool.Config().Copy()
	watch := &lockWatch{t: t, others: pool}
	watched.ConnConfig.Tracer = watch
	own, err := pgxpool.NewWithConfig(t.Context(), watched)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	l, _ := open(t, own, 1)
	for name, c := range map[string]engine.Commit{
		"letters":  {DeadLetters: []engine.DeadLetter{refused(1, "a"), parked(2, "a")}},
		"redriven": {Redriven: []int64{1}, DeadLetters: []engine.DeadLetter{refused(2, "a")}},
		"none":     {Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{}`), LastID: 2}},
	} {
		watch.step, watch.looks = name, 0
		commit(t, l, c)
		if watch.looks == 0 {
			t.Errorf("%s: no round trip was seen", name)
		}
	}
}

// lockWatch looks, after each round trip, for what a stopped owner would hold.
type lockWatch struct {
	t      *testing.T
	others *pgxpool.Pool
	step   string
	looks  int
}

func (w *lockWatch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (w *lockWatch) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryEndData) {
	w.looks++
	if _, err := w.others.Exec(ctx, `SELECT FROM pgtrickle.relay_cursors FOR UPDATE NOWAIT`); err != nil {
		w.t.Errorf("%s: after %s a successor has to wait: %v", w.step, q.CommandTag, err)
	}
}

func TestReverseKeepsTheBrokersBytes(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	id := store.Key{Direction: relay.Reverse, Name: "in"}
	setEpoch(t, pool, id, 1)
	l, _, err := store.New(pool, "default").Open(t.Context(), id, 1, "owner")
	if err != nil {
		t.Fatal(err)
	}
	bytes := []byte{0, 255, '<'}
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{{
		Message: relay.Message{ID: "nats:S:1", Body: bytes, Row: bytes, Origin: "nats:S"}, Class: engine.ClassDecode, Reason: "not JSON",
	}}})
	dlq(t, pool, `relay_dlq_retry('in')`)
	_, letters := deliverable(t, l)
	if len(letters) != 1 || string(letters[0].Message.Body) != string(bytes) || letters[0].Message.Row != nil {
		t.Fatalf("letters = %+v, want the broker's bytes as the body", letters)
	}
	// With another format it can be decoded, and has a key; it is the same dead letter.
	m := letters[0].Message
	m.Row, m.Op, m.Key = []byte("{}"), relay.OpEvent, "k"
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{{Message: m, Class: engine.ClassRefused, Reason: "too large", Attempts: 1}}})
	dlq(t, pool, `relay_dlq_retry('in')`)
	if _, letters := deliverable(t, l); len(letters) != 1 || string(letters[0].Message.Body) != string(bytes) || letters[0].Attempts != 2 || letters[0].Message.Key != "k" {
		t.Errorf("letters = %+v, want the same, tried twice", letters)
	}
}

// A corrected template applies to a dead letter: it has its row, and no subject of the
// old template. It keeps its key, because others wait behind it.
func TestADeadLetterIsAddressedAgain(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	unaddressed := relaytest.Message(2, "b")
	unaddressed.Subject, unaddressed.Body, unaddressed.Err = "", nil, errors.New("no field region")
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{
		refused(1, "a"),
		{Message: unaddressed, Class: engine.ClassEncode, Reason: "no field region"},
	}})
	dlq(t, pool, `relay_dlq_retry('orders')`)
	_, letters := deliverable(t, l)
	if len(letters) != 2 {
		t.Fatalf("%d letters may be delivered, want 2", len(letters))
	}
	for i, want := range []relay.Message{refused(1, "a").Message, unaddressed} {
		if m := letters[i].Message; m.Subject != "" || m.Key != want.Key || string(m.Row) != string(want.Row) || m.Err != nil {
			t.Errorf("letter %d = subject %q, key %q, row %s, error %v; want no subject, %q and %s", i, m.Subject, m.Key, m.Row, m.Err, want.Key, want.Row)
		}
	}
}

// A dead letter that stands for a row that was not decoded is never published as it is.
func TestAnUndecodedRowIsNoMessage(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{{
		Message: relay.Message{ID: "outbox_orders:7:0", OutboxID: 7, Body: []byte(`{"v":2}`), Err: errors.New("version 2")}, Class: engine.ClassDecode, Reason: "version 2",
	}}})
	_, err := pool.Exec(t.Context(), `SELECT pgtrickle.relay_dlq_retry('orders')`)
	if pg, ok := errors.AsType[*pgconn.PgError](err); !ok || !strings.Contains(pg.Hint, `"replay orders --from ID --to ID"`) {
		t.Errorf("relay_dlq_retry = %v, want an error with the cure", err)
	}
	if _, err := pool.Exec(t.Context(), `UPDATE pgtrickle.relay_dead_letters SET status = 'retry'`); err != nil {
		t.Fatal(err)
	}
	if _, letters := deliverable(t, l); len(letters) != 1 || !relay.IsPermanent(letters[0].Message.Err) {
		t.Errorf("letters = %+v, want one that cannot be published", letters)
	}
}

// One commit is one round trip and one small row version.
func TestCommitIsHOT(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	for i := range 50 {
		commit(t, l, engine.Commit{Checkpoint: &relay.Checkpoint{State: json.RawMessage(`{"window":"1:2:"}`), LastID: int64(i)}, Delivered: 1})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		var updates, hot int64
		err := pool.QueryRow(ctx, `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'relay_cursors'`).Scan(&updates, &hot)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			t.Fatalf("read statistics: %v", err)
		}
		if updates >= 50 {
			if hot*10 < updates*9 {
				t.Errorf("%d of %d checkpoints were HOT updates, want nine in ten", hot, updates)
			}
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("statistics show %d updates, want 50", updates)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// A redrive that fails again, and a row that is read again after a crash, are still the
// same dead letter. A parked message that fails is a new one.
func TestEachDeadLetterCountsOnce(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	count := func(what string, want int) {
		t.Helper()
		var n int
		if err := pool.QueryRow(t.Context(), `SELECT dead_lettered FROM pgtrickle.relay_cursors WHERE pipeline = 'orders'`).Scan(&n); err != nil || n != want {
			t.Errorf("%s: dead_lettered is %d, %v; want %d", what, n, err, want)
		}
	}
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a"), parked(2, "a")}})
	count("one is dead, one parked", 1)
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a")}})
	count("the row is read again after a crash", 1)
	if _, err := pool.Exec(t.Context(), `SELECT pgtrickle.relay_dlq_retry('orders')`); err != nil {
		t.Fatal(err)
	}
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(1, "a")}})
	count("a redrive fails again", 1)
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{refused(2, "a")}})
	count("the parked one is refused, too", 2)
}

// A dead letter stores no secret of the configuration: neither a rendered header, nor
// one in its subject or error. The message's own headers stay.
func TestDeadLettersWithoutSecrets(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	l, _ := open(t, pool, 1)
	l.Conceal(func(text string) string { return strings.ReplaceAll(text, "canary", "${env:C}") }, []string{"Authorization"})
	d := refused(1, "a")
	d.Message.Subject, d.Reason = "orders.canary", "endpoint does not know canary"
	d.Message.Headers = []relay.Header{{Name: "traceparent", Value: "00-1"}, {Name: "Authorization", Value: "Bearer canary"}}
	commit(t, l, engine.Commit{DeadLetters: []engine.DeadLetter{d}})

	var row, headers string
	err := pool.QueryRow(t.Context(), `SELECT r::text, headers::text FROM pgtrickle.relay_dead_letters r`).Scan(&row, &headers)
	if err != nil || strings.Contains(row, "canary") || !strings.Contains(row, "know ${env:C}") || headers != `[["traceparent", "00-1"]]` {
		t.Errorf("relay_dead_letters has %s, %v; want no secret and the header traceparent", row, err)
	}
}
