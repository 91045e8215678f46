package kafkarelay

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	template := func(text string) relay.Template {
		tmpl, err := relay.ParseTemplate(text)
		if err != nil {
			t.Fatal(err)
		}
		return tmpl
	}
	with := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		c.Brokers = relaycfg.List{"a:1"}
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"defaults stay":   {raw: `{"brokers":"a:1"}`, want: with(func(*sinkConfig) {})},
		"list of brokers": {raw: `{"brokers":["a:1","b:2"]}`, want: with(func(c *sinkConfig) { c.Brokers = relaycfg.List{"a:1", "b:2"} })},
		"comma list":      {raw: `{"bootstrap_servers":"a:1, b:2"}`, want: with(func(c *sinkConfig) { c.Brokers = relaycfg.List{"a:1", "b:2"} })},
		"topic":           {raw: `{"brokers":"a:1","topic":"x.{op}"}`, want: with(func(c *sinkConfig) { c.Topic = template("x.{op}") })},
		"topic's alias":   {raw: `{"brokers":"a:1","topic_template":"x"}`, want: with(func(c *sinkConfig) { c.Topic = template("x") })},
		"acks 1":          {raw: `{"brokers":"a:1","acks":"1"}`, want: with(func(c *sinkConfig) { c.Acks, c.Idempotence = "1", false })},
		"not numbered":    {raw: `{"brokers":"a:1","idempotence":false}`, want: with(func(c *sinkConfig) { c.Idempotence = false })},
		"created topics": {raw: `{"brokers":"a:1","create_topic":true,"partitions":6,"replication_factor":3,"max_message_bytes":"2MiB"}`, want: with(func(c *sinkConfig) {
			c.CreateIfMissing, c.Partitions, c.ReplicationFactor, c.MaxMessageBytes = true, 6, 3, 2<<20
		})},
		"acks 0":              {raw: `{"brokers":"a:1","acks":"0"}`, wantErr: `key "acks": unknown value "0"`},
		"compression":         {raw: `{"brokers":"a:1","compression":"zst"}`, wantErr: `did you mean "zstd"?`},
		"topic's name":        {raw: `{"brokers":"a:1","topic":"bad name!"}`, wantErr: `key "topic": is not a name that Kafka allows`},
		"topic of the row":    {raw: `{"brokers":"a:1","topic":"{row.topic}"}`, want: with(func(c *sinkConfig) { c.Topic = template("{row.topic}") })},
		"no brokers":          {raw: `{}`, wantErr: `key "brokers": is required`},
		"broker without port": {raw: `{"brokers":"a"}`, wantErr: `key "brokers": "a" is not host:port`},
		"broker as URL":       {raw: `{"brokers":"kafka://a:1"}`, wantErr: `is not host:port`},
		"unknown key":         {raw: `{"brokers":"a:1","topics":"x"}`, wantErr: `key "topics": unknown key; did you mean "topic"?`},
		"password alone":      {raw: `{"brokers":"a:1","sasl_password":"x"}`, wantErr: `key "sasl_password": needs sasl_mechanism`},
		"mechanism alone":     {raw: `{"brokers":"a:1","sasl_mechanism":"PLAIN"}`, wantErr: `key "sasl_mechanism": needs sasl_username`},
		"no password":         {raw: `{"brokers":"a:1","sasl_mechanism":"PLAIN","sasl_username":"u"}`, wantErr: `key "sasl_mechanism": needs sasl_password`},
		"mechanism":           {raw: `{"brokers":"a:1","sasl_mechanism":"SCRAM-SHA-255"}`, wantErr: `did you mean "SCRAM-SHA-256"?`},
		"certificate alone":   {raw: `{"brokers":"a:1","tls_cert":"x"}`, wantErr: `needs tls_key`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sinkDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &got)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("Decode(%s) = %v, want error with %q", tc.raw, err, tc.wantErr)
				}
				return
			}
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Fatalf("Decode(%s) = %+v, %v; want %+v", tc.raw, got, err, tc.want)
			}
		})
	}
}

func TestSourceConfig(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ raw, wantErr string }{
		"least":         {raw: `{"brokers":"a:1","topic":"x"}`},
		"most":          {raw: `{"brokers":"a:1","topics":"x,y","group_id":"g","auto_offset_reset":"latest","session_timeout":"6s","fetch_max_bytes":"1MiB","fetch_max_wait_ms":100,"isolation_level":"read_uncommitted"}`},
		"no topic":      {raw: `{"brokers":"a:1"}`, wantErr: `key "topic": is required`},
		"offset reset":  {raw: `{"brokers":"a:1","topic":"x","auto_offset_reset":"lates"}`, wantErr: `did you mean "latest"?`},
		"fetch size":    {raw: `{"brokers":"a:1","topic":"x","fetch_max_bytes":"2GiB"}`, wantErr: `must be at most 1073741824`},
		"sink's key":    {raw: `{"brokers":"a:1","topic":"x","acks":"all"}`, wantErr: `key "acks": unknown key`},
		"no time limit": {raw: `{"brokers":"a:1","topic":"x","session_timeout":"0s"}`, wantErr: `key "session_timeout": is 0s; must be at least`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sourceDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &got)
			if (tc.wantErr == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.wantErr) {
				t.Fatalf("Decode(%s) = %v, want error with %q", tc.raw, err, tc.wantErr)
			}
		})
	}
}

// docs/config.md is made from the fields' tags.
func TestEveryKeyIsDocumented(t *testing.T) {
	t.Parallel()
	for _, cfg := range []any{sinkDefaults(), sourceDefaults()} {
		for _, key := range relaycfg.Keys(cfg) {
			if key.Doc == "" {
				t.Errorf("key %q has no doc", key.Name)
			}
		}
	}
}

// Keys of earlier versions are still valid.
func TestOldKeys(t *testing.T) {
	t.Parallel()
	for _, keys := range []string{`"request_timeout":"3s","create_topic":true`, `"request_timeout_ms":3000,"create_topic":"true"`, `"confirm_timeout":"3s","create_if_missing":true`} {
		cfg := sinkDefaults()
		raw := `{"brokers":"a:1",` + keys + `}`
		if err := relaycfg.Decode([]byte(raw), &cfg); err != nil || cfg.ConfirmTimeout.D() != 3*time.Second || !cfg.CreateIfMissing {
			t.Errorf("Decode(%s) = %v, %+v; want 3s, and that topics are created", raw, err, cfg)
		}
	}
}

// The keys of TLS have the names that they had before they were shared.
func TestTLSKeys(t *testing.T) {
	t.Parallel()
	const keys = `{"brokers":"a:1","topic":"t","tls":true,"tls_ca":"ca","tls_cert":"cert","tls_key":"key","tls_server_name":"name"}`
	want := connection{
		Brokers: relaycfg.List{"a:1"}, ClientID: defaultClientID,
		OptionalTLS: relaynet.OptionalTLS{Use: true, TLS: relaynet.TLS{CA: "ca", Cert: "cert", Key: "key", ServerName: "name"}},
	}
	sink, source := sinkDefaults(), sourceDefaults()
	if err := relaycfg.Decode([]byte(keys), &sink); err != nil || !reflect.DeepEqual(sink.connection, want) {
		t.Errorf("Decode of a sink = %v, %+v; want %+v", err, sink.connection, want)
	}
	if err := relaycfg.Decode([]byte(keys), &source); err != nil || !reflect.DeepEqual(source.connection, want) {
		t.Errorf("Decode of a source = %v, %+v; want %+v", err, source.connection, want)
	}
}
