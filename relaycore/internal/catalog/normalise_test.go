package catalog

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type natsConfig struct {
	URL     relaycfg.List     `json:"url" relay:"required" doc:"Servers."`
	Stream  string            `json:"stream" doc:"Stream."`
	Subject relay.Template    `json:"subject" doc:"Subject."`
	Durable string            `json:"consumer" relay:"alias=durable_name" doc:"Consumer."`
	Wait    relaycfg.Duration `json:"ack_timeout" doc:"Timeout."`
	Token   relaycfg.Secret   `json:"token" doc:"Token."`
}

type kafkaConfig struct {
	Brokers relaycfg.List `json:"brokers" relay:"required" doc:"Brokers."`
	Topic   string        `json:"topic" relay:"alias=topic_template" doc:"Topic."`
}

type stdoutConfig struct {
	Format string `json:"format" relay:"enum=jsonl|csv" doc:"Format."`
	Path   string `json:"path" relay:"file" doc:"File."`
}

type pgInboxConfig struct {
	URL   string `json:"url" relay:"required" doc:"Database."`
	Table string `json:"table" relay:"required,alias=inbox_table" doc:"Table."`
}

func sinkOf[C any](defaults C) relay.SinkFactory {
	return relaycfg.Sink(defaults, func(context.Context, relay.Env, C) (relay.Sink, error) { return nil, nil })
}

func sourceOf[C any](defaults C) relay.SourceFactory {
	return relaycfg.Source(defaults, func(context.Context, relay.Env, C) (relay.Source, error) { return nil, nil })
}

