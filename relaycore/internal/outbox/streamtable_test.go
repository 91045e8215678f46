package outbox_test

import (
	"fmt"
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

// TestStreamTables changes the source of stream tables with a key, with an aggregate and
// without a key. Refreshes write snapshots inline and, above the threshold, claim checks.
// A replay of the messages gives the stream table each time.
func TestStreamTables(t *testing.T) {
	t.Parallel()
	for name, query := range map[string]string{
		"key":       `SELECT id, v, g FROM public.source`,
		"aggregate": `SELECT g, sum(v) AS total, count(*) AS n FROM public.source GROUP BY g`,
		"no key":    `SELECT v, g FROM public.source`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newStreamTable(t, query)
			r := replica{seen: map[string]bool{}, rows: map[string]string{}}
			d.open()
			for _, change := range []string{
				`INSERT INTO public.source SELECT i, i % 3, i % 4 FROM generate_series(1, 8) i`,
				`UPDATE public.source SET v = v + 1 WHERE id = 3`,
				`DELETE FROM public.source WHERE id IN (3, 4)`,
				`INSERT INTO public.source SELECT i, i % 3, i % 4 FROM generate_series(20, 60) i`, // a claim check
				`UPDATE public.source SET v = v + 1`,
				`DELETE FROM public.source WHERE g = 1`,
				`TRUNCATE public.source`,
				`INSERT INTO public.source VALUES (1, 1, 1)`,
				`DELETE FROM public.source`,
				`INSERT INTO public.source SELECT i, 1, 1 FROM generate_series(1, 40) i`,
				`TRUNCATE public.source`,
				`INSERT INTO public.source VALUES (2, 2, 2)`,
			} {
				exec(t, d.admin, change)
				exec(t, d.admin, `SELECT pgtrickle.refresh_stream_table('public.s')`)
				d.follows(&r, change)
				d.open()
			}
		})
	}
}

// newStreamTable returns a pipeline of stream table public.s, which is query.
func newStreamTable(t *testing.T, query string) *differ {
	t.Helper()
	d := &differ{t: t, mode: "diff", readBytes: 2000}
	url := exttest.URL(t)
	d.admin = pgtest.Open(t, url)
	exttest.Install(t, d.admin)
	exec(t, d.admin, `CREATE TABLE public.source (id int PRIMARY KEY, v int, g int)`)
	exec(t, d.admin, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET pg_trickle.outbox_inline_threshold_rows = 10', current_database()); END $$`)
	d.admin.Reset() // the setting holds for new sessions
	exec(t, d.admin, `SELECT pgtrickle.create_stream_table('public.s', $1::text, '1h', 'DIFFERENTIAL')`, query)
	exec(t, d.admin, `SELECT pgtrickle.enable_outbox('public.s')`)
	if err := migrate.Up(t.Context(), d.admin, nil); err != nil {
		t.Fatal(err)
	}
	exec(t, d.admin, `INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, epoch) VALUES ('g', 'forward', 'p', 1)`)
	exec(t, d.admin, `GRANT SELECT ON public.s TO pgtrickle_relay`)
	exec(t, d.admin, `SELECT pgtrickle.relay_grant_access()`)
	d.plain = pgtest.Open(t, exttest.RelayRole(t, d.admin, url))
	return d
}

// follows receives until the replica equals the stream table.
func (d *differ) follows(r *replica, change string) {
	d.t.Helper()
	var want string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		batch, err := d.src.Look(d.t.Context(), 100)
		if err != nil {
			d.t.Fatalf("%s: %v", change, err)
		}
		for i := range batch {
			if batch[i].Err != nil {
				d.t.Fatalf("%s: %s: %v", change, batch[i].ID, batch[i].Err)
			}
			r.apply(d.t, &batch[i])
		}
		d.commit(batch)
		if want = content(d.t, d.admin); r.content() == want {
			return
		}
	}
	d.t.Fatalf("after %s the replica has\n%s\nand the stream table has\n%s", change, r.content(), want)
}

// content returns the rows of public.s, as replica.content does.
func content(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	rows := column[string](t, pool, `SELECT to_jsonb(s)::text FROM public.s s`)
	for i := range rows {
		rows[i] = visible(t, []byte(rows[i]))
	}
	slices.Sort(rows)
	return strings.Join(rows, "\n")
}

// TestTideMessages reads pg_tide's table of messages as a table of one's own. pg_trickle 0.46
// and later write there.
func TestTideMessages(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, `CREATE SCHEMA tide;
		CREATE TABLE tide.tide_outbox_messages (
			id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, outbox_name text NOT NULL, payload jsonb NOT NULL,
			headers jsonb DEFAULT '{}', created_at timestamptz NOT NULL DEFAULT now(), consumed_at timestamptz);
		INSERT INTO tide.tide_outbox_messages (outbox_name, payload, headers) VALUES
			('orders', '{"v":1,"refresh_id":null,"inserted":2,"deleted":1,"source":"public.orders"}', '{"source":"public.orders","version":1}'),
			('own', '{"id":7}', '{}')`)
	src := open(t, pool, relay.Checkpoint{}, func(c *outbox.Config) {
		c.Outbox, c.Settings = "tide.tide_outbox_messages", outbox.Settings{HeadersColumn: "headers"}
	})
	got := receive(t, src, 2)
	for i, want := range []string{
		`insert {"v": 1, "source": "public.orders", "deleted": 1, "inserted": 2, "refresh_id": null} [{source public.orders} {version 1}]`,
		`insert {"id": 7} []`,
	} {
		if s := fmt.Sprintf("%s %s %v", got[i].Op, got[i].Row, got[i].Headers); got[i].Err != nil || s != want {
			t.Errorf("message %d: %s, %v; want %s", i, s, got[i].Err, want)
		}
	}
}
