package relaycmd

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/exttest"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// newExtensionWorld returns a database with pg_trickle and the relay's catalog. Its
// url is that of a role that only inherits pgtrickle_relay.
func newExtensionWorld(t *testing.T) *world {
	t.Helper()
	url := pgtest.URL(t)
	w := &world{pool: pgtest.Open(t, url), dir: t.TempDir()}
	exttest.Install(t, w.pool)
	w.exec(t, `CREATE TABLE public.orders (__pgt_row_id bigint, id int, total numeric)`)
	exttest.EnableOutbox(t, w.pool, "public.orders")
	w.exec(t, `SELECT pgtrickle.create_inbox('orders_inbox')`)
	if out, stderr, code := runBinary(t, nil, "migrate", "--postgres-url", url); code != 0 {
		t.Fatalf("migrate = %d %s%s", code, out, stderr)
	}
	w.url = exttest.RelayRole(t, w.pool, url)
	return w
}

// The real extension's tables, functions and payloads, both ways, with the least
// rights there are.
func TestExtension(t *testing.T) {
	t.Parallel()
	w := newExtensionWorld(t)
	// The extension's own form of the call, as its documentation has it.
	w.exec(t, `SELECT pgtrickle.set_relay_outbox('out', 'orders', NULL, $1::jsonb)`, fmt.Sprintf(`{"type":"spool","path":%q,"full":true}`, w.spool("out")))
	w.exec(t, `SELECT pgtrickle.set_relay_inbox('in', 'orders_inbox', $1::jsonb)`, fmt.Sprintf(`{"type":"spool","path":%q}`, w.spool("in")))
	if err := os.WriteFile(w.spool("in"), []byte("{\"a\":1}\nnot json\n{\"a\":2}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := runBinary(t, nil, "check", "out", "--postgres-url", w.url)
	if code != 0 || !strings.Contains(out, "orders by __pgt_row_id, and sends the differences of snapshots") ||
		!strings.Contains(out, "pipelines have no owners here: the grants of extension pg_trickle decide") {
		t.Errorf("check = %d %s%s", code, out, stderr)
	}
	p := startRelay(t, w.url)
	eventually(t, "both run", patience, func() bool { return p.owned() == 2 })

	w.exec(t, `INSERT INTO public.orders VALUES (71, 1, 9.50), (72, 2, 1)`)
	delta := `{"v":1,"inserted":[{"id":3}],"deleted":[{"id":1}]}`
	full := `{"v":1,"inserted":[{"id":4}],"deleted":[],"full_refresh":true}`
	header := `{"v":1,"claim_check":true,"inserted_count":1,"deleted_count":1,"refresh_id":"1f0b0000-0000-0000-0000-000000000000"}`
	unknown := `{"v":2,"inserted":[{"id":6}],"deleted":[]}`
	unversioned := `{"inserted":[{"id":6}],"deleted":[]}`
	malformed := `{"v":1,"inserted":[7],"deleted":[]}`
	empty := `{"v":1}`
	text := `"hello"`
	ids := []int64{
		exttest.Refresh(t, w.pool, "public.orders", 2, 0, false), // A: a snapshot
		exttest.Refresh(t, w.pool, "public.orders", 1, 0, true),  // B: the same one, as a claim check
		exttest.Write(t, w.pool, "outbox_orders", &delta),        // C
		exttest.Write(t, w.pool, "outbox_orders", &full),         // C, a full refresh
		exttest.Write(t, w.pool, "outbox_orders", &header, exttest.Delta{Op: "INSERT", Row: `{"id":5}`}, exttest.Delta{Op: "DELETE", Row: `{"id":2}`}), // D
		exttest.Write(t, w.pool, "outbox_orders", nil), // E: nothing to deliver
		exttest.Write(t, w.pool, "outbox_orders", &unknown),
		exttest.Write(t, w.pool, "outbox_orders", &unversioned),
		exttest.Write(t, w.pool, "outbox_orders", &malformed),
		exttest.Write(t, w.pool, "outbox_orders", &empty),
		exttest.Write(t, w.pool, "outbox_orders", &text),
		exttest.Write(t, w.pool, "outbox_orders", &delta),
	}
	want := strings.Split(fmt.Sprintf(`outbox_orders.identity_:%[1]d:0 insert full {"id": 1, "total": 9.50}
outbox_orders.identity_:%[1]d:1 insert full {"id": 2, "total": 1}
outbox_orders.identity_:%[2]d:0 insert {"id": 3}
outbox_orders.identity_:%[2]d:1 delete {"id": 1}
outbox_orders.identity_:%[3]d:0 insert full {"id": 4}
outbox_orders.identity_:%[4]d:0 insert {"id": 5}
outbox_orders.identity_:%[4]d:1 delete {"id": 2}
outbox_orders.identity_:%[5]d:0 insert {"id": 3}
outbox_orders.identity_:%[5]d:1 delete {"id": 1}`, ids[0], ids[2], ids[3], ids[4], ids[11]), "\n")
	deadline := time.Now().Add(patience)
	var got []string
	for ; len(got) < len(want) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		b, _ := os.ReadFile(w.spool("out"))
		got = strings.Split(strings.TrimSpace(named(string(b))), "\n")
	}
	if !slices.Equal(got, want) {
		t.Errorf("delivered\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	// A message that cannot be decoded is kept, with what an operator needs to know.
	var found []store.DeadLetter
	const dlqIDs = "1,2,3,4,5,6,7,8,9" // bodies are loaded only of those asked for
	eventually(t, "dead letters", patience, func() bool {
		out, stderr, code := runBinary(t, nil, "dlq", "list", "out", "--id", dlqIDs, "--output", "json", "--postgres-url", w.url)
		if code != 0 || json.Unmarshal([]byte(out), &found) != nil {
			t.Fatalf("dlq list = %d %s%s", code, out, stderr)
		}
		return len(found) == 5
	})
	for i, want := range []struct{ body, err string }{
		{unknown, `unsupported outbox payload version 2: this relay reads version 1`},
		{unversioned, `unsupported outbox payload version missing: this relay reads version 1`},
		{malformed, `payload: "inserted": a row is 7 and not an object`},
		{empty, `payload has none of "inserted", "updated" and "deleted"`},
		{text, `payload: `},
	} {
		l := found[i]
		prefix := fmt.Sprintf(`row %d of "pgtrickle"."outbox_orders": `, ids[6+i])
		if l.MessageID != fmt.Sprintf("outbox_orders.identity_:%d:0", ids[6+i]) || !strings.HasPrefix(l.Error, prefix+want.err) || l.Class != "decode" || l.Status != "dead" {
			t.Errorf("dead letter %d is %+v; want the error %q", i, l, prefix+want.err)
		}
		if !sameJSON(l.Body, want.body) {
			t.Errorf("letter %d has the body %s; want %s", i, l.Body, want.body)
		}
	}
	eventually(t, "dead letters in health", patience, func() bool { _, body := p.get("/health"); return strings.Contains(body, `"dead_letters":5`) })

	// The way in.
	eventually(t, "reverse", patience, func() bool {
		var rows, dead int
		_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.orders_inbox WHERE payload IN ('{"a":1}', '{"a":2}')`).Scan(&rows)
		_ = w.pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_dead_letters WHERE pipeline = 'in' AND body = 'not json'`).Scan(&dead)
		return rows == 2 && dead == 1
	})

	// Nothing is left over: what is committed is delivered or dead.
	out, stderr, code = runBinary(t, nil, "verify", "out", "--postgres-url", w.url)
	if code != 0 || !strings.Contains(out, "unaccounted             0") {
		t.Errorf("verify = %d %s%s", code, out, stderr)
	}
	// The extension's functions steer the running process as ours do.
	w.exec(t, `SELECT pgtrickle.disable_relay('out')`)
	eventually(t, "disabled", time.Second, func() bool { return p.owned() == 1 })
}

// sameJSON compares without regard to how PostgreSQL spaces and orders jsonb.
func sameJSON(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return false
	}
	xs, _ := json.Marshal(x)
	ys, _ := json.Marshal(y)
	return string(xs) == string(ys)
}

// The relay's role may read the sequences of outboxes, ours and the extension's.
// Then an idle outbox is not read, and a row without a notification is seen at once.
func TestSequencesUnderPlainRole(t *testing.T) {
	t.Parallel()
	worlds := map[string]*world{"ours": newWorld(t), "extension": newExtensionWorld(t), "no right": newWorld(t)}
	for _, name := range []string{"ours", "no right"} {
		worlds[name].url = exttest.RelayRole(t, worlds[name].pool, worlds[name].url)
	}
	worlds["no right"].exec(t, `REVOKE SELECT ON SEQUENCE pgtrickle.outbox_orders_id_seq FROM pgtrickle_relay`) // what the others are spared
	for name, w := range worlds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w.pipeline(t, "p", "")
			r := startRelay(t, w.url)
			// A row of the outbox without a notification.
			write := func() {
				w.exec(t, `INSERT INTO pgtrickle.outbox_orders (inserted_count, payload) VALUES (1, '{"v":1,"inserted":[{"id":1}],"deleted":[]}')`)
			}
			write()
			eventually(t, "delivery", patience, count(w.spool("p"))(1))
			// An id that is rolled back must not have it looked for for ever.
			w.exec(t, `BEGIN; INSERT INTO pgtrickle.outbox_orders (inserted_count, payload) VALUES (1, '{}'); ROLLBACK`)
			polls := func() (n int64) {
				_, body := r.get("/metrics")
				for line := range strings.Lines(body) {
					if rest, ok := strings.CutPrefix(line, `pgtrickle_relay_polls_total{direction="forward",found="nothing",pipeline="p"} `); ok {
						n, _ = strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
					}
				}
				return n
			}
			time.Sleep(5 * time.Second) // by itself the source polls ever less often, until once a minute
			before := polls()
			if name == "no right" {
				took := eventually(t, "an idle outbox is read", patience, func() bool { return polls()-before > 30 })
				t.Logf("an idle outbox was read 30 times in %s", took.Round(time.Millisecond))
			} else {
				time.Sleep(5 * time.Second)
				n := polls() - before
				t.Logf("an idle outbox was read %d times in 5 s", n)
				if n > 20 {
					t.Errorf("an idle outbox was read %d times in 5 s, want some 6, and not 50 as without the right", n)
				}
			}
			best := time.Hour // of three: one may meet a busy machine
			for n := 2; n <= 4; n++ {
				write()
				best = min(best, eventually(t, "a row without notification", patience, count(w.spool("p"))(n)))
				time.Sleep(time.Second)
			}
			t.Logf("delivered %s after its commit", best.Round(time.Millisecond))
			if best > time.Second {
				t.Errorf("delivered %s after its commit at best, want about poll_interval_ms", best)
			}
		})
	}
}

