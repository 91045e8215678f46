package outbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// differ is a pipeline that compares the snapshots of stream table public.s.
type differ struct {
	t            testing.TB
	admin, plain *pgxpool.Pool
	mode, keeps  string
	readBytes    int
	marker       bool
	src          *outbox.Source
	durable      relay.Checkpoint
}

func newDiffer(t testing.TB, mode string) *differ {
	t.Helper()
	url := pgtest.URL(t)
	d := &differ{t: t, admin: pgtest.Open(t, url), mode: mode, readBytes: 2000}
	exttest.Install(t, d.admin)
	if err := migrate.Up(t.Context(), d.admin, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, d.admin, `CREATE TABLE public.s (__pgt_row_id bigint, __pgt_count int DEFAULT 1, k int, v text); INSERT INTO public.s VALUES (1, 1, 1, 'a'), (2, 1, 2, 'b')`)
	exttest.EnableOutbox(t, d.admin, "public.s")
	exec(t, d.admin, `INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, epoch) VALUES ('g', 'forward', 'p', 1);
		SELECT pgtrickle.relay_grant_access()`)
	d.plain = pgtest.Open(t, exttest.RelayRole(t, d.admin, url))
	return d
}

// open opens the source at the durable checkpoint, as the next owner.
func (d *differ) open() {
	d.t.Helper()
	epoch := column[int64](d.t, d.admin, `UPDATE pgtrickle.relay_cursors SET epoch = epoch + 1 RETURNING epoch`)[0]
	d.src = open(d.t, d.plain, d.durable, func(c *outbox.Config) {
		c.Outbox, c.Epoch, c.Settings = "public.s", epoch, outbox.Settings{Snapshot: d.mode, DiffState: d.keeps, SnapshotMarker: d.marker}
		c.ReadBytes = d.readBytes
	})
}

// commit makes the checkpoint behind batch durable.
func (d *differ) commit(batch []relay.Message) {
	d.t.Helper()
	d.durable = checkpoint(d.t, d.src, batch)
	exec(d.t, d.admin, `UPDATE pgtrickle.relay_cursors SET checkpoint = $1, last_id = greatest(last_id, $2), source = $3`,
		d.durable.State, d.durable.LastID, d.src.Table())
	if err := d.src.Committed(d.t.Context(), d.durable); err != nil {
		d.t.Errorf("Committed: %v", err)
	}
}

func (d *differ) refresh(claim bool) int64 {
	d.t.Helper()
	return exttest.Refresh(d.t, d.admin, "public.s", 1, 0, claim)
}

// want receives exactly the messages that are listed: id, operation and v of each, and !
// if it is part of a snapshot.
func (d *differ) want(list ...string) []relay.Message {
	d.t.Helper()
	batch := receive(d.t, d.src, len(list))
	for i := range batch {
		m := &batch[i]
		_, v, _ := strings.Cut(string(m.Row), `"v": "`)
		got := rowOf(m.ID) + " " + m.Op + " " + strings.TrimRight(strings.Split(v, `"`)[0], " ")
		if m.FullRefresh {
			got += "!"
		}
		if got != list[i] {
			d.t.Errorf("message %d: %q, want %q", i, got, list[i])
		}
	}
	nothing(d.t, d.src)
	return batch
}

