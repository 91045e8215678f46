package snapshot_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/snapshot"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// stream is a stream table public.s with an outbox, and a pipeline p of epoch 1 with the
// rights of pgtrickle_relay alone.
type stream struct {
	t     *testing.T
	admin *pgxpool.Pool
	plain *pgxpool.Pool
	state *snapshot.State
}

func newStream(t *testing.T, rows ...string) *stream {
	t.Helper()
	url := pgtest.URL(t)
	s := &stream{t: t, admin: pgtest.Open(t, url)}
	exttest.Install(t, s.admin)
	if err := migrate.Up(t.Context(), s.admin, nil); err != nil {
		t.Fatal(err)
	}
	s.exec(`CREATE TABLE public.s (__pgt_row_id bigint, __pgt_count int DEFAULT 1, k int, v text)`)
	for _, row := range rows {
		s.insert(row)
	}
	exttest.EnableOutbox(t, s.admin, "public.s")
	s.exec(`INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, epoch) VALUES ('g', 'forward', 'p', 1)`)
	s.exec(`SELECT pgtrickle.relay_grant_access()`)
	s.plain = pgtest.Open(t, exttest.RelayRole(t, s.admin, url))
	return s
}

func (s *stream) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.admin.Exec(context.Background(), sql, args...); err != nil {
		s.t.Fatalf("%.90s: %v", sql, err)
	}
}

// insert adds a row, given as "row id, k, v".
func (s *stream) insert(row string) {
	s.t.Helper()
	s.exec(`INSERT INTO public.s (__pgt_row_id, k, v) VALUES (` + row + `)`)
}

func (s *stream) refresh(claim bool) int64 {
	s.t.Helper()
	return exttest.Refresh(s.t, s.admin, "public.s", 1, 0, claim)
}

func (s *stream) open(start snapshot.Start, change ...func(*snapshot.Options)) {
	s.t.Helper()
	tab, err := table.Resolve(s.t.Context(), s.plain, "public.s", table.DefaultSettings())
	if err != nil {
		s.t.Fatal(err)
	}
	start.Origin = table.Origin{Table: tab.OID, Sequence: tab.Sequence.Filenode}
	opts := snapshot.Options{Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&opts)
	}
	s.state, err = snapshot.Open(s.t.Context(), s.plain, snapshot.Owner{Group: "g", Pipeline: "p", Epoch: 1}, tab, start, opts)
	if err != nil {
		s.t.Fatal(err)
	}
}

// compare compares an outbox row and returns its changes: operation, row id, occurrence,
// value of v before and after, and ! if it is part of a snapshot.
func (s *stream) compare(id int64, claim bool) string {
	s.t.Helper()
	if err := s.state.Compare(s.t.Context(), s.plain, id, claim); err != nil {
		s.t.Fatal(err)
	}
	return s.changes(id)
}

func (s *stream) changes(id int64) string {
	s.t.Helper()
	rows, err := s.plain.Query(s.t.Context(), `SELECT op || ' ' || row_id || '.' || occurrence || coalesce(' ' || (before->>'v'), '')
		|| coalesce(' ' || (row->>'v'), '') || CASE WHEN full_refresh THEN '!' ELSE '' END FROM pgtrickle.relay_snapshot_changes WHERE outbox_id = $1 ORDER BY n`, id)
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Join(list, ", ")
}

func (s *stream) want(got, want string) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("changes: %q, want %q", got, want)
	}
}

func forms(t *testing.T, test func(t *testing.T, claim bool)) {
	t.Helper()
	for name, claim := range map[string]bool{"inline": false, "claim check": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, claim)
		})
	}
}