func testRegistry(t testing.TB) *relay.Registry {
	t.Helper()
	stdout := stdoutConfig{Format: "jsonl"}
	reg, err := relay.NewRegistry(
		relay.Backend{
			Name: "nats", Sink: sinkOf(natsConfig{Wait: relaycfg.Duration(5 * time.Second)}), Source: sourceOf(natsConfig{}), SubjectKey: "subject",
		},
		relay.Backend{Name: "kafka", Sink: sinkOf(kafkaConfig{}), Source: sourceOf(kafkaConfig{})},
		relay.Backend{Name: "stdout", Aliases: []string{"file", "stdin"}, Sink: sinkOf(stdout), Source: sourceOf(stdoutConfig{})},
		relay.Backend{Name: "pg-inbox", Sink: sinkOf(pgInboxConfig{})},
	)
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

func TestNormaliseFormsAgree(t *testing.T) {
	t.Parallel()
	reg := testRegistry(t)
	for name, tc := range map[string]struct {
		direction relay.Direction
		forms     []string
		backend   string
		config    string
		check     func(Settings) bool
	}{
		"nats sink": {relay.Forward, []string{
			`{"stream_table":"public.orders","sink_type":"nats","nats_url":"nats://a","nats_stream":"s","batch_size":10}`,
			`{"source_type":"outbox","source":{"outbox":"public.orders","group":null,"retention_hours":24},"sink_type":"nats","sink":{"type":"nats","url":"nats://a","stream":"s","batch_size":10}}`,
			`{"stream_table":"public.orders","sink":{"type":"nats","url":"nats://a","stream":"s"},"batch_size":10}`,
			`{"source":{"outbox":"public.orders","batch_size":10},"sink_type":"nats","sink":{"url":"nats://a"},"nats_stream":"s"}`,
		}, "nats", `{"stream":"s","url":"nats://a"}`, func(s Settings) bool { return s.StreamTable == "public.orders" && s.BatchSize == 10 }},
		"nats source": {relay.Reverse, []string{
			`{"source_type":"nats","nats_url":"nats://a","nats_durable_name":"d","inbox_table":"i"}`,
			`{"source_type":"nats","source":{"type":"nats","url":"nats://a","durable_name":"d"},"sink_type":"pg-inbox","sink":{"inbox":"i","max_retries":3,"schedule":"1s","with_dead_letter":true,"retention_hours":24}}`,
			`{"source":{"type":"nats","url":"nats://a","durable_name":"d"},"sink":{"inbox_table":"i"}}`,
		}, "nats", `{"durable_name":"d","url":"nats://a"}`, func(s Settings) bool { return s.InboxTable == "i" && s.InboxSchema == "pgtrickle" }},
		"kafka key field": {relay.Forward, []string{
			`{"stream_table":"o","sink_type":"kafka","kafka_brokers":"a:1,b:1","kafka_key_field":"id"}`,
			`{"stream_table":"o","sink_type":"kafka","kafka_brokers":"a:1,b:1","key_field":"id"}`,
		}, "kafka", `{"brokers":"a:1,b:1"}`, func(s Settings) bool { return s.KeyField == "id" }},
		"format belongs to stdout inside its sink": {relay.Forward, []string{
			`{"stream_table":"o","sink":{"type":"stdout","format":"csv"},"format":"payload"}`,
			`{"stream_table":"o","sink_type":"stdout","stdout_format":"csv","format":"payload"}`,
		}, "stdout", `{"format":"csv"}`, func(s Settings) bool { return s.Format == "payload" }},
		"file": {relay.Forward, []string{
			`{"stream_table":"o","sink_type":"file","file_path":"/x"}`,
			`{"stream_table":"o","sink_type":"file","stdout_path":"/x"}`,
			`{"stream_table":"o","sink":{"type":"file","path":"/x"}}`,
		}, "stdout", `{"path":"/x"}`, nil},
		"pg-inbox": {relay.Forward, []string{
			`{"stream_table":"o","sink_type":"pg-inbox","pg_inbox_url":"u","inbox_table":"i"}`,
			`{"stream_table":"o","sink":{"type":"pg-inbox","url":"u","inbox_table":"i"}}`,
		}, "pg-inbox", `{"inbox_table":"i","url":"u"}`, nil},
		"backend's subject goes first": {relay.Forward, []string{
			`{"stream_table":"o","sink_type":"nats","nats_url":"u","nats_subject":"x.{op}"}`,
			`{"stream_table":"o","sink":{"type":"nats","url":"u","subject":"x.{op}"}}`,
		}, "nats", `{"subject":"x.{op}","url":"u"}`, func(s Settings) bool { return s.SubjectTemplate.String() == "x.{op}" }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var first *Settings
			for _, form := range tc.forms {
				p := Normalise(Row{Name: "p", Direction: tc.direction, Config: json.RawMessage(form)}, reg, relaycfg.Unrestricted())
				if p.Err != nil {
					t.Fatalf("Normalise(%s) = %v", form, p.Err)
				}
				r, err := p.Resolve()
				want, decodeErr := decode(p.backend, tc.direction, json.RawMessage(tc.config))
				if err != nil || decodeErr != nil || p.Backend != tc.backend || !reflect.DeepEqual(r.Config, want) {
					t.Errorf("Normalise(%s) = %s %+v, %v; want %s %+v, %v", form, p.Backend, r.Config, err, tc.backend, want, decodeErr)
				}
				if tc.check != nil && !tc.check(r.Settings) {
					t.Errorf("Normalise(%s): settings %+v", form, r.Settings)
				}
				r.Settings.RetentionHours, r.Settings.MaxRetries, r.Settings.Schedule, r.Settings.WithDeadLetter = 0, 0, "", false
				if first == nil {
					first = &r.Settings
				} else if !reflect.DeepEqual(*first, r.Settings) {
					t.Errorf("Normalise(%s): settings %+v differ from the first form's %+v", form, r.Settings, *first)
				}
			}
		})
	}
}