// TestDifferences: a new pipeline gets a whole snapshot and then changes. They have the
// row id as a header, and after a crash the same ids.
func TestDifferences(t *testing.T) {
	t.Parallel()
	for name, claim := range map[string]bool{"inline": false, "claim check": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDiffer(t, "diff")
			d.open()
			d.refresh(claim)
			d.refresh(claim) // as refresh mode FULL does without a change
			d.commit(d.want("1:0 insert a!", "1:1 insert b!"))
			exec(t, d.admin, `DELETE FROM public.s WHERE k = 1; UPDATE public.s SET v = 'B'; INSERT INTO public.s VALUES (2, 1, 2, 'B')`)
			d.refresh(claim)
			changes := []string{"3:0 delete a", "3:1 update B", "3:2 insert B"}
			got := d.want(changes...)
			if s := string(got[1].Before); !strings.Contains(s, `"v": "b"`) {
				t.Errorf("row before the update: %s", s)
			}
			for i, want := range []string{"[{Pgtrickle-Row-Id 1}]", "[{Pgtrickle-Row-Id 2}]", "[{Pgtrickle-Row-Id 2} {Pgtrickle-Row-Occurrence 2}]"} {
				if s := fmt.Sprint(got[i].Headers); s != want {
					t.Errorf("headers %s, want %s", s, want)
				}
			}
			d.open()
			d.commit(d.want(changes...)[:2])
			d.open()
			d.commit(d.want(changes[2:]...))
			d.open()
			nothing(t, d.src)
			if n := column[int64](t, d.admin, `SELECT count(*) FROM pgtrickle.relay_snapshot_changes`)[0]; n != 0 {
				t.Errorf("%d delivered changes are left", n)
			}
		})
	}
}

// TestSnapshotMarker: a message ends each snapshot that is sent, after a crash with the
// same id. Nothing follows a snapshot without a change, or one that is lost.
func TestSnapshotMarker(t *testing.T) {
	t.Parallel()
	for name, claim := range map[string]bool{"inline": false, "claim check": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDiffer(t, "diff")
			d.marker = true
			d.open()
			d.refresh(claim)
			d.refresh(claim)
			first := []string{"1:0 insert a!", "1:1 insert b!", "1:2 snapshot_end !"}
			got := d.want(first...)
			if s := string(got[2].Row); s != `{"outbox_id":1,"messages":2}` {
				t.Errorf("the marker is %s", s)
			}
			d.commit(got[:2])
			d.open()
			d.commit(d.want(first[2:]...))
			exec(t, d.admin, `DELETE FROM public.s WHERE k = 1`)
			d.refresh(claim)
			d.commit(d.want("3:0 delete a", "3:1 snapshot_end "))

			d.mode = "emit"
			d.open()
			d.refresh(claim)
			d.commit(d.want("4:0 insert b!", "4:1 snapshot_end !"))
			d.refresh(true)
			exec(t, d.admin, `DELETE FROM pgtrickle.outbox_delta_rows_s WHERE outbox_id = 5`)
			got = receive(t, d.src, 1)
			if nothing(t, d.src); got[0].Err == nil {
				t.Errorf("a lost snapshot is %s %s", got[0].Op, got[0].Row)
			}
		})
	}
}

// TestDifferencesByWindow reads the outbox by snapshot windows.
func TestDifferencesByWindow(t *testing.T) {
	t.Parallel()
	d := newDiffer(t, "diff")
	exec(t, d.admin, fmt.Sprintf(withXid, "outbox_s"))
	d.open()
	if got := d.src.Strategy(); got != "window" {
		t.Fatalf("strategy %s", got)
	}
	d.refresh(false)
	d.commit(d.want("1:0 insert a!", "1:1 insert b!"))
	exec(t, d.admin, `DELETE FROM public.s WHERE k = 1`)
	d.refresh(true)
	exec(t, d.admin, `INSERT INTO public.s VALUES (3, 1, 3, 'c')`)
	d.refresh(false)
	d.commit(d.want("2:0 delete a", "3:0 insert c")[:1])
	d.open()
	d.commit(d.want("3:0 insert c"))
}

// TestFromEmitToDiff: snapshots that came before are sent whole, and no id gets another
// meaning. The way back is the same.
func TestFromEmitToDiff(t *testing.T) {
	t.Parallel()
	for name, claim := range map[string]bool{"inline": false, "claim check": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDiffer(t, "emit")
			d.open()
			d.refresh(claim)
			d.commit(d.want("1:0 insert a!", "1:1 insert b!")[:1])
			d.refresh(claim)
			d.mode = "diff"
			d.open()
			d.commit(d.want("1:1 insert b!", "2:0 insert a!", "2:1 insert b!"))
			d.open()
			exec(t, d.admin, `DELETE FROM public.s WHERE k = 1`)
			d.refresh(claim)
			d.want("3:0 delete a")
			d.mode = "emit"
			d.open()
			d.refresh(claim)
			d.commit(d.want("3:0 delete a", "4:0 insert b!"))
			d.open()
			if n := column[int64](t, d.admin, `SELECT count(*) FROM pgtrickle.relay_snapshots`)[0]; n != 0 {
				t.Error("the state is not dropped")
			}
		})
	}
}