// TestChanges: a new pipeline gets one whole snapshot, then changes, deletes first.
func TestChanges(t *testing.T) {
	t.Parallel()
	forms(t, func(t *testing.T, claim bool) {
		s := newStream(t, "1, 1, 'a'", "2, 2, 'b'", "3, 3, 'c'")
		s.open(snapshot.Start{Behind: 0})
		s.want(s.compare(s.refresh(claim), claim), "insert 1.1 a!, insert 2.1 b!, insert 3.1 c!")
		s.want(s.compare(s.refresh(claim), claim), "")
		s.exec(`DELETE FROM public.s WHERE k = 3; UPDATE public.s SET v = 'B' WHERE k = 2; UPDATE public.s SET __pgt_count = 7`)
		s.insert("0, 4, 'd'")
		id := s.refresh(claim)
		s.want(s.compare(id, claim), "delete 3.1 c, insert 0.1 d, update 2.1 b B")
		s.exec(`DELETE FROM pgtrickle.outbox_delta_rows_s`)
		s.want(s.compare(id, claim), "delete 3.1 c, insert 0.1 d, update 2.1 b B") // never twice
		s.open(snapshot.Start{Behind: id - 1, Known: true})
		s.want(s.compare(id, claim), "delete 3.1 c, insert 0.1 d, update 2.1 b B")
		if err := s.state.Remove(t.Context(), s.plain, id); err != nil {
			t.Fatal(err)
		}
		s.want(s.changes(id), "")
		id = exttest.Truncate(t, s.admin, "public.s", 3, claim)
		s.want(s.compare(id, claim), "delete 0.1 d, delete 1.1 a, delete 2.1 B")
	})
}

// TestRepeatedRowIDs: a number distinguishes rows of a table without a key.
func TestRepeatedRowIDs(t *testing.T) {
	t.Parallel()
	forms(t, func(t *testing.T, claim bool) {
		s := newStream(t, "1, 1, 'a'", "1, 1, 'a'", "2, 2, 'b'")
		s.open(snapshot.Start{Behind: 0})
		s.want(s.compare(s.refresh(claim), claim), "insert 1.1 a!, insert 1.2 a!, insert 2.1 b!")
		s.insert("1, 1, 'a'")
		s.want(s.compare(s.refresh(claim), claim), "insert 1.3 a")
		s.exec(`DELETE FROM public.s WHERE ctid = (SELECT min(ctid) FROM public.s)`)
		s.want(s.compare(s.refresh(claim), claim), "delete 1.3 a")
	})
}

// TestKeysOnly keeps nothing but the key: a delete has that, and an update no row before.
func TestKeysOnly(t *testing.T) {
	t.Parallel()
	s := newStream(t, "1, 1, 'a'", "2, 2, 'b'")
	keys := func(o *snapshot.Options) { o.Columns = []string{"k"} }
	s.open(snapshot.Start{Behind: 0}, keys)
	s.compare(s.refresh(false), false)
	s.exec(`DELETE FROM public.s WHERE k = 1; UPDATE public.s SET v = 'B'`)
	id := s.refresh(false)
	s.want(s.compare(id, false), "delete 1.1, update 2.1 B")
	var row string
	err := s.plain.QueryRow(t.Context(), `SELECT row::text FROM pgtrickle.relay_snapshot_changes WHERE op = 'delete'`).Scan(&row)
	if err != nil || row != `{"k": 1}` {
		t.Errorf("the delete has %s, %v", row, err)
	}
	s.open(snapshot.Start{Behind: id, Known: true})
	s.want(s.compare(s.refresh(false), false), "insert 2.1 B!")
}

// TestUnknownSnapshot: nothing is deleted for a snapshot that is lost. The next one is sent
// whole, behind what is deleted since the last one that was known.
func TestUnknownSnapshot(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]string{
		"consumed":            `SELECT pgtrickle.outbox_rows_consumed('public.s', 1000)`,
		"never written":       `DELETE FROM pgtrickle.outbox_delta_rows_s`,
		"deleted by ageing":   `DELETE FROM pgtrickle.outbox_delta_rows_s; DELETE FROM pgtrickle.outbox_s`,
		"another one's rows":  `INSERT INTO pgtrickle.outbox_s_other SELECT * FROM pgtrickle.outbox_s`,
		"consumed, now empty": `SELECT pgtrickle.outbox_rows_consumed('public.s', 1000); TRUNCATE public.s`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStream(t, "1, 1, 'a'", "2, 2, 'b'")
			if strings.Contains(lose, "other") {
				s.exec(`CREATE SCHEMA app; CREATE TABLE app.s (k int)`)
				exttest.EnableOutbox(t, s.admin, "app.s")
				s.exec(`SELECT pgtrickle.relay_grant_access();
					ALTER TABLE pgtrickle.outbox_s_` + s.column(`SELECT left(md5('app.s'), 7)`) + ` RENAME TO outbox_s_other;
					UPDATE pgtrickle.pgt_outbox_config SET outbox_table_name = 'outbox_s_other' WHERE outbox_table_name <> 'outbox_s'`)
			}
			s.open(snapshot.Start{Behind: 0})
			s.compare(s.refresh(false), false)
			s.exec(`DELETE FROM public.s WHERE k = 1`)
			id := s.refresh(true)
			s.exec(lose)
			s.want(s.compare(id, true), "")
			s.exec(`INSERT INTO public.s SELECT 2, 1, 2, 'b' WHERE NOT EXISTS (SELECT FROM public.s)`)
			s.insert("3, 3, 'c'")
			s.want(s.compare(s.refresh(false), false), "delete 1.1 a, insert 2.1 b!, insert 3.1 c!")
			s.want(s.compare(s.refresh(false), false), "")
		})
	}
}

