package migrate_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/migrate"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestDocumentedExample(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('orders-to-nats', config => '{
      "stream_table": "orders_stream", "sink_type": "nats", "nats_url": "nats://localhost:4222",
      "nats_stream": "pgtrickle", "subject_template": "pgtrickle.{stream_table}.{op}" }'::jsonb)`)
	run(t, pool, `SELECT pgtrickle.enable_relay('orders-to-nats')`)
	run(t, pool, `SELECT pgtrickle.set_relay_inbox('nats-to-orders-inbox', config => '{
      "source_type": "nats", "nats_url": "nats://localhost:4222", "nats_stream": "commands",
      "nats_consumer": "relay-consumer", "inbox_table": "orders_inbox" }'::jsonb)`)
	run(t, pool, `SELECT pgtrickle.enable_relay('nats-to-orders-inbox')`)
	if got := one(t, pool, `SELECT string_agg(name || ' ' || direction || ' ' || enabled, ', ') FROM pgtrickle.list_relay_configs()`); got !=
		"nats-to-orders-inbox reverse true, orders-to-nats forward true" {
		t.Errorf("list_relay_configs() = %s", got)
	}
	run(t, pool, `SELECT pgtrickle.disable_relay('orders-to-nats')`)
	run(t, pool, `SELECT pgtrickle.delete_relay('orders-to-nats')`)
}

