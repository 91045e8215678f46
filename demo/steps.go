package main

import (
	"context"
	"fmt"
	"strings"
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
	show.step("PostgreSQL and NATS, for this demo only")
	if d.db, err = pgxpool.New(ctx, d.pg.url("postgres")); err != nil {
		return err
	}
	var version string
	if err := d.db.QueryRow(ctx, "SHOW server_version").Scan(&version); err != nil {
		return err
	}
	show.linef("PostgreSQL %s on port %d (%s), without any extension", version, d.pg.port, d.pg.origin)
	show.linef("NATS %s with JetStream at %s", server.VERSION, d.broker.server.ClientURL())
	return nil
}

func (d *demo) migrate(ctx context.Context) error {
	show.step("The catalog: one command")
	show.code("pgtrickle-relay migrate --postgres-url postgres://postgres@127.0.0.1:" + fmt.Sprint(d.pg.port) + "/postgres")
	out, err := d.relay.command(ctx, "migrate", "--postgres-url", d.pg.url("postgres"))
	if err != nil {
		return err
	}
	for l := range strings.Lines(out) {
		show.line(strings.TrimRight(l, "\n"))
	}
	return nil
}

func (d *demo) configure(ctx context.Context) error {
	show.step("A table, an outbox on it, an inbox, and two pipelines: all in SQL")
	for _, sql := range []string{`
CREATE TABLE public.orders (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer text, total numeric, version int NOT NULL DEFAULT 1);
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
		show.code(sql)
		if _, err := d.db.Exec(ctx, sql); err != nil {
			return fmt.Errorf("configure: %w", err)
		}
	}
	return nil
}

func (d *demo) startRelay(ctx context.Context) (err error) {
	show.step("The relay")
	if d.relay.http, err = freePort(); err != nil {
		return err
	}
	show.code(fmt.Sprintf("pgtrickle-relay --postgres-url postgres://relay:relay@127.0.0.1:%d/postgres --metrics-addr 127.0.0.1:%d",
		d.pg.port, d.relay.http))
	if err := d.relay.start(d.pg.url("relay")); err != nil {
		return err
	}
	_, err = d.relay.awaitHealthy(ctx, 2)
	return err
}

// followRows shows single rows on their way.
func (d *demo) followRows(ctx context.Context) error {
	show.step("Rows leave, arrive, and return")
	sql := `
INSERT INTO public.orders (customer, total) VALUES ('Ada', 10.50), ('Grace', 99), ('Ærø 東京', 7);
UPDATE public.orders SET total = 11, version = version + 1 WHERE customer = 'Ada';
DELETE FROM public.orders WHERE customer = 'Grace';`
	show.code(sql)
	began := time.Now()
	for statement := range strings.SplitSeq(strings.TrimSpace(sql), "\n") {
		if _, err := d.db.Exec(ctx, statement); err != nil {
			return err
		}
	}
	waiting, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	show.line("in NATS:")
	err := d.broker.read(waiting, stream, 1, 5, func(m jetstream.Msg) error {
		show.linef("  %-24s %s", m.Subject(), m.Data())
		return nil
	})
	if err != nil {
		return fmt.Errorf("the five changes did not arrive in NATS: %w", err)
	}
	if err := d.awaitInbox(waiting, 5); err != nil {
		return err
	}
	show.linef("in the inbox, %d ms after the first statement:", time.Since(began).Milliseconds())
	rows, err := d.db.Query(ctx, `
		SELECT format('%-20s %-24s %-5s %s', event_id, event_type, aggregate_id, payload)
		FROM pgtrickle.orders_inbox ORDER BY received_at, event_id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var text string
		if err := rows.Scan(&text); err != nil {
			return err
		}
		show.line("  " + text)
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
	show.step("Health")
	show.code(fmt.Sprintf("curl http://127.0.0.1:%d/health", d.relay.http))
	h, err := d.relay.awaitHealthy(ctx, 2)
	if err != nil {
		return err
	}
	show.linef(`{"status":%q,"pipelines_owned":%d,"uptime_seconds":%.0f, ... }; its pipelines:`, h.Status, h.Owned, h.Uptime)
	for _, p := range h.Pipelines {
		show.linef("  %-16s %-8s %-8s %s", p.Name, p.Direction, p.State, p.Guarantee)
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
