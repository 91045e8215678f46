package outbox_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// random is SQL of an incompressible text of so many characters.
const random = `(SELECT left(string_agg(md5(i::text || 'é'), 'é'), %d) FROM generate_series(1, %[1]d / 30) i)`

// next returns the messages of one Receive, and what the source asked for before.
func next(t *testing.T, src *outbox.Source) (msgs []relay.Message, asked int64) {
	t.Helper()
	for range 20 {
		asked = max(asked, src.Wants())
		msgs, err := src.Receive(t.Context(), 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(msgs) > 0 {
			return msgs, asked
		}
	}
	t.Fatal("no message comes")
	return nil, 0
}

// TestLargeRowsComeAlone: a large row is read by itself, in its place between the others.
// Above a mebibyte the source asks for the memory first.
func TestLargeRowsComeAlone(t *testing.T) {
	t.Parallel()
	bothStrategies(t, func(t *testing.T, pool *pgxpool.Pool) {
		exec(t, pool, insertOne, 1, 2)
		for _, size := range []int{500_000, 3_000_000} {
			exec(t, pool, `INSERT INTO pgtrickle.outbox_orders (payload) SELECT jsonb_build_object('v', 1,
				'inserted', jsonb_build_array(jsonb_build_object('x', x), jsonb_build_object('y', 1))) FROM `+fmt.Sprintf(random, size)+` r(x)`)
		}
		exec(t, pool, insertOne, 5, 6)
		src := open(t, pool, relay.Checkpoint{})
		for i, want := range []struct {
			ids   string
			size  int
			asked int64
		}{{"1:0 2:0", 8, 0}, {"3:0 3:1", 500_000, 0}, {"4:0 4:1", 3_000_000, 3_000_000}, {"5:0 6:0", 8, 0}} {
			msgs, asked := next(t, src)
			if ids(msgs) != want.ids || len(msgs[0].Row) < want.size || len(msgs[0].Row) > want.size*5/4 || msgs[0].Err != nil {
				t.Fatalf("read %d: %s, %d bytes, %v; want %s, %d bytes", i, ids(msgs), len(msgs[0].Row), msgs[0].Err, want.ids, want.size)
			}
			if asked < want.asked || asked > want.asked*5/4 {
				t.Errorf("read %d: asked for %d bytes, want about %d", i, asked, want.asked)
			}
			checkpoint(t, src, msgs)
		}
		nothing(t, src)
		c := checkpoint(t, src, nil)
		nothing(t, open(t, pool, c))
	})
}

// TestLargePayloadIsWhole compares payloads of each type with what PostgreSQL has.
func TestLargePayloadIsWhole(t *testing.T) {
	t.Parallel()
	for _, typ := range []string{"jsonb", "json", "text", "bytea"} {
		t.Run(typ, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			value := `jsonb_build_object('x', x)::text`
			if typ == "bytea" {
				value = "convert_to(" + value + ", 'UTF8')"
			}
			exec(t, pool, `CREATE TABLE events (id bigserial PRIMARY KEY, payload `+typ+`)`)
			exec(t, pool, `INSERT INTO events (payload) SELECT (`+value+`)::`+typ+` FROM `+fmt.Sprintf(random, 5_000_000)+` r(x)`)
			src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.Outbox = "public.events" })
			msgs, _ := next(t, src)
			var want string
			text := "payload::text"
			if typ == "bytea" {
				text = "convert_from(payload, 'UTF8')"
			}
			if err := pool.QueryRow(t.Context(), `SELECT `+text+` FROM events`).Scan(&want); err != nil {
				t.Fatal(err)
			}
			if msgs[0].Err != nil || string(msgs[0].Row) != want {
				t.Errorf("%d bytes arrived of %d, %v", len(msgs[0].Row), len(want), msgs[0].Err)
			}
		})
	}
}