func TestFormsOfCall(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	state := func(name string) string {
		t.Helper()
		return one(t, pool, `SELECT enabled::text FROM pgtrickle.get_relay_config($1)`, name)
	}
	flat := `SELECT pgtrickle.set_relay_outbox('p', config => '{"stream_table":"t","sink_type":"stdout"}')`
	run(t, pool, flat)
	if got := state("p"); got != "false" {
		t.Errorf("a new pipeline is enabled=%s; want false", got)
	}
	run(t, pool, `SELECT pgtrickle.enable_relay('p')`)
	run(t, pool, flat)
	if got := state("p"); got != "true" {
		t.Errorf("an existing pipeline is enabled=%s; want true", got)
	}

	run(t, pool, `SELECT pgtrickle.set_relay_outbox('q', 'orders', 'g', '{"type":"kafka","brokers":["a:9092"],"topic":"o"}', 48)`)
	want := `{"sink": {"type": "kafka", "topic": "o", "brokers": ["a:9092"]}, "source": {"group": "g", "outbox": "orders", "retention_hours": 48}, "sink_type": "kafka", "source_type": "outbox", "kafka_tombstones": "auto"}`
	if got := one(t, pool, `SELECT config::text FROM pgtrickle.get_relay_config('q')`); got != want || state("q") != "true" {
		t.Errorf("positional outbox stores %s, enabled=%s\nwant %s", got, state("q"), want)
	}
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('q', 'orders', NULL, '{"type":"http","url":"https://a"}', 24, false)`)
	if got := state("q"); got != "false" {
		t.Errorf("p_enabled => false gives enabled=%s", got)
	}
	run(t, pool, `SELECT pgtrickle.set_relay_inbox('r', 'box', '{"type":"nats","url":"nats://a","durable_name":"d"}')`)
	want = `{"sink": {"inbox": "box", "schedule": "1s", "max_retries": 3, "retention_hours": 24, "with_dead_letter": true}, "source": {"url": "nats://a", "type": "nats", "durable_name": "d"}, "id_scope": "far_end", "sink_type": "pg-inbox", "source_type": "nats"}`
	if got := one(t, pool, `SELECT config::text FROM pgtrickle.get_relay_config('r')`); got != want {
		t.Errorf("positional inbox stores %s\nwant %s", got, want)
	}
}

func TestPipelineErrors(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for _, tc := range []struct{ sql, code, want string }{
		{`SELECT pgtrickle.set_relay_outbox('p', 'o', NULL, '{"url":"x"}')`, "P0001", `relay.invalid_config: sink JSONB must contain a "type" key`},
		{`SELECT pgtrickle.set_relay_outbox('p', 'o', NULL, NULL)`, "P0001", `relay.invalid_config: sink JSONB must contain a "type" key`},
		{`SELECT pgtrickle.set_relay_outbox('p', '', NULL, '{"type":"stdout"}')`, "P0001", `relay.invalid_config: outbox name must not be empty`},
		{`SELECT pgtrickle.set_relay_outbox('p', NULL, NULL, '{"type":"stdout"}')`, "P0001", `relay.invalid_config: outbox name must not be empty`},
		{`SELECT pgtrickle.set_relay_inbox('p', 'i', '{}')`, "P0001", `relay.invalid_config: source JSONB must contain a "type" key`},
		{`SELECT pgtrickle.set_relay_inbox('p', '', '{"type":"stdin"}')`, "P0001", `relay.invalid_config: inbox name must not be empty`},
		{`SELECT pgtrickle.set_relay_outbox('', config => '{"stream_table":"t","sink_type":"stdout"}')`, "P0001", `pipeline name must not be empty`},
		{`SELECT pgtrickle.enable_relay('x')`, "P0002", `relay: pipeline "x" not found`},
		{`SELECT pgtrickle.disable_relay('x')`, "P0002", `relay: pipeline "x" not found`},
		{`SELECT pgtrickle.delete_relay('x')`, "P0002", `relay: pipeline "x" not found`},
		{`SELECT pgtrickle.get_relay_config('x')`, "P0002", `relay: pipeline "x" not found`},
		{`SELECT pgtrickle.set_relay_outbox('p', 'o', NULL, '{"type":"nats","ulr":"x"}')`, "P0001", `key "sink.ulr": unknown key; did you mean "sink.url"?; key "sink.url": is required: `},
		{`SELECT pgtrickle.set_relay_outbox('p', 'o', NULL, '{"type":"natz","url":"x"}')`, "P0001", `key "sink.type": unknown backend "natz"; did you mean "nats"?`},
		{`SELECT pgtrickle.set_relay_inbox('p', 'i', '{"type":"pg-inbox","url":"x"}')`, "P0001", `key "source.type": backend "pg-inbox" has no source`},
	} {
		refused(t, pool, tc.code, tc.want, tc.sql)
	}
}

func TestConfigValidation(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	base := func(more string) string {
		if more != "" {
			more = "," + more
		}
		return `{"stream_table":"t","sink_type":"nats","nats_url":"nats://a"` + more + `}`
	}
	for name, tc := range map[string]struct{ direction, config, want string }{
		"minimal":                 {"outbox", base(""), ""},
		"nested":                  {"outbox", `{"source":{"outbox":"t"},"sink":{"type":"nats","url":"nats://a","subject":"s.{row.id}","subject_template":"x"}}`, ""},
		"mixed":                   {"outbox", `{"stream_table":"t","batch_size":5,"sink":{"type":"webhook","url":"https://a","retry_on_status":[500]}}`, ""},
		"list or string":          {"outbox", base(`"nats_url":["nats://a","nats://b"]`), ""},
		"kafka alias":             {"outbox", `{"stream_table":"t","sink_type":"kafka","kafka_brokers":"a,b","kafka_topic_template":"{stream_table}","kafka_key_field":"id"}`, ""},
		"backend alias":           {"outbox", `{"stream_table":"t","sink_type":"http","http_url":"https://a"}`, ""},
		"file":                    {"outbox", `{"stream_table":"t","sink_type":"file","file_path":"/tmp/x"}`, ""},
		"stdin":                   {"inbox", `{"inbox_table":"t","source_type":"stdin"}`, ""},
		"pg-inbox":                {"outbox", `{"stream_table":"t","sink_type":"pg-inbox","inbox_table":"box","pg_inbox_url":"postgres://a"}`, ""},
		"references pass":         {"outbox", base(`"batch_size":"${env:N}","nats_create_stream":"${file:/x}","subject_template":"${env:PREFIX}.{op}","on_error":"${env:E}"`), ""},
		"reverse":                 {"inbox", `{"source":{"type":"redis","url":"redis://a","stream_key":"s","block_ms":5000,"group_name":"g"},"sink":{"inbox":"box","max_retries":3}}`, ""},
		"headers with templates":  {"outbox", base(`"headers":{"x":"{op}"}`), ""},
		"null is absent":          {"outbox", base(`"nats_stream":null`), ""},
		"unknown key":             {"outbox", base(`"nats_ulr":"x"`), `key "nats_ulr": unknown key; did you mean "nats_url"?`},
		"bare key":                {"outbox", `{"stream_table":"t","sink_type":"kafka","kafka_brokers":"a","partitions":1}`, `key "partitions": unknown key; did you mean "kafka_partitions"?`},
		"prefixed nested key":     {"outbox", `{"stream_table":"t","sink":{"type":"kafka","brokers":"a","kafka_acks":"1"}}`, `key "sink.kafka_acks": unknown key; did you mean "sink.acks"?`},
		"URL without a scheme":    {"outbox", `{"stream_table":"t","sink_type":"redis","redis_url":"u:hunter2@localhost:6379","redis_stream":"s"}`, `key "redis_url": has no scheme; Server: redis://`},
		"one of several URLs":     {"outbox", `{"stream_table":"t","sink_type":"rabbitmq","rabbitmq_url":["amqp://a","b:5672"]}`, `key "rabbitmq_url": has no scheme`},
		"URL from a reference":    {"outbox", `{"stream_table":"t","sink_type":"redis","redis_url":"${env:URL}","redis_stream":"s"}`, ""},
		"enum of numbers":         {"outbox", `{"stream_table":"t","sink_type":"kafka","kafka_brokers":"a","kafka_acks":"0"}`, `unknown value "0"; must be one of all, 1`},
		"unknown common key":      {"outbox", base(`"batchsize":1`), `key "batchsize": unknown key; did you mean "batch_size"?`},
		"unknown nested key":      {"outbox", `{"source":{"outbx":"t"},"sink":{"type":"stdout"}}`, `key "source.outbx": unknown key; did you mean "source.outbox"?`},
		"nothing like it":         {"outbox", base(`"zzzzzzzzzzz":1`), `key "zzzzzzzzzzz": unknown key; valid keys are `},
		"other backend's key":     {"outbox", base(`"kafka_topic":"x"`), `key "kafka_topic": belongs to backend "kafka", but sink_type is "nats"`},
		"said twice":              {"outbox", `{"stream_table":"t","outbox":"t","sink_type":"stdout"}`, `key "stream_table": means the same as "outbox"; keep one`},
		"no backend":              {"outbox", `{"stream_table":"t"}`, `key "sink_type": is required; there are kafka, nats, `},
		"unknown backend":         {"outbox", `{"stream_table":"t","sink_type":"kafak"}`, `key "sink_type": unknown backend "kafak"; did you mean "kafka"?`},
		"two backends":            {"outbox", `{"stream_table":"t","sink_type":"kafka","sink":{"type":"nats","url":"x"}}`, `key "sink_type": is "kafka", but sink.type is "nats"`},
		"missing stream table":    {"outbox", `{"sink_type":"stdout"}`, `key "stream_table": is required`},
		"empty stream table":      {"outbox", `{"stream_table":"","sink_type":"stdout"}`, `key "stream_table": is required`},
		"missing backend key":     {"outbox", `{"stream_table":"t","sink_type":"nats"}`, `key "nats_url": is required`},
		"missing nested key":      {"inbox", `{"inbox_table":"i","source":{"type":"nats"}}`, `key "source.url": is required`},
		"missing inbox":           {"inbox", `{"source_type":"stdin"}`, `key "inbox_table": is required`},
		"wrong type":              {"outbox", base(`"batch_size":"many"`), `key "batch_size": wants integer, not the string "many"`},
		"fraction":                {"outbox", base(`"batch_size":1.5`), `key "batch_size": wants integer, not the number 1.5`},
		"too small":               {"outbox", base(`"batch_size":0`), `key "batch_size": is 0; must be at least 1`},
		"bad boolean":             {"outbox", base(`"nats_create_stream":"yes"`), `key "nats_create_stream": wants boolean, not the string "yes"`},
		"bad string":              {"outbox", base(`"nats_stream":7`), `key "nats_stream": wants string, not the number 7`},
		"bad list":                {"outbox", base(`"nats_stream_subjects":[1]`), `key "nats_stream_subjects": wants list, not a list`},
		"bad duration":            {"outbox", base(`"nats_ack_timeout":"5 sec"`), `key "nats_ack_timeout": wants a duration such as "250ms" or "30s", not the string "5 sec"`},
		"duration without a unit": {"outbox", base(`"nats_ack_timeout":5`), `key "nats_ack_timeout": wants a duration with a unit, such as "5s", not the number 5`},
		"duration in ms":          {"outbox", base(`"nats_ack_timeout_ms":5000`), ""},
		"negative duration":       {"outbox", base(`"poll_interval_ms":-1`), `key "poll_interval_ms": is -1; must not be negative`},
		"bad size":                {"outbox", base(`"max_in_flight_bytes":"big"`), `key "max_in_flight_bytes": wants a size such as 65536 or "64MiB", not the string "big"`},
		"size":                    {"outbox", base(`"max_in_flight_bytes":"64MiB"`), ""},
		"bad enum":                {"outbox", base(`"on_error":"parc"`), `key "on_error": unknown value "parc"; did you mean "park"?`},
		"enum not like any":       {"outbox", base(`"format":"xxxxxxxx"`), `key "format": unknown value "xxxxxxxx"; must be one of envelope, payload, cloudevents, debezium`},
		"bad template variable":   {"outbox", base(`"subject_template":"a.{stram_table}"`), `key "subject_template": template "a.{stram_table}": unknown variable {stram_table}; did you mean {stream_table}?`},
		"open brace":              {"outbox", base(`"nats_subject":"a.{op"`), `key "nats_subject": template "a.{op": no closing brace for "{op"`},
		"escaped braces":          {"outbox", base(`"nats_subject":"a.{{b}}.{op}"`), ""},
		"bad header template":     {"outbox", base(`"headers":{"x":"{nope}"}`), `key "headers": x: template "{nope}": unknown variable {nope}`},
		"secret stays secret":     {"outbox", base(`"nats_password":42`), `key "nats_password": wants a string`},
		"sink is not an object":   {"outbox", `{"stream_table":"t","sink":"nats"}`, `key "sink": wants an object, not the string "nats"`},
		"type is not a string":    {"outbox", `{"stream_table":"t","sink_type":5}`, `key "sink_type": wants string, not the number 5`},
		"not an object":           {"outbox", `[1]`, `config is not a JSON object`},
		"null":                    {"outbox", `null`, `config is not a JSON object`},
		"wrong near end":          {"outbox", `{"stream_table":"t","source_type":"nats","sink_type":"stdout"}`, `key "source_type": is "nats"; leave it out, or say "outbox"`},
		"file without path":       {"outbox", `{"stream_table":"t","sink_type":"file"}`, `key "stdout_path": is required when sink_type is "file"`},
		"all at once":             {"outbox", base(`"a_key_of_mine":1,"batch_size":"x"`), `; key "batch_size": wants integer`},
		"hostile key":             {"outbox", base(`"x'; DROP TABLE pgtrickle.relay_outbox_config; --":1`), `key "x'; DROP TABLE pgtrickle.relay_outbox_config; --": unknown key`},
	} {
		t.Run(name, func(t *testing.T) {
			if !json.Valid([]byte(tc.config)) {
				t.Fatalf("the test's config is not JSON: %s", tc.config)
			}
			sql := `SELECT pgtrickle.set_relay_` + tc.direction + `('p', config => $1::text::jsonb)`
			if tc.want == "" {
				run(t, pool, sql, tc.config)
				return
			}
			refused(t, pool, "P0001", tc.want, sql, tc.config)
		})
	}
}