func (s *stream) column(sql string) (value string) {
	s.t.Helper()
	if err := s.admin.QueryRow(context.Background(), sql).Scan(&value); err != nil {
		s.t.Fatalf("%.90s: %v", sql, err)
	}
	return value
}

// TestEmptiedByClaimCheck: a claim check without rows deletes all of them where the
// counts, or the stream table itself, prove that it was emptied.
func TestEmptiedByClaimCheck(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before, want string
		truncate     bool
	}{
		"by its counts":      {truncate: true, want: "delete 1.1 a, delete 2.1 b"},
		"the table is empty": {before: `GRANT SELECT ON public.s TO pgtrickle_relay`, want: "delete 1.1 a, delete 2.1 b"},
		"it may not be read": {},
		"something was consumed now": {before: `GRANT SELECT ON public.s TO pgtrickle_relay;
			UPDATE pgtrickle.pgt_outbox_config SET last_drained_at = now() + interval '1 hour'`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStream(t, "1, 1, 'a'", "2, 2, 'b'")
			s.open(snapshot.Start{Behind: 0})
			s.compare(s.refresh(false), false)
			if test.before != "" {
				s.exec(test.before)
			}
			var id int64
			if test.truncate {
				id = exttest.Truncate(t, s.admin, "public.s", 2, true)
			} else {
				s.exec(`DELETE FROM public.s`)
				id = exttest.Refresh(t, s.admin, "public.s", 0, 2, true)
			}
			s.want(s.compare(id, true), test.want)
		})
	}
}

// TestUpgrade: a pipeline that has sent whole snapshots so far takes the newest as its
// state, and sends the differences to it.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	forms(t, func(t *testing.T, claim bool) {
		s := newStream(t, "1, 1, 'a'", "2, 2, 'b'")
		s.refresh(claim)
		newest := s.refresh(claim)
		s.open(snapshot.Start{Behind: newest, Known: true})
		for range 2 {
			if err := s.state.Seed(t.Context(), s.plain); err != nil {
				t.Fatal(err)
			}
		}
		if !s.state.Whole(newest) || s.state.Whole(newest+1) {
			t.Errorf("Whole = %v, %v; want the newest row to be the last one", s.state.Whole(newest), s.state.Whole(newest+1))
		}
		s.exec(`DELETE FROM public.s WHERE k = 1`)
		s.want(s.compare(s.refresh(claim), claim), "delete 1.1 a")
	})
}

// TestUpgradeWithoutSnapshot: if that snapshot is lost, the next one is sent whole.
func TestUpgradeWithoutSnapshot(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]string{
		"consumed": `SELECT pgtrickle.outbox_rows_consumed('public.s', 1000)`,
		"deleted":  `DELETE FROM pgtrickle.outbox_s`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStream(t, "1, 1, 'a'")
			newest := s.refresh(true)
			s.exec(lose)
			s.open(snapshot.Start{Behind: newest, Known: true})
			if err := s.state.Seed(t.Context(), s.plain); err != nil {
				t.Fatal(err)
			}
			s.want(s.compare(s.refresh(false), false), "insert 1.1 a!")
		})
	}
}