// TestRowTooLarge: a row that is larger than the memory allows is not read. Its key and
// its subject are made of its small members.
func TestRowTooLarge(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `CREATE TABLE events (id bigserial PRIMARY KEY, payload jsonb)`)
	exec(t, pool, `INSERT INTO events (payload) SELECT jsonb_build_object('customer', 7, 'x', x) FROM `+fmt.Sprintf(random, 5_000_000)+` r(x)`)
	exec(t, pool, `INSERT INTO events (payload) SELECT '{"customer": 8}'`)
	src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.Outbox, c.MaxRow = "public.events", 4_000_000 })
	msgs, asked := next(t, src)
	tooLarge, ok := errors.AsType[*budget.TooLargeError](msgs[0].Err)
	if len(msgs) != 1 || !ok || tooLarge.Length < 5_000_000 || tooLarge.Max != 4_000_000 || !relay.IsPermanent(msgs[0].Err) {
		t.Fatalf("%d messages, error %v; want one that is too large", len(msgs), msgs[0].Err)
	}
	if string(msgs[0].Row) != `{"customer":7}` || asked != 0 {
		t.Errorf("row %.100s, asked for %d bytes; want its small members, and no bytes", msgs[0].Row, asked)
	}
	if msgs, _ = next(t, src); string(msgs[0].Row) != `{"customer": 8}` {
		t.Errorf("the next row is %.100s", msgs[0].Row)
	}
}

// TestLargeRowIsDeleted: a row that is deleted before its payload is read is reported.
func TestLargeRowIsDeleted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `CREATE TABLE events (id bigserial PRIMARY KEY, payload jsonb)`)
	exec(t, pool, `INSERT INTO events (payload) SELECT jsonb_build_object('x', x) FROM `+fmt.Sprintf(random, 5_000_000)+` r(x)`)
	src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) { c.Outbox = "public.events" })
	deadline := time.Now().Add(20 * time.Second)
	for src.Wants() == 0 && time.Now().Before(deadline) {
		if msgs, err := src.Receive(t.Context(), 100); err != nil || len(msgs) > 0 {
			t.Fatalf("Receive = %d messages, %v", len(msgs), err)
		}
	}
	exec(t, pool, `DELETE FROM events`)
	msgs, _ := next(t, src)
	if msgs[0].Err == nil || !strings.Contains(msgs[0].Err.Error(), "row 1 of public.events was deleted before its payload was read") {
		t.Errorf("error %v, want that the row was deleted", msgs[0].Err)
	}
}

