package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

const (
	patience = 30 * time.Second // where nothing else limits the time, on a busy machine
	soon     = 5 * time.Second  // with a notification; without one a change takes up to 30 s
)

// database returns a database with the catalog, installed by the binary.
func database(t *testing.T) (*pgxpool.Pool, string) {
	t.Helper()
	url := pgtest.URL(t)
	if out, err := exec.CommandContext(t.Context(), binary(t), "migrate", "--postgres-url", url).CombinedOutput(); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	return pgtest.Open(t, url), url
}

func exec1(t *testing.T, pool *pgxpool.Pool, sql string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query1[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (v T) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func jetStream(t *testing.T) (js jetstream.JetStream, url string) {
	t.Helper()
	url = relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return js, url
}

// stream creates a stream for the duration of the test.
func stream(t *testing.T, js jetstream.JetStream, name string) jetstream.Stream {
	t.Helper()
	s, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name + ".>"}, Duplicates: 2 * time.Minute})
	if err != nil {
		t.Fatalf("create stream %s: %v", name, err)
	}
	t.Cleanup(func() { _ = js.DeleteStream(context.Background(), name) })
	return s
}

// Rows go to NATS and return, both ways through one process that is killed twice.
// The inbox gets every inserted row exactly once.
func TestRoundTripSurvivesKills(t *testing.T) {
	const rows, batch = 100_000, 1000
	js, natsURL := jetStream(t)
	name := "roundtrip_" + strings.ToLower(rand.Text()[:10])
	out := stream(t, js, name)
	pool, url := database(t)
	exec1(t, pool, `CREATE TABLE orders (id bigint PRIMARY KEY, note text NOT NULL)`)
	exec1(t, pool, `SELECT pgtrickle.enable_outbox('public.orders'), pgtrickle.create_inbox('orders_inbox')`)
	exec1(t, pool, `SELECT pgtrickle.set_relay_outbox('orders-to-nats', config => $1::jsonb)`, fmt.Sprintf(
		`{"stream_table":"public.orders","sink_type":"nats","nats_url":%q,"nats_stream":%q,"subject_template":"%s.{stream_table}.{op}"}`, natsURL, name, name))
	exec1(t, pool, `SELECT pgtrickle.set_relay_inbox('nats-to-inbox', config => $1::jsonb)`, fmt.Sprintf(
		`{"source_type":"nats","nats_url":%q,"nats_stream":%q,"nats_ack_wait":"5s","inbox_table":"orders_inbox"}`, natsURL, name))
	exec1(t, pool, `SELECT pgtrickle.enable_relay(n) FROM unnest(ARRAY['orders-to-nats', 'nats-to-inbox']) n`)

	p := start(t, url)
	began := time.Now()
	wrote := make(chan error, 1)
	go func() { // writes while the relay runs, dies and returns
		for from := 1; from <= rows; from += batch {
			if _, err := pool.Exec(t.Context(), `INSERT INTO orders SELECT g, md5(g::text) FROM generate_series($1::bigint, $2::bigint) g`, from, from+batch-1); err != nil {
				wrote <- err
				return
			}
		}
		wrote <- nil
	}()
	arrived := func() int { return query1[int](t, pool, `SELECT count(*) FROM pgtrickle.orders_inbox`) }
	for _, share := range []int{rows / 4, rows * 6 / 10} {
		eventually(t, fmt.Sprintf("%d rows in the inbox", share), 2*time.Minute, func() bool { return arrived() >= share })
		p.kill()
		info, err := out.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		at := arrived()
		t.Logf("killed with %d messages in the stream, %d rows in the inbox, after %s", info.State.Msgs, at, time.Since(began).Round(time.Millisecond))
		if at >= rows {
			t.Errorf("the kill came when all was done")
		}
		p = start(t, url)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	eventually(t, "all rows in the inbox", 2*time.Minute, func() bool { return arrived() >= rows })
	t.Logf("all %d rows are there after %s", rows, time.Since(began).Round(time.Millisecond))
	eventually(t, "nothing unacknowledged", patience, func() bool {
		c, err := out.Consumer(t.Context(), "pgtrickle-relay-nats-to-inbox")
		if err != nil {
			t.Fatal(err)
		}
		info, err := c.Info(t.Context())
		return err == nil && info.NumPending == 0 && info.NumAckPending == 0
	})
	got := query1[string](t, pool, `
		SELECT format('rows %s, ids %s, from %s to %s, events %s, true to what was inserted %s', count(*), count(DISTINCT o.id), min(o.id), max(o.id),
			count(DISTINCT event_id), bool_and(i.payload = to_jsonb(o)))
		FROM pgtrickle.orders_inbox i LEFT JOIN orders o ON o.id = (i.payload ->> 'id')::bigint`)
	if want := fmt.Sprintf("rows %[1]d, ids %[1]d, from 1 to %[1]d, events %[1]d, true to what was inserted t", rows); got != want {
		t.Errorf("the inbox has %s; want %s", got, want)
	}
	info, err := out.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != rows {
		t.Errorf("the stream has %d messages; want %d, so that other readers get no duplicates", info.State.Msgs, rows)
	}
	if n := query1[int](t, pool, `SELECT count(*) FROM pgtrickle.relay_dead_letters`); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// documented is the example of the documentation, word for word.
var documented = struct{ setOutbox, enableOutbox, setInbox, enableInbox, list, disable, drop string }{
	`SELECT pgtrickle.set_relay_outbox('orders-to-nats', config => '{
  "stream_table": "orders_stream", "sink_type": "nats", "nats_url": "nats://localhost:4222",
  "nats_stream": "pgtrickle", "subject_template": "pgtrickle.{stream_table}.{op}" }'::jsonb);`,
	`SELECT pgtrickle.enable_relay('orders-to-nats');`,
	`SELECT pgtrickle.set_relay_inbox('nats-to-orders-inbox', config => '{
  "source_type": "nats", "nats_url": "nats://localhost:4222", "nats_stream": "commands",
  "nats_consumer": "relay-consumer", "inbox_table": "orders_inbox" }'::jsonb);`,
	`SELECT pgtrickle.enable_relay('nats-to-orders-inbox');`,
	`SELECT * FROM pgtrickle.list_relay_configs();`,
	`SELECT pgtrickle.disable_relay('orders-to-nats');`,
	`SELECT pgtrickle.delete_relay('orders-to-nats');`,
}

// The documented example runs as written. Each of its statements takes effect in the
// running process within a second, and no other pipeline is touched.
func TestDocumentedExample(t *testing.T) {
	js, natsURL := jetStream(t)
	onDocumentedPort(t, natsURL)
	orders := stream(t, js, "pgtrickle")
	stream(t, js, "commands")
	pool, url := database(t)
	exec1(t, pool, `CREATE TABLE orders_stream (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('orders_stream'), pgtrickle.create_inbox('orders_inbox')`)
	exec1(t, pool, `CREATE TABLE other (id int PRIMARY KEY); SELECT pgtrickle.enable_outbox('other')`)
	exec1(t, pool, `SELECT pgtrickle.set_relay_outbox('bystander', config => '{"stream_table":"other","sink_type":"stdout"}'), pgtrickle.enable_relay('bystander')`)
	p := start(t, url, "--log-format", "json", "--relay-group-id", "dc1-relay")
	eventually(t, "the bystander runs", patience, func() bool { h := p.health(t); return h.running("bystander") })

	state := func(pipeline string) string { // changes when the pipeline restarts
		return query1[string](t, pool, `SELECT coalesce(string_agg(format('epoch %s owner %s', epoch, owner), ' '), 'none') FROM pgtrickle.relay_cursors WHERE pipeline = $1`, pipeline)
	}
	bystander := state("bystander")
	takesEffect := func(sql string, ok func(h *health) bool) {
		t.Helper()
		exec1(t, pool, sql)
		took := eventually(t, sql, soon, func() bool { h := p.health(t); return ok(&h) })
		t.Logf("%.60s... took effect after %s", strings.ReplaceAll(sql, "\n", ""), took.Round(time.Millisecond))
		if got := state("bystander"); got != bystander {
			t.Errorf("%s: the bystander went from %s to %s", sql, bystander, got)
		}
	}
	exec1(t, pool, documented.setOutbox)
	takesEffect(documented.enableOutbox, func(h *health) bool { return h.Owned == 2 && h.running("orders-to-nats") })
	exec1(t, pool, documented.setInbox)
	takesEffect(documented.enableInbox, func(h *health) bool { return h.Owned == 3 && h.running("nats-to-orders-inbox") })
	inbox := state("nats-to-orders-inbox")

	rows, err := pool.Query(t.Context(), documented.list)
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for rows.Next() {
		var name, direction string
		var enabled bool
		var config map[string]any
		if err := rows.Scan(&name, &direction, &enabled, &config); err != nil {
			t.Fatal(err)
		}
		listed = append(listed, fmt.Sprintf("%s %s %t", name, direction, enabled))
	}
	if got, want := strings.Join(listed, ", "), "bystander forward true, nats-to-orders-inbox reverse true, orders-to-nats forward true"; got != want {
		t.Errorf("list_relay_configs() = %s; want %s", got, want)
	}

	exec1(t, pool, `INSERT INTO orders_stream VALUES (1), (2); UPDATE orders_stream SET id = 3 WHERE id = 2`)
	var subjects []string
	eventually(t, "the rows in NATS", patience, func() bool {
		info, err := orders.Info(t.Context())
		return err == nil && info.State.Msgs == 3
	})
	for seq := range uint64(3) {
		m, err := orders.GetMsg(t.Context(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, m.Subject)
	}
	if got, want := strings.Join(subjects, " "), "pgtrickle.orders_stream.insert pgtrickle.orders_stream.insert pgtrickle.orders_stream.update"; got != want {
		t.Errorf("subjects are %s; want %s", got, want)
	}
	if _, err := js.Publish(t.Context(), "commands.ship", []byte(`{"order":7}`), jetstream.WithMsgID("c-1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the command in the inbox", patience, func() bool {
		return query1[string](t, pool, `SELECT coalesce(string_agg(concat_ws(' ', event_type, payload), ','), '') FROM pgtrickle.orders_inbox`) == `commands.ship {"order": 7}`
	})

	h := p.health(t)
	if h.code != 200 || !strings.HasPrefix(h.body, `{"status":"healthy","pipelines_owned":3,"uptime_seconds":`) || !json.Valid([]byte(h.body)) {
		t.Errorf("/health = %d %s", h.code, h.body)
	}

	takesEffect(documented.disable, func(h *health) bool { return h.Owned == 2 && !h.running("orders-to-nats") })
	takesEffect(documented.drop, func(h *health) bool { return !strings.Contains(h.body, "orders-to-nats") })
	if got := state("nats-to-orders-inbox"); got != inbox {
		t.Errorf("the inbox's pipeline went from %s to %s", inbox, got)
	}
}

// onDocumentedPort makes the server reachable at the address in the documentation,
// nats://localhost:4222, unless it is already.
func onDocumentedPort(t *testing.T, natsURL string) {
	t.Helper()
	u, err := url.Parse(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	if u.Port() == "4222" && (u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1") {
		return
	}
	ln, err := net.Listen("tcp", "localhost:4222")
	if err != nil {
		t.Fatalf("the documented address belongs to another server than RELAY_TEST_NATS_URL: %v", err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", u.Host)
			if err != nil {
				_ = near.Close()
				continue
			}
			pipe := func(dst, src net.Conn) {
				_, _ = io.Copy(dst, src)
				_, _ = dst.Close(), src.Close()
			}
			go pipe(near, far)
			go pipe(far, near)
		}
	}()
}
