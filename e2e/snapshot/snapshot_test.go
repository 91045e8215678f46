package snapshot

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

func TestMain(m *testing.M) {
	if os.Getenv("RELAY_SNAPSHOT") != "1" {
		fmt.Println("not run: this test writes a large table; make snapshot-short runs it (RELAY_SNAPSHOT=1)")
		return
	}
	os.Exit(m.Run())
}

const (
	patience  = 5 * time.Minute
	perSecond = 500 // writes
	kills     = 5
	maxGrowth = 16 << 20 // bytes of memory, from half of the rows to all
)

// TestSnapshot reads a table while it is written: once by a process that is killed again
// and again, and once by one that is not. Both replays must equal the table.
func TestSnapshot(t *testing.T) {
	rows, err := strconv.Atoi(cmp.Or(os.Getenv("SNAPSHOT_ROWS"), "1000000"))
	if err != nil {
		t.Fatal(err)
	}
	maxStall, err := time.ParseDuration(cmp.Or(os.Getenv("SNAPSHOT_STALL"), "1s"))
	if err != nil {
		t.Fatal(err)
	}
	s := newStage(t, rows)
	copied := s.copyOut(t)
	stop := s.write(t)

	began := time.Now()
	s.pipeline(t, "killed")
	for n := range kills {
		r := s.relay(t)
		at := int64(n+1) * int64(rows) / (kills + 1)
		rig.Until(t, patience, "the snapshot goes on", func(ctx context.Context) (bool, error) {
			done, left, err := s.progress(ctx, "killed")
			return done >= at || !left && time.Since(began) > 10*time.Second, err
		})
		r.Kill()
	}
	r := s.relay(t)
	s.complete(t, "killed")
	t.Logf("%d rows with %d kills at %d writes/s: %s", rows, kills, perSecond, time.Since(began).Round(100*time.Millisecond))

	if err := r.Stop(t.Context()); err != nil { // what it read back is not in the memory of the next one
		t.Fatal(err)
	}
	r = s.relay(t)
	began = time.Now()
	delays := s.watch(t, "whole")
	s.pipeline(t, "whole")
	var rss []int
	half := false
	rig.Until(t, patience, "the snapshot is complete", func(ctx context.Context) (bool, error) {
		done, left, err := s.progress(ctx, "whole")
		if done > int64(rows)/2 && !half {
			half = true
			rss = append(rss, resident(t, r.Pid()))
		}
		return done > 0 && !left, err
	})
	took := time.Since(began)
	rss = append(rss, resident(t, r.Pid()))
	stalls := delays()
	t.Logf("%d rows without kills: %s, %.0f rows/s; COPY of the table %s, %.0f rows/s; ratio %.2f", rows, took.Round(10*time.Millisecond),
		float64(rows)/took.Seconds(), copied.Round(10*time.Millisecond), float64(rows)/copied.Seconds(), copied.Seconds()/took.Seconds())
	if len(stalls) == 0 {
		t.Fatal("no change came while the snapshot was read")
	}
	longest := stalls[len(stalls)-1]
	t.Logf("%d changes came meanwhile, from their write to the file: median %s, longest %s; most memory at half and at the end: %v MiB",
		len(stalls), stalls[len(stalls)/2].Round(time.Millisecond), longest.Round(time.Millisecond), mib(rss))
	if longest > maxStall {
		t.Errorf("a change came %s after it was written", longest)
	}
	if grown := rss[len(rss)-1] - rss[0]; grown > maxGrowth {
		t.Errorf("the process grew by %d MiB in the second half, want at most %d", grown>>20, maxGrowth>>20)
	}

	reached := stop()
	t.Logf("%d writes, %.0f a second", s.writes.Load(), reached)
	if reached < perSecond*0.9 && maxStall <= time.Second { // CI shares its machine
		t.Errorf("the writers reached %.0f writes a second, want %d", reached, perSecond)
	}
	for _, name := range []string{"killed", "whole"} {
		s.drained(t, name)
		s.equal(t, name)
	}
}

