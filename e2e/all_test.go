package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/e2e/internal/brokers"
	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestEverythingInOne runs all pipelines of all backends, both ways, in one
// process of the image that has every backend. It looks at the process as an
// operator's tools do.
func TestEverythingInOne(t *testing.T) {
	p := rig.Image("pgtrickle-relay")
	db := rig.NewDatabase(t, fleet.Server("pg18").URL, "e2e_all", p.Migrate)
	opts := rig.Options{Volumes: []string{t.TempDir()}}
	relay := p.Start(t, db.URL, opts)
	pipelines := 0
	inboxes := make(map[string]string)
	far := make(map[string]ends.End)
	for _, k := range ends.Kinds() {
		env := ends.Env{Name: "e2e_all_" + strings.ReplaceAll(k.Name, "-", "_"), Dir: opts.Volumes[0], Migrate: p.Migrate}
		if k.Server != "" {
			env.Server = fleet.Server(k.Server)
		}
		end, err := k.New(t.Context(), env)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(end.Close)
		sink := end.Sink()
		if loop, ok := end.(interface{ Loop() map[string]any }); ok {
			sink = loop.Loop()
		}
		db.Forward(t, "out-"+k.Name, k.Name, sink, nil)
		pipelines++
		if k.Source == "" {
			far[k.Name] = end
			continue
		}
		inbox := "back_" + strings.ReplaceAll(k.Name, "-", "_")
		db.Exec(t, `SELECT pgtrickle.create_inbox($1)`, inbox)
		db.Reverse(t, "in-"+k.Name, k.Source, end.Source(), map[string]any{"inbox_table": inbox})
		inboxes[k.Name] = inbox
		pipelines++
	}
	const rows = 1000
	db.Exec(t, `INSERT INTO events SELECT i, 'k' || i % 50, i / 50, 'note' FROM generate_series(0, $1 - 1) i`, rows)
	for name, inbox := range inboxes {
		rig.Until(t, patience, "equal rows by way of "+name, func(ctx context.Context) (bool, error) {
			var there, different int
			err := db.Pool.QueryRow(ctx, `
				SELECT count(b.event_id), count(*) FILTER (WHERE b.payload IS DISTINCT FROM to_jsonb(e))
				FROM events e FULL JOIN pgtrickle.`+inbox+` b ON (b.payload->>'id')::bigint = e.id`).Scan(&there, &different)
			if err == nil && (there != rows || different != 0) {
				err = fmt.Errorf("%d rows there, %d differ", there, different)
			}
			return err == nil, err
		})
	}
	for name, end := range far {
		rig.Until(t, patience, "all rows at "+name, func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out-"+name) })
		events, err := db.Events(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		arrived, err := end.Arrived(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := rig.Compare(events, arrived).Err(true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	health, err := relay.Health(t.Context())
	if err != nil || health.Status != "healthy" || health.PipelinesOwned != pipelines {
		t.Errorf("/health = %+v, %v; want healthy with %d pipelines", health, err, pipelines)
	}
	metrics, err := relay.Get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range deployedMetrics(t) {
		if name == "pgtrickle_relay_pipeline_unserved" || name == "pgtrickle_relay_capture_problems" {
			continue // have series only while something is wrong
		}
		if !strings.Contains(string(metrics), "# TYPE "+name+" ") {
			t.Errorf("deploy/ asks for %s, which /metrics does not have", name)
		}
	}
	rig.Until(t, 30*time.Second, "the image's health check passes", func(ctx context.Context) (bool, error) {
		status, err := relay.HealthCheck(ctx)
		return status == "healthy", err
	})
	if err := relay.Stop(t.Context()); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// deployedMetrics lists the metrics that the dashboard and the alerts rely on.
func deployedMetrics(t *testing.T) []string {
	t.Helper()
	root, err := brokers.Root()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range []string{"grafana.json", "alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join(root, "deploy", file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") && !json.Valid(text) {
			t.Errorf("%s is not JSON", file)
		}
		for _, name := range regexp.MustCompile(`pgtrickle_relay_[a-z_]+`).FindAllString(string(text), -1) {
			names = append(names, strings.TrimSuffix(name, "_bucket"))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestDocumentedExample runs the statements of the documentation as they stand
// but for the port, and wants each to take effect within a second.
func TestDocumentedExample(t *testing.T) {
	p := binary(t, "pgtrickle-relay")
	db := rig.NewDatabase(t, fleet.Server("pg18").URL, "e2e_documented", p.Migrate)
	url := fleet.Server("nats").URL
	for _, stream := range []string{"pgtrickle", "commands"} {
		if err := ends.CreateStream(t.Context(), url, stream); err != nil {
			t.Fatal(err)
		}
	}
	db.Exec(t, `CREATE TABLE orders_stream (id int PRIMARY KEY, item text)`)
	db.Exec(t, `SELECT pgtrickle.enable_outbox('orders_stream')`)
	db.Exec(t, `SELECT pgtrickle.create_inbox('orders_inbox')`)
	relay := p.Start(t, db.URL, rig.Options{Group: "dc1-relay", Args: []string{"--log-format", "json"}})
	owned := func(n int) {
		t.Helper()
		rig.Until(t, time.Second, fmt.Sprintf("%d pipelines", n), func(ctx context.Context) (bool, error) {
			h, err := relay.Health(ctx)
			if err == nil && h.PipelinesOwned != n {
				err = fmt.Errorf("%+v", h)
			}
			return err == nil, err
		})
	}
	rig.Until(t, 10*time.Second, "the relay is up", func(ctx context.Context) (bool, error) {
		h, err := relay.Health(ctx)
		return h.Status == "healthy", err
	})
	exec := func(sql string) { t.Helper(); db.Exec(t, strings.ReplaceAll(sql, "nats://localhost:4222", url)) }

	exec(`SELECT pgtrickle.set_relay_outbox('orders-to-nats', config => '{
       "stream_table": "orders_stream", "sink_type": "nats", "nats_url": "nats://localhost:4222",
       "nats_stream": "pgtrickle", "subject_template": "pgtrickle.{stream_table}.{op}" }'::jsonb);`)
	owned(0)
	exec(`SELECT pgtrickle.enable_relay('orders-to-nats');`)
	owned(1)
	exec(`SELECT pgtrickle.set_relay_inbox('nats-to-orders-inbox', config => '{
       "source_type": "nats", "nats_url": "nats://localhost:4222", "nats_stream": "commands",
       "nats_consumer": "relay-consumer", "inbox_table": "orders_inbox" }'::jsonb);`)
	exec(`SELECT pgtrickle.enable_relay('nats-to-orders-inbox');`)
	owned(2)
	var listed int
	if err := db.Pool.QueryRow(t.Context(), `SELECT count(*) FROM (SELECT * FROM pgtrickle.list_relay_configs()) c`).Scan(&listed); err != nil || listed != 2 {
		t.Errorf("list_relay_configs() has %d rows, %v; want 2", listed, err)
	}
	db.Exec(t, `INSERT INTO orders_stream VALUES (1, 'tea')`)
	rig.Until(t, 5*time.Second, "the order is in the stream", func(ctx context.Context) (bool, error) {
		n, err := ends.Count(ctx, url, "pgtrickle")
		return n == 1, err
	})
	exec(`SELECT pgtrickle.disable_relay('orders-to-nats');`)
	owned(1)
	exec(`SELECT pgtrickle.delete_relay('orders-to-nats');`)
	owned(1)
	if err := relay.Stop(t.Context()); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// TestHundredThousand takes 100,000 rows out and back while the relay is killed
// twice. The database is the oldest PostgreSQL that we support.
func TestHundredThousand(t *testing.T) {
	k := ends.Kinds()[0]
	p := binary(t, k.Binary)
	db := rig.NewDatabase(t, fleet.Server("pgold").URL, "e2e_100k", p.Migrate)
	end, err := k.New(t.Context(), ends.Env{Name: "e2e_100k", Server: fleet.Server(k.Server)})
	if err != nil {
		t.Fatal(err)
	}
	relay := p.Start(t, db.URL, rig.Options{})
	db.Forward(t, "there", k.Name, end.Sink(), nil)
	db.Reverse(t, "back", k.Source, end.Source(), nil)
	const rows, chunk = 100_000, 1000
	for i := 0; i < rows; i += chunk {
		db.Exec(t, `INSERT INTO events SELECT i, 'k' || i % 500, i / 500, 'note' FROM generate_series($1::bigint, $1 + $2 - 1) i`, i, chunk)
		if i == rows/4 || i == rows/2 {
			relay.Kill()
			relay = p.Start(t, db.URL, rig.Options{})
		}
	}
	events, err := db.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := returned(t, db, events)
	if err := l.Err(true); err != nil {
		t.Fatal(err)
	}
	t.Log(l)
}
