package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	stream  = "pgtrickle"
	writers = 4
)

type demo struct {
	relay  *relayProcess
	pg     *postgres
	broker *broker
	db     *pgxpool.Pool
}

func (d *demo) close() {
	if d.db != nil {
		d.db.Close()
	}
}

func (d *demo) servers(ctx context.Context) (err error) {
	say.step("PostgreSQL and NATS, for this demo alone")
	if d.db, err = pgxpool.New(ctx, d.pg.url("postgres")); err != nil {
		return err
	}
	var version string
	if err := d.db.QueryRow(ctx, "SHOW server_version").Scan(&version); err != nil {
		return err
	}
	say.linef("PostgreSQL %s on port %d (%s), without any extension", version, d.pg.port, d.pg.origin)
	say.linef("NATS %s with JetStream at %s", server.VERSION, d.broker.server.ClientURL())
	return nil
}

func (d *demo) migrate(ctx context.Context) error {
	say.step("The catalog: one command")
	say.code("pgtrickle-relay migrate --postgres-url postgres://postgres@127.0.0.1:" + fmt.Sprint(d.pg.port) + "/postgres")
	out, err := d.relay.command(ctx, "migrate", "--postgres-url", d.pg.url("postgres"))
	if err != nil {
		return err
	}
	for l := range strings.Lines(out) {
		say.line(strings.TrimRight(l, "\n"))
	}
	return nil
}

func (d *demo) configure(ctx context.Context) error {
	say.step("A table, an outbox on it, an inbox, and two pipelines: all in SQL")
	for _, sql := range []string{`
CREATE TABLE public.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, total numeric, version int NOT NULL DEFAULT 1);
SELECT pgtrickle.enable_outbox('public.orders');
SELECT pgtrickle.create_inbox('orders_inbox');`, `
SELECT pgtrickle.set_relay_outbox('orders-to-nats', config => '{
  "stream_table": "public.orders", "sink_type": "nats", "nats_url": "` + d.broker.server.ClientURL() + `",
  "nats_stream": "` + stream + `", "nats_create_stream": true, "subject_template": "pgtrickle.{stream_table}.{op}" }'::jsonb);
SELECT pgtrickle.set_relay_inbox('nats-to-inbox', config => '{
  "source_type": "nats", "nats_url": "` + d.broker.server.ClientURL() + `", "nats_stream": "` + stream + `",
  "nats_subject": "pgtrickle.>", "nats_create_stream": true,
  "nats_consumer": "relay-consumer", "inbox_table": "orders_inbox" }'::jsonb);
SELECT pgtrickle.enable_relay('orders-to-nats');
SELECT pgtrickle.enable_relay('nats-to-inbox');`, `
CREATE ROLE relay LOGIN PASSWORD 'relay' IN ROLE pgtrickle_relay;`} {
		say.code(sql)
		if _, err := d.db.Exec(ctx, sql); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
	}
	return nil
}

func (d *demo) startRelay(ctx context.Context) (err error) {
	say.step("The relay")
	if d.relay.http, err = freePort(); err != nil {
		return err
	}
	say.code(fmt.Sprintf("pgtrickle-relay --postgres-url postgres://relay:relay@127.0.0.1:%d/postgres --metrics-addr 127.0.0.1:%d", d.pg.port, d.relay.http))
	if err := d.relay.start(d.pg.url("relay")); err != nil {
		return err
	}
	_, err = d.relay.awaitHealthy(ctx, 2)
	return err
}