type stage struct {
	db     *rig.Database
	binary rig.Program
	folder string
	rows   int
	writes atomic.Int64
}

func newStage(t *testing.T, rows int) *stage {
	t.Helper()
	binary, err := rig.Binary("pgtrickle-relay")
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{binary: binary, folder: t.TempDir(), rows: rows, db: rig.NewDatabase(t, os.Getenv("RELAY_TEST_DATABASE_URL"), "snapshot", binary.Migrate)}
	s.db.Exec(t, `CREATE TABLE items (id bigint PRIMARY KEY, v bigint NOT NULL, pad text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())`)
	s.db.Exec(t, `INSERT INTO items (id, v, pad) SELECT g, 0, repeat('x', 100) FROM generate_series(1, $1::int) g`, rows)
	s.db.Exec(t, `ANALYZE items`)
	s.db.Exec(t, `SELECT pgtrickle.enable_outbox('public.items')`)
	return s
}

// copyOut measures a plain COPY of the table.
func (s *stage) copyOut(t *testing.T) time.Duration {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	began := time.Now()
	if _, err := conn.PgConn().CopyTo(t.Context(), io.Discard, `COPY items TO STDOUT`); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

// write changes rows until the function that it returns is called, which returns the
// writes a second. A writer that is late catches up: with a ticker, each statement that took
// longer than a tick would cost a write.
func (s *stage) write(t *testing.T) (stop func() float64) {
	const writers = 16
	ctx, cancel := context.WithCancel(context.Background())
	began := time.Now()
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 3))
			for n := 1; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Until(began.Add(time.Duration(n) * time.Second * writers / perSecond))):
				}
				id := 1 + rnd.Int64N(int64(s.rows)+1000)
				_, err := s.db.Pool.Exec(context.Background(), []string{
					`UPDATE items SET v = v + 1, at = clock_timestamp() WHERE id = $1`,
					`INSERT INTO items (id, v, pad) VALUES ($1, 1, 'new') ON CONFLICT (id) DO UPDATE SET v = items.v + 1, at = clock_timestamp()`,
					`DELETE FROM items WHERE id = $1`,
				}[min(rnd.IntN(5), 2)%3], id)
				if err != nil {
					t.Error(err)
					return
				}
				s.writes.Add(1)
			}
		})
	}
	return func() float64 {
		cancel()
		group.Wait()
		return float64(s.writes.Load()) / time.Since(began).Seconds()
	}
}

func (s *stage) file(name string) string { return filepath.Join(s.folder, name+".jsonl") }

func (s *stage) pipeline(t *testing.T, name string) {
	t.Helper()
	s.db.Exec(t, `SELECT pgtrickle.set_relay_outbox($1, config => jsonb_build_object('stream_table', 'public.items', 'sink_type', 'stdout',
		'stdout_path', $2::text, 'startup', 'snapshot')), pgtrickle.enable_relay($1)`, name, s.file(name))
}

func (s *stage) relay(t *testing.T) *rig.Relay {
	t.Helper()
	r := s.binary.Start(t, s.db.URL, rig.Options{})
	rig.Until(t, patience, "the relay is ready", func(ctx context.Context) (bool, error) { // before that a signal ends it at once
		_, err := r.Get(ctx, "/readyz")
		return err == nil, nil
	})
	return r
}

// progress returns the rows that are settled of a snapshot, and whether rows are left.
func (s *stage) progress(ctx context.Context, name string) (rows int64, left bool, err error) {
	err = s.db.Pool.QueryRow(ctx, `SELECT coalesce((checkpoint -> 'backfill' ->> 'rows')::bigint, delivered), coalesce(checkpoint ? 'backfill', true)
		FROM pgtrickle.relay_cursors WHERE pipeline = $1`, name).Scan(&rows, &left)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, true, nil
	}
	return rows, left, err
}