// TestStateIsDroppedWhileRunning: the pipeline makes another one and sends one snapshot
// whole.
func TestStateIsDroppedWhileRunning(t *testing.T) {
	t.Parallel()
	d := newDiffer(t, "diff")
	d.open()
	d.refresh(false)
	d.commit(d.want("1:0 insert a!", "1:1 insert b!"))
	exec(t, d.admin, `TRUNCATE pgtrickle.relay_snapshots, pgtrickle.relay_snapshot_rows, pgtrickle.relay_snapshot_changes; DELETE FROM pgtrickle.outbox_s`)
	exec(t, d.admin, `DELETE FROM public.s WHERE k = 1`)
	d.refresh(false)
	exec(t, d.admin, `DELETE FROM pgtrickle.outbox_s`)
	d.refresh(false)
	_ = d.want("3:0 insert b!")
}

// visible returns a row without the extension's own columns. Changes of these alone are
// not sent.
func visible(t testing.TB, row []byte) string {
	t.Helper()
	var columns map[string]any
	if err := json.Unmarshal(row, &columns); err != nil {
		t.Fatalf("row %s: %v", row, err)
	}
	maps.DeleteFunc(columns, func(name string, _ any) bool { return strings.HasPrefix(name, "__pgt_") })
	text, err := json.Marshal(columns)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestLargeSnapshot leaves a payload on the server that is too large to be read along with
// others.
func TestLargeSnapshot(t *testing.T) {
	t.Parallel()
	d := newDiffer(t, "diff")
	exec(t, d.admin, `INSERT INTO public.s SELECT g, 1, g, md5(g::text) || md5((-g)::text) FROM generate_series(3, 5000) g`)
	d.open()
	d.refresh(false)
	if size := column[int](t, d.admin, `SELECT pg_column_size(payload) FROM pgtrickle.outbox_s`)[0]; size < 256<<10 {
		t.Fatalf("the payload has %d bytes", size)
	}
	d.commit(receive(t, d.src, 5000))
	exec(t, d.admin, `DELETE FROM public.s WHERE k = 1`)
	d.refresh(false)
	d.commit(d.want("2:0 delete a"))
}

// replica is what a receiver makes of the messages: it drops repeated ids, and keeps a row
// for each row id and occurrence.
type replica struct {
	seen map[string]bool
	rows map[string]string
}

func (r *replica) apply(t testing.TB, m *relay.Message) {
	t.Helper()
	id, _ := m.Header(relay.HeaderRowID)
	occurrence, _ := m.Header(relay.HeaderRowOccurrence)
	if m.Op == relay.OpDelete {
		delete(r.rows, id+"/"+occurrence)
	} else {
		r.rows[id+"/"+occurrence] = visible(t, m.Row)
	}
}

func (r *replica) content() string {
	return strings.Join(slices.Sorted(maps.Values(r.rows)), "\n")
}

// TestReplayEqualsStreamTable changes a stream table at random, as one with a key, an
// aggregate or one without a key. Its refreshes are inline or claim checks, and some of
// those are lost. The source ends anywhere: between two messages, in a read, before and
// after a checkpoint is durable. A receiver replays what arrives. Before the first message
// of each snapshot it has the content of the stream table at the one before.
func TestReplayEqualsStreamTable(t *testing.T) {
	t.Parallel()
	for _, seed := range []uint64{1, 2, 3, 4, 5, 6} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			d := newDiffer(t, "diff")
			if seed%3 == 0 {
				d.keeps = "keys"
			}
			replays(t, d, rand.New(rand.NewPCG(seed, seed)))
		})
	}
}