// TestAnotherOutbox: the state goes over to a new outbox of the stream table. If changes
// of the old one are undelivered, the next snapshot is sent whole, and what they deleted is
// deleted again.
func TestAnotherOutbox(t *testing.T) {
	t.Parallel()
	for _, delivered := range []bool{true, false} {
		t.Run(fmt.Sprint("delivered ", delivered), func(t *testing.T) {
			t.Parallel()
			s := newStream(t, "1, 1, 'a'", "2, 2, 'b'", "3, 3, 'c'")
			s.open(snapshot.Start{Behind: 0})
			s.compare(s.refresh(false), false)
			s.exec(`DELETE FROM public.s WHERE k = 1`)
			id := s.refresh(false)
			s.want(s.compare(id, false), "delete 1.1 a")
			if delivered {
				if err := s.state.Remove(t.Context(), s.plain, id); err != nil {
					t.Fatal(err)
				}
			}
			s.exec(`SELECT pgtrickle.disable_outbox('public.s'); SELECT pgtrickle.enable_outbox('public.s'); SELECT pgtrickle.relay_grant_access();
				DELETE FROM public.s WHERE k = 2`)
			s.open(snapshot.Start{Behind: 0, Known: true})
			want := "delete 2.1 b"
			if !delivered {
				want = "delete 1.1 a, delete 2.1 b, insert 3.1 c!"
			}
			if id = s.refresh(false); id != 1 {
				t.Fatalf("the new outbox begins with id %d", id)
			}
			s.want(s.compare(id, false), want)
		})
	}
}

// TestCheckpointMovedBack: rows whose changes are removed cannot be repeated; the next
// snapshot is sent whole.
func TestCheckpointMovedBack(t *testing.T) {
	t.Parallel()
	s := newStream(t, "1, 1, 'a'")
	s.open(snapshot.Start{Behind: 0})
	first := s.refresh(false)
	s.compare(first, false)
	if err := s.state.Remove(t.Context(), s.plain, first); err != nil {
		t.Fatal(err)
	}
	s.open(snapshot.Start{Behind: 0, Known: true})
	s.want(s.compare(first, false), "insert 1.1 a!")
}

// TestEpochHasPassed: an owner that was replaced stores nothing.
func TestEpochHasPassed(t *testing.T) {
	t.Parallel()
	s := newStream(t, "1, 1, 'a'")
	s.open(snapshot.Start{Behind: 0})
	id := s.refresh(false)
	s.exec(`UPDATE pgtrickle.relay_cursors SET epoch = 2`)
	if err := s.state.Compare(t.Context(), s.plain, id, false); err == nil || !strings.Contains(err.Error(), "another owner") {
		t.Errorf("Compare = %v", err)
	}
	s.want(s.changes(id), "")
}

// TestSweep drops the state of a pipeline that was deleted, and no other.
func TestSweep(t *testing.T) {
	t.Parallel()
	s := newStream(t, "1, 1, 'a'")
	s.exec(`SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table": "public.s", "sink_type": "stdout"}')`)
	s.open(snapshot.Start{Behind: 0})
	s.compare(s.refresh(false), false)
	const count = `SELECT (SELECT count(*) FROM pgtrickle.relay_snapshots) || ' ' || (SELECT count(*) FROM pgtrickle.relay_snapshot_rows)
		|| ' ' || (SELECT count(*) FROM pgtrickle.relay_snapshot_changes)`
	sweep := func(want string) {
		t.Helper()
		if err := snapshot.Sweep(t.Context(), s.plain); err != nil {
			t.Fatal(err)
		}
		if got := s.column(count); got != want {
			t.Errorf("states, rows and changes: %s, want %s", got, want)
		}
	}
	sweep("1 1 1")
	s.exec(`SELECT pgtrickle.delete_relay('p')`)
	sweep("0 0 0")
}

// TestDrop: a state with undelivered changes stays.
func TestDrop(t *testing.T) {
	t.Parallel()
	s := newStream(t, "1, 1, 'a'")
	s.open(snapshot.Start{Behind: 0})
	id := s.refresh(false)
	s.compare(id, false)
	for i, behind := range []int64{id - 1, id} {
		if gone, err := snapshot.Drop(t.Context(), s.plain, snapshot.Owner{Group: "g", Pipeline: "p"}, behind); err != nil || gone != (i == 1) {
			t.Errorf("Drop behind %d = %v, %v", behind, gone, err)
		}
	}
	if n := s.column(`SELECT count(*)::text FROM pgtrickle.relay_snapshot_rows`); n != "0" {
		t.Errorf("%s rows are left", n)
	}
}