// TestConfigWarnings: what a relay may run, but hardly as it was meant, is stored with a
// warning.
func TestConfigWarnings(t *testing.T) {
	t.Parallel()
	var warned []string
	config, err := pgxpool.ParseConfig(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Severity == "WARNING" {
			warned = append(warned, n.Message)
		}
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := migrate.Up(t.Context(), pool, nil); err != nil {
		t.Fatal(err)
	}
	run(t, pool, `CREATE TABLE public.orders (id int PRIMARY KEY);
		SELECT pgtrickle.enable_outbox('public.orders');
		SELECT pgtrickle.set_relay_outbox('first', config => '{"stream_table": "public.orders", "sink_type": "file", "file_path": "/tmp/a"}')`)
	for name, tc := range map[string]struct{ direction, config, want string }{
		"nothing":        {"outbox", `{"stream_table":"public.orders","sink_type":"nats","nats_url":"nats://a","nats_token":"${env:T}"}`, ""},
		"outbox":         {"outbox", `{"stream_table":"outbox_orders","sink_type":"stdout"}`, ""},
		"bare name":      {"outbox", `{"stream_table":"orders","sink_type":"stdout"}`, ""},
		"missing table":  {"outbox", `{"stream_table":"public.oders","sink_type":"stdout"}`, `pipeline "p": key "stream_table": there is no outbox or table "public.oders" yet`},
		"by a reference": {"outbox", `{"stream_table":"${env:TABLE}","sink_type":"stdout"}`, ""},
		"vault": {
			"outbox", `{"stream_table":"orders","sink_type":"nats","nats_url":"nats://a","nats_token":"${vault:x}"}`,
			`pipeline "p": key "nats_token": "${vault:...}" is no reference and stays as it is; there are ${env:NAME} and ${file:/path}`,
		},
		"vault, nested": {
			"inbox", `{"source":{"type":"nats","url":"nats://a","token":"${vault:x}"},"sink":{"inbox":"box"}}`,
			`pipeline "p": key "source.token": "${vault:...}" is no reference and stays as it is; there are ${env:NAME} and ${file:/path}`,
		},
		"huge": {
			"outbox", `{"stream_table":"orders","sink_type":"stdout","batch_size":1000000000}`,
			`pipeline "p": key "batch_size": is 1000000000; more than 1000000 has no use`,
		},
		"same file":         {"outbox", `{"stream_table":"orders","sink":{"type":"file","path":"/tmp/a"}}`, `pipeline "p": pipeline "first" writes into the same file`},
		"another file":      {"outbox", `{"stream_table":"orders","sink_type":"file","file_path":"/tmp/b"}`, ""},
		"its own file":      {"outbox", `{"stream_table":"orders","sink_type":"file","stdout_path":"/tmp/b"}`, ""},
		"standard output":   {"outbox", `{"stream_table":"orders","sink_type":"stdout"}`, ""},
		"template, no file": {"outbox", `{"stream_table":"orders","sink_type":"nats","nats_url":"nats://a","nats_subject":"a.{op}"}`, ""},
	} {
		warned = nil
		run(t, pool, `SELECT pgtrickle.set_relay_`+tc.direction+`('p', config => $1::text::jsonb)`, tc.config)
		if got := strings.Join(warned, "; "); got != tc.want {
			t.Errorf("%s: warned of %q\nwant %q", name, got, tc.want)
		}
	}
}

// TestDurationsAsInGo: the SQL takes the durations that the relay takes.
func TestDurationsAsInGo(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for _, key := range []string{"wait", "wait_ms", "wait_seconds"} {
		for _, value := range []string{`"0"`, `"+0"`, `"-0"`, `"0s"`, `"5"`, `"+5"`, `"5."`, `".5"`, `"."`, `"1e3"`, `"-5"`, `"-5s"`, `"+5s"`, `"1.5h"`, `"1h30m"`, `"1h30"`, `"5µs"`, `"5 s"`, `"s"`, `"5d"`, `""`, `0`, `5`, `-5`, `true`, `[]`} {
			var cfg struct {
				Wait relaycfg.Duration `json:"wait" doc:"How long."`
			}
			inGo := relaycfg.Decode(json.RawMessage(`{"`+key+`": `+value+`}`), &cfg)
			inSQL := one(t, pool, `SELECT coalesce(pgtrickle._relay_value_problem(
				jsonb_populate_record(NULL::pgtrickle.relay_backend_keys, '{"key": "wait", "type": "duration"}'), $1, $2::text::jsonb), '')`, key, value)
			if (inGo == nil) != (inSQL == "") {
				t.Errorf("%s = %s: the relay says %v, the SQL %q", key, value, inGo, inSQL)
			}
		}
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `LISTEN pgtrickle_relay_config; LISTEN pgtrickle_relay_dlq`); err != nil {
		t.Fatal(err)
	}
	expect := func(sql, want string) {
		t.Helper()
		run(t, pool, sql)
		n, err := conn.Conn().WaitForNotification(ctx)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		if got := n.Channel + " " + n.Payload; got != want {
			t.Errorf("%s notifies %s\nwant %s", sql, got, want)
		}
	}
	expect(`SELECT pgtrickle.set_relay_outbox('p', 'o', NULL, '{"type":"stdout"}')`,
		`pgtrickle_relay_config {"direction" : "relay_outbox_config", "event" : "INSERT", "name" : "p", "enabled" : true}`)
	expect(`SELECT pgtrickle.enable_relay('p')`, // which it is already
		`pgtrickle_relay_config {"direction" : "relay_outbox_config", "event" : "UPDATE", "name" : "p", "enabled" : true}`)
	expect(`SELECT pgtrickle.relay_retry('p')`, `pgtrickle_relay_config {"event" : "RETRY", "name" : "p"}`)
	const wakeAll = `pgtrickle_relay_config {"event" : "RETRY", "name" : ""}`
	expect(`SELECT pgtrickle.create_inbox('woken')`, wakeAll)
	run(t, pool, `CREATE TABLE public.woken (id int PRIMARY KEY)`)
	expect(`SELECT pgtrickle.enable_outbox('public.woken')`, wakeAll)
	expect(`SELECT pgtrickle.relay_grant_access()`, wakeAll)
	refused(t, pool, "P0002", "not found", `SELECT pgtrickle.relay_retry('nothing')`)
	expect(`SELECT pgtrickle.disable_relay('p')`,
		`pgtrickle_relay_config {"direction" : "relay_outbox_config", "event" : "UPDATE", "name" : "p", "enabled" : false}`)
	expect(`SELECT pgtrickle.set_relay_inbox('q', 'i', '{"type":"stdin"}')`,
		`pgtrickle_relay_config {"direction" : "relay_inbox_config", "event" : "INSERT", "name" : "q", "enabled" : true}`)
	expect(`SELECT pgtrickle.delete_relay('p')`,
		`pgtrickle_relay_config {"direction" : "relay_outbox_config", "event" : "DELETE", "name" : "p", "enabled" : false}`)

	run(t, pool, `INSERT INTO pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, message_id, key, body, error, class, status) VALUES
		('g', 'forward', 'p', 'a', 'k', 'x', 'e', 'refused', 'dead'), ('g', 'forward', 'p', 'b', 'k', 'x', 'e', 'parked', 'parked'),
		('g', 'reverse', 'p', 'c', '', 'x', 'e', 'decode', 'dead')`)
	expect(`SELECT pgtrickle.relay_dlq_retry('p', p_key => 'k')`, `pgtrickle_relay_dlq p`)
	if got := one(t, pool, `SELECT string_agg(message_id || ' ' || status, ', ' ORDER BY id) FROM pgtrickle.relay_dlq_list('p')`); got != "a retry, b parked, c dead" {
		t.Errorf("after a retry of key k: %s", got)
	}
	expect(`SELECT pgtrickle.relay_dlq_discard('p')`, `pgtrickle_relay_dlq p`)
	if got := one(t, pool, `SELECT string_agg(message_id, ', ' ORDER BY id) FROM pgtrickle.relay_dlq_list(p_group => 'g')`); got != "a, b" {
		t.Errorf("after a discard of what is dead: %s", got)
	}
	expect(`SELECT pgtrickle.relay_dlq_discard('p', p_ids => ARRAY[2])`, `pgtrickle_relay_dlq p`)
	if got := one(t, pool, `SELECT pgtrickle.relay_dlq_retry('p', 'forward', p_class => 'decode')::text`); got != "0" {
		t.Errorf("retry of a class that has none = %s", got)
	}
	run(t, pool, `INSERT INTO pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, message_id, key, body, error, class, status, outbox_id) VALUES
		('g', 'forward', 'p', 'o:7:0', '', 'x', 'e', 'decode', 'dead', 7)`)
	refused(t, pool, "P0001", "1 dead letters of p are outbox rows that could not be decoded, from row 7 on", `SELECT pgtrickle.relay_dlq_retry('p')`)
	run(t, pool, `INSERT INTO pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, message_id, key, body, error, class, status) VALUES
		('g', 'forward', 'p', 'd', 'k', 'x', 'e', 'refused', 'dead')`)
	if got := one(t, pool, `SELECT pgtrickle.relay_dlq_retry('p')::text`); got != "1" {
		t.Errorf("retry of one that can be retried, and one that cannot = %s, want 1", got)
	}
	if got := one(t, pool, `SELECT string_agg(message_id || ' ' || status, ', ' ORDER BY id) FROM pgtrickle.relay_dlq_list('p') WHERE message_id IN ('o:7:0', 'd')`); got != "o:7:0 dead, d retry" {
		t.Errorf("after a retry of all: %s", got)
	}
	refused(t, pool, "P0001", "name the pipeline", `SELECT pgtrickle.relay_dlq_retry(NULL)`)
}

func TestDistance(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	for _, tc := range []struct{ a, b, want string }{
		{"", "", "0"}, {"abc", "", "3"}, {"", "abc", "3"}, {"url", "ulr", "1"}, {"kitten", "sitting", "3"}, {"ca", "abc", "3"}, {"äö", "ao", "2"},
	} {
		if got := one(t, pool, `SELECT pgtrickle._relay_distance($1, $2)::text`, tc.a, tc.b); got != tc.want {
			t.Errorf("_relay_distance(%q, %q) = %s; want %s", tc.a, tc.b, got, tc.want)
		}
	}
}

// A pipeline from before id_scope keeps the ids that its inbox has, also when it is set
// again. A new one has scoped ids.
func TestIDScope(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	const config = `{"inbox_table": "i", "source_type": "stdin"}`
	run(t, pool, `INSERT INTO pgtrickle.relay_inbox_config (name, config) VALUES ('old', '`+config+`'), ('untouched', '`+config+`')`)
	run(t, pool, `SELECT pgtrickle.set_relay_inbox('old', config => '`+config+`')`)
	sql, err := migrate.SQL(nil)
	if err != nil {
		t.Fatal(err)
	}
	run(t, pool, sql) // as Up of a later version does
	run(t, pool, `SELECT pgtrickle.set_relay_inbox('new', config => '`+config+`')`)
	run(t, pool, `SELECT pgtrickle.set_relay_inbox('new8', 'i', '{"type": "stdin"}')`)
	run(t, pool, `SELECT pgtrickle.set_relay_inbox('chosen', config => '{"id_scope": "global", "inbox_table": "i", "source_type": "stdin"}')`)
	var got string
	err = pool.QueryRow(t.Context(), `SELECT string_agg(name || ' ' || (config ->> 'id_scope'), ', ' ORDER BY name) FROM pgtrickle.relay_inbox_config`).Scan(&got)
	if want := "chosen global, new far_end, new8 far_end, old global, untouched global"; err != nil || got != want {
		t.Errorf("scopes = %s, %v; want %s", got, err, want)
	}
}

// A pipeline to Kafka from before tombstones writes none, also when it is set again. A new
// one writes them where the topic is compacted.
func TestKafkaTombstones(t *testing.T) {
	t.Parallel()
	pool := migrated(t)
	config := func(more string) string {
		return `'{"stream_table": "o", "sink_type": "kafka", "kafka_brokers": "b:1"` + more + `}'`
	}
	run(t, pool, `INSERT INTO pgtrickle.relay_outbox_config (name, config) VALUES ('old', `+config("")+`)`)
	for name, config := range map[string]string{
		"old": config(""), "new": config(""), "chosen": config(`, "kafka_tombstones": "always"`),
		"nested": `'{"stream_table": "o", "sink": {"type": "kafka", "brokers": "b:1"}}'`,
		"own":    `'{"stream_table": "o", "sink": {"type": "kafka", "brokers": "b:1", "tombstones": "never"}}'`,
		"other":  `'{"stream_table": "o", "sink_type": "stdout"}'`,
	} {
		for range 2 {
			run(t, pool, `SELECT pgtrickle.set_relay_outbox('`+name+`', config => `+config+`)`)
		}
	}
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('kept', config => `+config(`, "kafka_tombstones": "always"`)+`)`)
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('kept', config => `+config("")+`)`)
	run(t, pool, `SELECT pgtrickle.set_relay_outbox('six', 'o', NULL, '{"type": "kafka", "brokers": "b:1"}')`)
	got := one(t, pool, `SELECT string_agg(name || ' ' || coalesce(config ->> 'kafka_tombstones', '-'), ', ' ORDER BY name) FROM pgtrickle.relay_outbox_config`)
	if want := "chosen always, kept always, nested auto, new auto, old never, other -, own -, six auto"; got != want {
		t.Errorf("tombstones = %s\nwant %s", got, want)
	}
}