// TestStream: a row that is larger than memory allows comes as a stream that has all of it,
// each time it is opened. The sink may be slower than a statement waits.
func TestStream(t *testing.T) {
	t.Parallel()
	value := `jsonb_build_object('customer', 7, 'x', x)`
	for name, tc := range map[string]struct {
		typ, payload, event string
		op                  string
		slow                bool
	}{
		"jsonb":         {"jsonb", value, `payload`, relay.OpInsert, false},
		"json":          {"json", `(' {"customer": 7,' || chr(10) || '"x": "' || x || '"}')::json`, `payload`, relay.OpInsert, false},
		"slow sink":     {"jsonb", value, `payload`, relay.OpInsert, true},
		"json inserted": {"json!", `('{"v":1,"inserted":[{"customer": 7,' || chr(10) || '  "x": "' || x || '"}],"updated":[],"deleted":[]}')::json`, `payload->'inserted'->0`, relay.OpInsert, false},
		"inserted":      {"", `jsonb_build_object('v', 1, 'inserted', jsonb_build_array(` + value + `))`, `payload->'inserted'->0`, relay.OpInsert, false},
		"updated":       {"", `jsonb_build_object('v', 1, 'updated', jsonb_build_array(jsonb_build_object('old', null, 'new', ` + value + `)))`, `payload->'updated'->0->'new'`, relay.OpUpdate, false},
		"deleted":       {"", `jsonb_build_object('v', 1, 'deleted', jsonb_build_array(` + value + `))`, `payload->'deleted'->0`, relay.OpDelete, false},
		"two events":    {"", `jsonb_build_object('v', 1, 'inserted', jsonb_build_array(` + value + `, jsonb_build_object('y', 1)))`, "", "", false},
		"row before":    {"", `jsonb_build_object('v', 1, 'updated', jsonb_build_array(jsonb_build_object('old', '{}'::jsonb, 'new', ` + value + `)))`, "", relay.OpUpdate, false},
		"of version 2":  {"", `jsonb_build_object('v', 2, 'inserted', jsonb_build_array(` + value + `))`, "", relay.OpInsert, false},
		"text":          {"text", value + `::text`, "", relay.OpInsert, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			table := "public.events"
			if tc.typ == "" {
				table = "pgtrickle.outbox_orders"
				exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders"))
			} else if typ, container := strings.CutSuffix(tc.typ, "!"); container {
				table = "pgtrickle.outbox_orders"
				exec(t, pool, fmt.Sprintf(outboxDDL, "outbox_orders"))
				exec(t, pool, `ALTER TABLE pgtrickle.outbox_orders ALTER payload TYPE `+typ+` USING payload::`+typ)
			} else {
				exec(t, pool, `CREATE TABLE events (id bigserial PRIMARY KEY, payload `+tc.typ+`)`)
			}
			exec(t, pool, `INSERT INTO `+table+` (payload) SELECT `+tc.payload+` FROM `+fmt.Sprintf(random, 9_000_000)+` r(x)`)
			src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) {
				c.Outbox, c.MaxRow, c.Patience = table, 4_000_000, 100*time.Millisecond
			})
			src.Stream()
			msgs, asked := next(t, src)
			m := msgs[0]
			if tc.event == "" {
				if _, ok := errors.AsType[*budget.TooLargeError](m.Err); !ok || m.Payload.Stream != nil {
					t.Errorf("error %v, stream %v; want that it is too large", m.Err, m.Payload.Stream)
				}
				return
			}
			if m.Err != nil || m.Payload.Stream == nil || asked != 0 || strings.ReplaceAll(string(m.Row), " ", "") != `{"customer":7}` || m.Op != tc.op {
				t.Fatalf("error %v, stream %v, row %.100s, op %q, asked for %d bytes", m.Err, m.Payload.Stream, m.Row, m.Op, asked)
			}
			for range 2 {
				got := readStream(t, m.Payload.Stream, tc.slow)
				var want string
				if err := pool.QueryRow(t.Context(), `SELECT (`+tc.event+`)::text FROM `+table).Scan(&want); err != nil {
					t.Fatal(err)
				}
				if want = strings.TrimSpace(want); got != want || m.Payload.Stream.RowLength != int64(len(want)) {
					t.Errorf("%d bytes arrived, and %d were announced, of %d", len(got), m.Payload.Stream.RowLength, len(want))
				}
			}
			checkpoint(t, src, msgs)
			nothing(t, src)
		})
	}
}

func readStream(t *testing.T, s *relay.Stream, slow bool) string {
	t.Helper()
	body, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	var all bytes.Buffer
	for part := int64(1 << 20); ; {
		n, err := io.CopyN(&all, body, part)
		if n < part || err != nil {
			if !errors.Is(err, io.EOF) {
				t.Errorf("read a stream behind %d bytes: %v", all.Len(), err)
			}
			return all.String()
		}
		if slow {
			time.Sleep(150 * time.Millisecond)
		}
	}
}

// TestStreamOfAChangedRow: the parts of a row that was changed, or deleted, between two
// statements or attempts are never put together.
func TestStreamOfAChangedRow(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ change, want string }{
		"changed": {`UPDATE events SET payload = payload`, "read row 1 of public.events: it was changed before it was sent whole"},
		"deleted": {`DELETE FROM events`, "read row 1 of public.events: it was deleted before it was sent whole"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			exec(t, pool, `CREATE TABLE events (id bigserial PRIMARY KEY, payload jsonb)`)
			exec(t, pool, `INSERT INTO events (payload) SELECT jsonb_build_object('x', x) FROM `+fmt.Sprintf(random, 9_000_000)+` r(x)`)
			src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) {
				c.Outbox, c.MaxRow, c.Patience = "public.events", 4_000_000, 50*time.Millisecond
			})
			src.Stream()
			msgs, _ := next(t, src)
			body, err := msgs[0].Payload.Stream.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer body.Close()
			if _, err := io.CopyN(io.Discard, body, 1000); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // the statement has ended
			exec(t, pool, tc.change)
			n, err := io.Copy(io.Discard, body)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !relay.IsPermanent(err) || n > 4<<20 {
				t.Errorf("behind %d bytes: %v; want %q", n, err, tc.want)
			}
			again, err := msgs[0].Payload.Stream.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			if n, err := io.Copy(io.Discard, again); n != 0 || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the next attempt read %d bytes, %v; want %q", n, err, tc.want)
			}
		})
	}
}