// TestKilledBesideStreamTable kills the relay while a stream table changes at random, with
// snapshots inline and as claim checks. A replay of what arrived gives the stream table.
func TestKilledBesideStreamTable(t *testing.T) {
	t.Parallel()
	url := exttest.URL(t)
	w := &world{pool: pgtest.Open(t, url), dir: t.TempDir()}
	exttest.Install(t, w.pool)
	w.exec(t, `CREATE TABLE public.source (id int PRIMARY KEY, v int)`)
	w.exec(t, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET pg_trickle.outbox_inline_threshold_rows = 20', current_database()); END $$`)
	w.pool.Reset() // the setting holds for new sessions
	w.exec(t, `SELECT pgtrickle.create_stream_table('public.s', 'SELECT id, v FROM public.source', '1d', 'DIFFERENTIAL')`)
	w.exec(t, `SELECT pgtrickle.enable_outbox('public.s')`)
	if out, stderr, code := runBinary(t, nil, "migrate", "--postgres-url", url); code != 0 {
		t.Fatalf("migrate = %d %s%s", code, out, stderr)
	}
	w.url = exttest.RelayRole(t, w.pool, url)
	w.exec(t, `SELECT pgtrickle.relay_grant_access()`)
	w.exec(t, `SELECT pgtrickle.set_relay_outbox('s', config => $1::jsonb)`,
		fmt.Sprintf(`{"stream_table":"public.s","sink_type":"spool","spool_path":%q,"spool_whole":true,"spool_delay":"5ms","batch_size":7}`, w.spool("s")))
	w.exec(t, `SELECT pgtrickle.enable_relay('s')`)

	p := startRelay(t, w.url)
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		n := rnd.IntN(40)
		switch rnd.IntN(5) {
		case 0:
			w.exec(t, `DELETE FROM public.source WHERE id % 40 > $1`, n)
		case 1:
			w.exec(t, `UPDATE public.source SET v = v + 1 WHERE id % 40 < $1`, n)
		case 2:
			w.exec(t, `TRUNCATE public.source`)
		default:
			w.exec(t, `INSERT INTO public.source SELECT g, $1 FROM generate_series(1, $1) g ON CONFLICT (id) DO UPDATE SET v = excluded.v`, n)
		}
		w.exec(t, `SELECT pgtrickle.refresh_stream_table('public.s')`)
		time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
		if i%10 == 9 {
			p.signal(t, syscall.SIGKILL)
			<-p.done
			p = startRelay(t, w.url)
		}
	}
	w.exec(t, `INSERT INTO public.source VALUES (-1, 0)`)
	w.exec(t, `SELECT pgtrickle.refresh_stream_table('public.s')`)

	want := map[string]string{}
	rows, _ := w.pool.Query(t.Context(), `SELECT id::text, v::text FROM public.s`)
	var id, v string
	if _, err := pgx.ForEachRow(rows, []any{&id, &v}, func() error { want[id] = v; return nil }); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	var arrived, twice int
	eventually(t, "the replay to equal the stream table", patience, func() bool {
		got, arrived, twice = replay(t, w.spool("s"))
		return maps.Equal(got, want)
	})
	t.Logf("%d rows of %d messages, %d of them repeated", len(want), arrived, twice)
	if t.Failed() {
		t.Errorf("replayed %v, want %v", got, want)
	}
}

// replay returns the rows, v by id, that the messages in a spool give. A repeated id is
// dropped.
func replay(t *testing.T, path string) (rows map[string]string, arrived, twice int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, 0, 0
	}
	rows, seen := map[string]string{}, map[string]bool{}
	for line := range strings.Lines(string(b)) {
		var m struct {
			ID      string         `json:"id"`
			Headers []relay.Header `json:"headers"`
			Row     string         `json:"row"`
		}
		var row struct{ ID, V json.Number }
		if !strings.HasSuffix(line, "\n") {
			break // a line that a kill cut, or one that is being written
		}
		if json.Unmarshal([]byte(line), &m) != nil || json.Unmarshal([]byte(m.Row), &row) != nil {
			t.Fatalf("the spool has %q", line)
		}
		arrived++
		if seen[m.ID] {
			twice++
			continue
		}
		seen[m.ID] = true
		if slices.Contains(m.Headers, relay.Header{Name: relay.HeaderOp, Value: relay.OpDelete}) {
			delete(rows, row.ID.String())
		} else {
			rows[row.ID.String()] = row.V.String()
		}
	}
	return rows, arrived, twice
}