func replays(t *testing.T, d *differ, rnd *rand.Rand) {
	want := map[int64]string{0: ""} // by outbox row; that of the last known snapshot if it is lost
	last := int64(0)
	r := replica{seen: map[string]bool{}, rows: map[string]string{}}
	at := int64(0)
	take := func(batch []relay.Message) {
		for i := range batch {
			m := &batch[i]
			if m.Err != nil {
				t.Fatalf("%s: %v", m.ID, m.Err)
			}
			if r.seen[m.ID] {
				continue
			}
			r.seen[m.ID] = true
			if m.OutboxID != at {
				if got := r.content(); got != want[m.OutboxID-1] {
					t.Fatalf("before row %d the replica has\n%s\nand the stream table had\n%s", m.OutboxID, got, want[m.OutboxID-1])
				}
				at = m.OutboxID
			}
			r.apply(t, m)
		}
	}
	d.open()
	for range 40 {
		for range 1 + rnd.IntN(3) {
			exec(t, d.admin, change(rnd))
		}
		now := content(t, d.admin)
		claim := rnd.IntN(2) == 0
		var id int64
		if now == "" {
			id = exttest.Truncate(t, d.admin, "public.s", 3, claim)
		} else {
			id = d.refresh(claim)
		}
		want[id] = now
		if claim && now != "" && rnd.IntN(4) == 0 {
			exec(t, d.admin, `DELETE FROM pgtrickle.outbox_delta_rows_s WHERE outbox_id = $1`, id)
			want[id] = want[last]
		}
		last = id

		for range rnd.IntN(4) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(40))*time.Millisecond)
			batch, _ := d.src.Receive(ctx, 1+rnd.IntN(20))
			cancel()
			take(batch)
			if rnd.IntN(2) == 0 {
				d.durable = checkpoint(t, d.src, batch) // and the source may end before Committed
			}
			if rnd.IntN(3) == 0 {
				d.commit(batch)
			}
			if rnd.IntN(3) == 0 {
				d.open()
			}
		}
	}
	d.open()
	exec(t, d.admin, `INSERT INTO public.s VALUES (99, 1, 99, 'end')`)
	want[d.refresh(false)] = content(t, d.admin)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		batch, err := d.src.Look(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		take(batch)
		d.commit(batch)
		if got := r.content(); at == last+1 && got == want[last+1] {
			return
		}
	}
	t.Errorf("at the end the replica has\n%s\nand the stream table\n%s", r.content(), want[last+1])
}

// change returns a random change of public.s.
func change(rnd *rand.Rand) string {
	k, v := rnd.IntN(12), rnd.IntN(5)
	switch rnd.IntN(10) {
	case 0, 1, 2: // of a table with a key
		return fmt.Sprintf(`DELETE FROM public.s WHERE k = %[1]d; INSERT INTO public.s VALUES (%[1]d, 1, %[1]d, 'v%[2]d')`, k, v)
	case 3: // of one without a key: the row id is made of the content
		return fmt.Sprintf(`INSERT INTO public.s SELECT 1000 + %[1]d, 1, 1000 + %[1]d, 'same' FROM generate_series(1, %[2]d)`, k, v)
	case 4:
		return `DELETE FROM public.s WHERE ctid IN (SELECT ctid FROM public.s WHERE k >= 1000 LIMIT 2)`
	case 5: // of an aggregate
		return fmt.Sprintf(`UPDATE public.s SET __pgt_count = __pgt_count + 1, v = 'v%d' WHERE k < 6`, v)
	case 6, 7:
		return fmt.Sprintf(`DELETE FROM public.s WHERE k = %d`, k)
	case 8:
		return fmt.Sprintf(`INSERT INTO public.s SELECT g, 1, g, 'many' FROM generate_series(%d, %d) g WHERE g NOT IN (SELECT k FROM public.s)`, 100+k, 160+k)
	}
	return `TRUNCATE public.s`
}