func TestNormaliseErrors(t *testing.T) {
	t.Parallel()
	reg := testRegistry(t)
	for name, tc := range map[string]struct {
		direction relay.Direction
		config    string
		want      string
	}{
		"unknown flat key":        {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_ulr":"a"}`, `key "nats_ulr": unknown key; did you mean "nats_url"?`},
		"unknown nested key":      {relay.Forward, `{"stream_table":"o","sink":{"type":"nats","ulr":"a"}}`, `key "sink.ulr": unknown key; did you mean "sink.url"?`},
		"bare key":                {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","token":"x"}`, `key "token": unknown key; did you mean "nats_token"?`},
		"prefixed nested key":     {relay.Forward, `{"stream_table":"o","sink":{"type":"nats","url":"a","nats_token":"x"}}`, `key "sink.nats_token": unknown key; did you mean "sink.token"?`},
		"unknown common key":      {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","batch_sise":1}`, `key "batch_sise": unknown key; did you mean "batch_size"?`},
		"unknown near key":        {relay.Forward, `{"source":{"outboxx":"o"},"sink":{"type":"nats","url":"a"}}`, `key "source.outboxx": unknown key; did you mean "source.outbox"?`},
		"missing flat key":        {relay.Forward, `{"stream_table":"o","sink_type":"nats"}`, `key "nats_url": is required`},
		"missing nested key":      {relay.Forward, `{"stream_table":"o","sink":{"type":"nats"}}`, `key "sink.url": is required`},
		"missing stream table":    {relay.Forward, `{"sink_type":"nats","nats_url":"a"}`, `key "stream_table": is required`},
		"wrong type flat":         {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":5}`, `key "nats_url": wants list, not the number 5`},
		"wrong type nested":       {relay.Forward, `{"stream_table":"o","sink":{"type":"nats","url":"a","ack_timeout":true}}`, `key "sink.ack_timeout": wants a duration`},
		"wrong type common":       {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","batch_size":"many"}`, `key "batch_size": wants integer, not the string "many"`},
		"zero batch":              {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","batch_size":0}`, `key "batch_size": is 0; must be at least 1`},
		"enum":                    {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","on_error":"parc"}`, `unknown value "parc"; did you mean "park"?`},
		"template":                {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","subject_template":"{table}"}`, `key "subject_template": unknown variable {table}`},
		"of another backend":      {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","kafka_topic":"x"}`, `key "kafka_topic": belongs to backend "kafka", but sink_type is "nats"`},
		"both forms":              {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","sink":{"url":"b"}}`, `key "sink.url": means the same as "nats_url"; keep one`},
		"types disagree":          {relay.Forward, `{"stream_table":"o","sink_type":"nats","sink":{"type":"kafka"}}`, `key "sink_type": is "nats", but sink.type is "kafka"`},
		"no type":                 {relay.Forward, `{"stream_table":"o"}`, `key "sink_type": is required: this binary has kafka, nats, pg-inbox, stdout`},
		"source of forward":       {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","source_type":"kafka"}`, `key "source_type": is "kafka", but an outbox pipeline reads from an outbox`},
		"reverse key in forward":  {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","inbox_table":"x"}`, `key "inbox_table": unknown key`},
		"no source":               {relay.Reverse, `{"source_type":"pg-inbox","inbox_table":"i"}`, `backend "pg-inbox" has no source`},
		"place":                   {relay.Reverse, `{"source_type":"nats","nats_url":"a","inbox_table":"i","event_id_from":"headers"}`, `key "event_id_from": unknown place "headers"`},
		"file without path":       {relay.Forward, `{"stream_table":"o","sink_type":"file"}`, `key "stdout_path": is required when sink_type is "file"`},
		"sink is no object":       {relay.Forward, `{"stream_table":"o","sink":"nats"}`, `key "sink": wants an object`},
		"not an object":           {relay.Forward, `[]`, `not a JSON object`},
		"null":                    {relay.Forward, `null`, `not a JSON object`},
		"unset variable":          {relay.Forward, `{"stream_table":"o","sink":{"type":"nats","url":"a","token":"${env:CATALOG_UNSET}"}}`, `key "sink.token": ${env:CATALOG_UNSET}: environment variable is not set`},
		"key field and template":  {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","key_field":"a","key_template":"b"}`, `key "key_template": cannot be combined with "key_field"`},
		"marker without subject":  {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","snapshot_marker":true,"subject_template":"o.{row.a}"}`, `key "snapshot_marker": needs a subject_template without {row.…}`},
		"unknown startup":         {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","startup":"at:x"}`, `key "startup": "at:x" must be earliest`},
		"marker in debezium":      {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","snapshot_marker":true,"format":"debezium"}`, `key "snapshot_marker": format debezium`},
		"subject and its default": {relay.Forward, `{"stream_table":"o","sink_type":"nats","nats_url":"a","nats_subject":"a","subject_template":"b"}`, `key "nats_subject": means the same as "subject_template"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Normalise(Row{Name: "p", Enabled: true, Direction: tc.direction, Config: json.RawMessage(tc.config)}, reg, relaycfg.Unrestricted())
			if p.Err == nil || !strings.Contains(p.Err.Error(), tc.want) {
				t.Errorf("Normalise(%s).Err = %v, want %q", tc.config, p.Err, tc.want)
			}
		})
	}
}

func TestSecretsStayReferences(t *testing.T) {
	t.Setenv("CATALOG_TOKEN", "hunter2")
	config := `{"stream_table":"o","sink_type":"nats","nats_url":"a","nats_token":"${env:CATALOG_TOKEN}","headers":{"x":"${env:CATALOG_TOKEN}"}}`
	p := Normalise(Row{Name: "p", Direction: relay.Forward, Config: json.RawMessage(config)}, testRegistry(t), relaycfg.Unrestricted())
	if out := fmt.Sprintf("%+v %s", p, p.own.raw()); strings.Contains(out, "hunter2") {
		t.Errorf("pipeline holds the secret: %s", out)
	}
	r, err := p.Resolve()
	if config, ok := r.Config.(natsConfig); err != nil || !ok || string(config.Token) != "hunter2" || r.Settings.Headers["x"].String() != "hunter2" {
		t.Errorf("Resolve = %+v %v, %v; want the secret in place", r.Config, r.Settings.Headers, err)
	}

	cat := New(testRegistry(t), relaycfg.Unrestricted())
	before := cat.revision(Row{Enabled: true, Config: json.RawMessage(config)})
	t.Setenv("CATALOG_TOKEN", "rotated")
	if cat.revision(Row{Enabled: true, Config: json.RawMessage(config)}) == before {
		t.Error("revision is the same after the secret was rotated")
	}
}

func TestUnlinkedBackendIsNotAnError(t *testing.T) {
	t.Parallel()
	p := Normalise(Row{Name: "p", Direction: relay.Forward, Config: json.RawMessage(`{"stream_table":"o","sink_type":"redis","redis_url":"a"}`)}, testRegistry(t), relaycfg.Unrestricted())
	if p.Err != nil || p.Linked || p.Backend != "redis" {
		t.Errorf("Normalise = linked %v, backend %q, %v; want unlinked redis without error", p.Linked, p.Backend, p.Err)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	p := func(name, revision string, enabled bool) Pipeline {
		return Pipeline{Key: Key{Direction: relay.Forward, Name: name}, Revision: revision, Enabled: enabled}
	}
	keys := func(names ...string) (keys []Key) {
		for _, n := range names {
			keys = append(keys, Key{Direction: relay.Forward, Name: n})
		}
		return keys
	}
	for name, tc := range map[string]struct {
		before, after Snapshot
		want          Changes
	}{
		"nothing":                {nil, nil, Changes{}},
		"same":                   {Snapshot{p("a", "1", true)}, Snapshot{p("a", "1", true)}, Changes{}},
		"first":                  {nil, Snapshot{p("a", "1", true), p("b", "1", false)}, Changes{Added: keys("a")}},
		"all gone":               {Snapshot{p("a", "1", true), p("b", "1", false)}, nil, Changes{Removed: keys("a")}},
		"enabled":                {Snapshot{p("a", "1", false)}, Snapshot{p("a", "1", true)}, Changes{Added: keys("a")}},
		"disabled":               {Snapshot{p("a", "1", true)}, Snapshot{p("a", "2", false)}, Changes{Removed: keys("a")}},
		"changed":                {Snapshot{p("a", "1", true)}, Snapshot{p("a", "2", true)}, Changes{Changed: keys("a")}},
		"changed while disabled": {Snapshot{p("a", "1", false)}, Snapshot{p("a", "2", false)}, Changes{}},
		"middle": {
			Snapshot{p("a", "1", true), p("b", "1", true), p("d", "1", true)},
			Snapshot{p("b", "1", true), p("c", "1", true), p("d", "2", true)},
			Changes{Added: keys("c"), Removed: keys("a"), Changed: keys("d")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := Diff(tc.before, tc.after); !reflect.DeepEqual(got, tc.want) {
				t.Errorf("Diff = %+v, want %+v", got, tc.want)
			}
		})
	}
	both := Diff(nil, Snapshot{{Key: Key{Direction: relay.Forward, Name: "a"}, Enabled: true}, {Key: Key{Direction: relay.Reverse, Name: "a"}, Enabled: true}})
	if len(both.Added) != 2 {
		t.Errorf("Diff of a name in both directions = %+v, want two pipelines", both)
	}
}

// FuzzNormalise checks that Normalise does not panic, that a pipeline without an error
// resolves, and that the order of keys does not matter.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{
		`{"stream_table":"o","sink_type":"nats","nats_url":"a"}`,
		`{"source":{"outbox":"o"},"sink":{"type":"stdout","format":"csv"}}`,
		`{"sink_type":"file","file_path":5,"sink":{}}`,
		`{"sink":{"type":"pg-inbox","url":"u","table":"t"},"headers":{"a":"{row.x}"}}`,
		`{"source_type":"kafka","kafka_brokers":["a"],"inbox":"i","poll_interval_ms":0}`,
	} {
		f.Add(s)
	}
	reg := testRegistry(f)
	f.Fuzz(func(t *testing.T, config string) {
		for _, d := range []relay.Direction{relay.Forward, relay.Reverse} {
			p := Normalise(Row{Name: "p", Direction: d, Config: json.RawMessage(config)}, reg, relaycfg.Unrestricted())
			r, err := p.Resolve()
			if (p.Err == nil) != (err == nil) {
				t.Fatalf("Err %v, but Resolve %v", p.Err, err)
			}
			if err == nil && r.Settings.BatchSize < 1 {
				t.Fatalf("batch size %d", r.Settings.BatchSize)
			}
		}
	})
}

// A disabled row may refer to secrets that this process cannot read, and reads none.
func TestDisabledRowsResolveNoReference(t *testing.T) {
	t.Parallel()
	config := json.RawMessage(`{"stream_table":"o","sink_type":"nats","nats_url":"a","nats_token":"${file:/nonexistent}"}`)
	for _, enabled := range []bool{false, true} {
		row := Row{Name: "p", Direction: relay.Forward, Enabled: enabled, Config: config}
		if p := Normalise(row, testRegistry(t), relaycfg.Unrestricted()); (p.Err != nil) != enabled {
			t.Errorf("Normalise with enabled %v: Err = %v", enabled, p.Err)
		}
	}
	p := Normalise(Row{Name: "p", Direction: relay.Forward, Config: config}, testRegistry(t), relaycfg.Unrestricted())
	if _, err := p.Resolve(); err == nil {
		t.Error("Resolve of the disabled row succeeds, want the error of its reference")
	}
}

func TestPipelinesReachOnlyPermittedFiles(t *testing.T) {
	t.Parallel()
	access, err := relaycfg.NewAccess("", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for config, key := range map[string]string{
		`{"stream_table":"o","sink_type":"file","file_path":"/etc/passwd"}`:                         `key "file_path"`,
		`{"stream_table":"o","sink":{"type":"stdout","path":"/etc/passwd"}}`:                        `key "sink.path"`,
		`{"stream_table":"o","sink_type":"nats","nats_url":"a","nats_token":"${file:/etc/passwd}"}`: `key "nats_token"`,
	} {
		p := Normalise(Row{Name: "p", Enabled: true, Direction: relay.Forward, Config: json.RawMessage(config)}, testRegistry(t), access)
		if p.Err == nil || !strings.Contains(p.Err.Error(), key) || !strings.Contains(p.Err.Error(), "--allow-files") {
			t.Errorf("Normalise(%s).Err = %v, want %s and --allow-files", config, p.Err, key)
		}
	}
}

// An error names the reference of a value that is not valid, and never the value.
func TestErrorsShowNoResolvedValue(t *testing.T) {
	t.Setenv("CATALOG_CANARY", "canary-{8431}")
	for _, config := range []string{
		`"sink_type":"nats","nats_url":"a","batch_size":"${env:CATALOG_CANARY}"`,
		`"sink_type":"nats","nats_url":"a","on_error":"${env:CATALOG_CANARY}"`,
		`"sink_type":"nats","nats_url":"a","headers":{"x":"${env:CATALOG_CANARY}"}`,
		`"sink_type":"nats","nats_url":"a","subject_template":"${env:CATALOG_CANARY}"`,
		`"sink_type":"nats","nats_url":"a","nats_subject":"${env:CATALOG_CANARY}"`,
		`"sink_type":"nats","nats_url":"a","nats_ack_timeout":"x${env:CATALOG_CANARY}"`,
		`"sink":{"type":"stdout","format":"${env:CATALOG_CANARY}"}`,
	} {
		row := Row{Name: "p", Enabled: true, Direction: relay.Forward, Config: json.RawMessage(`{"stream_table":"o",` + config + `}`)}
		p := Normalise(row, testRegistry(t), relaycfg.Unrestricted())
		if p.Err == nil || strings.Contains(p.Err.Error(), "8431") || !strings.Contains(p.Err.Error(), "${env:CATALOG_CANARY}") {
			t.Errorf("Normalise(%s).Err = %v, want the reference and not its value", config, p.Err)
		}
		err := p.Explain(relaycfg.Errorf("ack_timeout", "is 8431"))
		if strings.Contains(config, "ack_timeout") && strings.Contains(err.Error(), "8431") {
			t.Errorf("Explain = %v, want the reference and not its value", err)
		}
	}
}