func (s *stage) complete(t *testing.T, name string) {
	t.Helper()
	rig.Until(t, patience, "the snapshot is complete", func(ctx context.Context) (bool, error) {
		rows, left, err := s.progress(ctx, name)
		return rows > 0 && !left, err
	})
}

// drained waits until a pipeline has all that was written.
func (s *stage) drained(t *testing.T, name string) {
	t.Helper()
	rig.Until(t, patience, "all changes are delivered", func(ctx context.Context) (done bool, err error) {
		err = s.db.Pool.QueryRow(ctx, `SELECT last_id >= (SELECT max(id) FROM pgtrickle.outbox_items) FROM pgtrickle.relay_cursors WHERE pipeline = $1`, name).
			Scan(&done)
		return done, err
	})
}

// equal replays a pipeline's file and compares it with the table.
func (s *stage) equal(t *testing.T, name string) {
	t.Helper()
	f, err := os.Open(s.file(name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	replayed, rows, messages := make(map[int64]int64), 0, 0
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var m struct {
			Op      string `json:"op"`
			Full    bool   `json:"is_full_refresh"`
			Payload struct{ ID, V int64 }
		}
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", lines.Bytes(), err)
		}
		messages++
		if m.Full {
			rows++
		}
		if m.Op == "delete" {
			delete(replayed, m.Payload.ID)
		} else {
			replayed[m.Payload.ID] = m.Payload.V
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	result, err := s.db.Pool.Query(t.Context(), `SELECT id, v FROM items`)
	if err != nil {
		t.Fatal(err)
	}
	var id, v int64
	table, wrong := 0, 0
	_, err = pgx.ForEachRow(result, []any{&id, &v}, func() error {
		table++
		if got, found := replayed[id]; !found || got != v {
			if wrong++; wrong < 10 {
				t.Errorf("%s: row %d has version %d, replayed %d (%v)", name, id, v, got, found)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if wrong > 0 || len(replayed) != table {
		t.Errorf("%s: %d rows are wrong, %d were replayed, the table has %d", name, wrong, len(replayed), table)
	}
	t.Logf("%s: %d messages, %d of them rows of the snapshot; the table has %d rows", name, messages, rows, table)
}

// watch follows a pipeline's file, and returns a function that ends it and returns how long
// each change took from its write to its arrival.
func (s *stage) watch(t *testing.T, name string) (delays func() []time.Duration) {
	var took []time.Duration
	var began time.Time
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		var f *os.File
		var rest []byte
		buf := make([]byte, 1<<20)
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
			if f == nil {
				if f, _ = os.Open(s.file(name)); f == nil {
					continue
				}
				defer f.Close()
				began = time.Now()
			}
			n, _ := f.Read(buf)
			now := time.Now()
			rest = append(rest, buf[:n]...)
			for {
				line, more, whole := bytes.Cut(rest, []byte{'\n'})
				if !whole {
					break
				}
				rest = more
				var m struct {
					Op      string `json:"op"`
					Payload struct{ At time.Time }
				}
				if !bytes.Contains(line, []byte(`"is_full_refresh":false`)) || json.Unmarshal(line, &m) != nil || m.Op == "delete" {
					continue
				}
				if m.Payload.At.After(began) { // before that there was no pipeline
					took = append(took, now.Sub(m.Payload.At))
				}
			}
			rest = bytes.Clone(rest)
		}
	}()
	return func() []time.Duration {
		close(stop)
		<-done
		slices.Sort(took)
		return took
	}
}

var peak = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// resident returns the most memory that a process has had, in bytes.
func resident(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	m := peak.FindSubmatch(b)
	if m == nil {
		t.Fatal("no VmHWM in the status of the process")
	}
	kb, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

func mib(bytes []int) []int {
	out := make([]int, len(bytes))
	for i, n := range bytes {
		out[i] = n >> 20
	}
	return out
}