// fewRows shows single rows on their way.
func (d *demo) fewRows(ctx context.Context) error {
	say.step("Rows go out, arrive, and come back")
	sql := `
INSERT INTO public.orders (customer, total) VALUES ('Ada', 10.50), ('Grace', 99), ('Ærø 東京', 7);
UPDATE public.orders SET total = 11, version = version + 1 WHERE customer = 'Ada';
DELETE FROM public.orders WHERE customer = 'Grace';`
	say.code(sql)
	began := time.Now()
	for statement := range strings.SplitSeq(strings.TrimSpace(sql), "\n") {
		if _, err := d.db.Exec(ctx, statement); err != nil {
			return err
		}
	}
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	say.line("arrived in NATS:")
	err := d.broker.read(waiting, stream, 1, 5, func(m jetstream.Msg) error {
		say.linef("  %-24s %s", m.Subject(), m.Data())
		return nil
	})
	if err != nil {
		return fmt.Errorf("the five changes did not arrive in NATS: %w", err)
	}
	if err := d.awaitInbox(waiting, 5); err != nil {
		return err
	}
	say.linef("and %d ms after the first statement all are in the inbox:", time.Since(began).Milliseconds())
	rows, err := d.db.Query(ctx, `SELECT format('%-20s %-24s %-5s %s', event_id, event_type, aggregate_id, payload) FROM pgtrickle.orders_inbox ORDER BY received_at, event_id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return err
		}
		say.line("  " + text)
	}
	return rows.Err()
}

func (d *demo) awaitInbox(ctx context.Context, n int) error {
	for {
		var got int
		if err := d.db.QueryRow(ctx, "SELECT count(*) FROM pgtrickle.orders_inbox").Scan(&got); err != nil {
			return fmt.Errorf("wait for %d rows in the inbox: %w", n, err)
		}
		if got >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the inbox holds %d rows, not %d", got, n)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (d *demo) health(ctx context.Context) error {
	say.step("How is it?")
	say.code(fmt.Sprintf("curl http://127.0.0.1:%d/health", d.relay.http))
	h, err := d.relay.awaitHealthy(ctx, 2)
	if err != nil {
		return err
	}
	say.linef(`{"status":%q,"pipelines_owned":%d,"uptime_seconds":%.0f, ... and in detail:`, h.Status, h.Owned, h.Uptime)
	for _, p := range h.Pipelines {
		say.linef("  %-16s %-8s %-8s %s", p.Name, p.Direction, p.State, p.Guarantee)
	}
	return nil
}

// storm lets writers write while the relay is killed twice and started again.
func (d *demo) storm(ctx context.Context, writing time.Duration) error {
	say.step(fmt.Sprintf("%d writers for %s, and kill -9 of the relay, twice, in the middle", writers, writing))
	until, cancel := context.WithTimeout(ctx, writing)
	defer cancel()
	var written atomic.Int64
	errs := make(chan error, writers)
	var group sync.WaitGroup
	for range writers {
		group.Go(func() { errs <- d.write(ctx, until, &written) })
	}
	for i := range 2 {
		if err := sleep(until, writing*3/10); err != nil {
			break // the writers have failed, or somebody interrupts
		}
		d.relay.kill()
		before := written.Load()
		say.linef("killed after %d changes; the writers go on", before)
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		if err := d.relay.start(d.pg.url("relay")); err != nil {
			return err
		}
		began := time.Now()
		if _, err := d.relay.awaitHealthy(ctx, 2); err != nil {
			return err
		}
		say.linef("started again (%d): both pipelines run after %d ms, %d changes are waiting or more", i+1, time.Since(began).Milliseconds(), written.Load()-before)
	}
	group.Wait()
	for range writers {
		if err := <-errs; err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	say.linef("%d changes were committed", written.Load())
	return nil
}

// write inserts orders and changes them, one transaction each, until its time is
// up, and holds some of them open for a while, so that ids commit out of order.
func (d *demo) write(ctx, until context.Context, written *atomic.Int64) error {
	for until.Err() == nil {
		tx, err := d.db.Begin(ctx)
		if err != nil {
			return err
		}
		var id int64
		err = tx.QueryRow(ctx, "INSERT INTO public.orders (customer, total) VALUES ('customer', $1) RETURNING id", rand.IntN(1000)).Scan(&id)
		if err == nil && rand.IntN(50) == 0 {
			err = sleep(ctx, time.Duration(rand.IntN(100))*time.Millisecond)
		}
		if err == nil && rand.IntN(20) == 0 {
			if err := tx.Rollback(ctx); err != nil {
				return err
			}
			continue
		}
		if err == nil {
			err = tx.Commit(ctx)
		}
		if err != nil {
			return err
		}
		written.Add(1)
		for range rand.IntN(3) {
			if _, err := d.db.Exec(ctx, "UPDATE public.orders SET total = total + 1, version = version + 1 WHERE id = $1", id); err != nil {
				return err
			}
			written.Add(1)
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// change is one event: the order, and which of its versions.
type change struct {
	id      int64
	version int
	op      string
}

// verify compares what was committed with what arrived, on both ends.
func (d *demo) verify(ctx context.Context) error {
	say.step("What was committed, what arrived")
	want, err := d.committed(ctx)
	if err != nil {
		return err
	}
	waiting, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	if err := d.awaitInbox(waiting, len(want)); err != nil {
		say.bad("%v", err) // and go on: the difference is what matters
	}
	if err := d.relay.stop(waiting); err != nil {
		return fmt.Errorf("stop the relay with SIGTERM: %w", err)
	}
	inStream, err := d.inStream(ctx)
	if err != nil {
		return err
	}
	inInbox, err := d.inInbox(ctx)
	if err != nil {
		return err
	}
	say.linef("%-34s %7d", "changes committed to public.orders", len(want))
	say.linef("%-34s %7d", "messages in NATS", len(inStream))
	say.linef("%-34s %7d", "rows in pgtrickle.orders_inbox", len(inInbox))
	right := same("NATS", inStream, want)
	right = same("the inbox", inInbox, want) && right
	right = inOrder(inStream) && right
	if !right {
		return fmt.Errorf("what arrived is not what was committed")
	}
	return nil
}

// committed is every change there was, read from the table itself and not from
// the outbox: each order has had all versions up to the present one.
func (d *demo) committed(ctx context.Context) ([]change, error) {
	all := []change{{2, 1, "insert"}, {2, 1, "delete"}} // Grace's order, which is gone
	rows, err := d.db.Query(ctx, "SELECT id, version FROM public.orders")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c change
		if err := rows.Scan(&c.id, &c.version); err != nil {
			return nil, err
		}
		all = append(all, change{c.id, 1, "insert"})
		for v := 2; v <= c.version; v++ {
			all = append(all, change{c.id, v, "update"})
		}
	}
	return all, rows.Err()
}

func (d *demo) inStream(ctx context.Context) (all []change, err error) {
	err = d.broker.read(ctx, stream, 1, 0, func(m jetstream.Msg) error {
		var e struct {
			Op      string `json:"op"`
			Payload struct {
				ID      int64 `json:"id"`
				Version int   `json:"version"`
			} `json:"payload"`
		}
		if err := json.Unmarshal(m.Data(), &e); err != nil {
			return fmt.Errorf("a message in NATS is not JSON: %w", err)
		}
		all = append(all, change{e.Payload.ID, e.Payload.Version, e.Op})
		return nil
	})
	return all, err
}

func (d *demo) inInbox(ctx context.Context) (all []change, err error) {
	rows, err := d.db.Query(ctx, `SELECT (payload->>'id')::bigint, (payload->>'version')::int, split_part(event_type, '.', 3) FROM pgtrickle.orders_inbox`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c change
		if err := rows.Scan(&c.id, &c.version, &c.op); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// same reports whether got holds exactly what want holds, each once.
func same(where string, got, want []change) bool {
	count := make(map[change]int, len(want))
	for _, c := range want {
		count[c]++
	}
	for _, c := range got {
		count[c]--
	}
	var lost, surplus []change
	for c, n := range count {
		for ; n > 0; n-- {
			lost = append(lost, c)
		}
		for ; n < 0; n++ {
			surplus = append(surplus, c)
		}
	}
	if len(lost)+len(surplus) == 0 {
		say.good("%s holds exactly what was committed: lost 0, twice 0", where)
		return true
	}
	say.bad("%s: lost %d %v, twice or never committed %d %v", where, len(lost), few(lost), len(surplus), few(surplus))
	return false
}

// inOrder reports whether each order's versions stand in the stream as they were made.
func inOrder(all []change) bool {
	last := make(map[int64]int)
	var wrong []change
	for _, c := range all {
		if c.version < last[c.id] {
			wrong = append(wrong, c)
		}
		last[c.id] = c.version
	}
	if len(wrong) > 0 {
		say.bad("%d changes came before an earlier one of their order: %v", len(wrong), few(wrong))
		return false
	}
	say.good("the changes of each of %d orders are in the order in which they were made", len(last))
	return true
}

func few(all []change) []change {
	slices.SortFunc(all, func(a, b change) int { return int(a.id - b.id) })
	return all[:min(5, len(all))]
}
