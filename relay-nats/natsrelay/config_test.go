package natsrelay

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		c.URL = relaycfg.List{"nats://a"}
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"defaults":        {raw: `{"url":"nats://a"}`, want: with(func(*sinkConfig) {})},
		"several servers": {raw: `{"url":"nats://a, nats://b"}`, want: with(func(c *sinkConfig) { c.URL = relaycfg.List{"nats://a", "nats://b"} })},
		"ack_timeout_ms as elsewhere": {raw: `{"url":"nats://a","ack_timeout_ms":250,"max_in_flight":256}`, want: with(func(c *sinkConfig) {
			c.ConfirmTimeout, c.MaxInFlight = relaycfg.Duration(250*time.Millisecond), 256
		})},
		"stream": {raw: `{"url":"nats://a","stream":"S","create_stream":true,"stream_replicas":3,"stream_subjects":"a.>,b","duplicate_window":"1h"}`, want: with(func(c *sinkConfig) {
			c.Stream, c.CreateStream, c.Replicas, c.StreamSubjects, c.DedupWindow = "S", true, 3, relaycfg.List{"a.>", "b"}, relaycfg.Duration(time.Hour)
		})},
		"no url":             {raw: `{}`, wantErr: `key "url": is required`},
		"create what":        {raw: `{"url":"nats://a","create_stream":true}`, wantErr: `key "create_if_missing": needs stream`},
		"unknown key":        {raw: `{"url":"nats://a","max_inflight":1}`, wantErr: `did you mean "max_in_flight"?`},
		"half a key pair":    {raw: `{"url":"nats://a","tls_cert":"x"}`, wantErr: `needs tls_key`},
		"password of nobody": {raw: `{"url":"nats://a","password":"x"}`, wantErr: `needs user`},
		"two identities":     {raw: `{"url":"nats://a","user":"x","token":"y"}`, wantErr: `excludes token`},
		"no window":          {raw: `{"url":"nats://a","max_in_flight":0}`, wantErr: `must be at least 1`},
		"no timeout":         {raw: `{"url":"nats://a","ack_timeout":"0s"}`, wantErr: `must be greater than 0`},
		"pipelining":         {raw: `{"url":"nats://a","pipelining":"ful"}`, wantErr: `did you mean "full"?`},
		"contradiction":      {raw: `{"url":"nats://a","pipelining":"full","strict_order":true}`, wantErr: `contradicts pipelining full`},
		"unknown variable":   {raw: `{"url":"nats://a","subject":"{table}.x"}`, wantErr: `unknown variable {table}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sinkDefaults()
			check(t, tc.raw, relaycfg.Decode([]byte(tc.raw), &got), tc.wantErr, got, tc.want)
		})
	}
}

func TestSourceConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sourceConfig)) sourceConfig {
		c := sourceDefaults()
		c.URL, c.Stream = relaycfg.List{"nats://a"}, "S"
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sourceConfig
		wantErr string
	}{
		"documented example": {raw: `{"url":"nats://a","stream":"S","consumer":"relay-consumer"}`, want: with(func(c *sourceConfig) { c.Consumer = "relay-consumer" })},
		"alias":              {raw: `{"url":"nats://a","stream":"S","durable_name":"d"}`, want: with(func(c *sourceConfig) { c.Consumer = "d" })},
		"ack_wait_seconds":   {raw: `{"url":"nats://a","stream":"S","ack_wait_seconds":10,"max_deliver":5}`, want: with(func(c *sourceConfig) { c.AckWait, c.MaxDeliver = relaycfg.Duration(10*time.Second), 5 })},
		"by start time": {raw: `{"url":"nats://a","stream":"S","deliver_policy":"by_start_time","start_time":"2026-11-22T18:00:00Z"}`, want: with(func(c *sourceConfig) {
			c.DeliverPolicy, c.StartTime = "by_start_time", startTime{time.Date(2026, 11, 22, 18, 0, 0, 0, time.UTC)}
		})},
		"by subject":            {raw: `{"url":"nats://a","subject":"a.>,b"}`, want: with(func(c *sourceConfig) { c.Stream, c.Subject = "", relaycfg.List{"a.>", "b"} })},
		"neither":               {raw: `{"url":"nats://a"}`, wantErr: `key "stream": is required, or subject`},
		"start time of nothing": {raw: `{"url":"nats://a","stream":"S","start_time":"2026-11-22T18:00:00Z"}`, wantErr: `goes together with deliver_policy`},
		"no start time":         {raw: `{"url":"nats://a","stream":"S","deliver_policy":"by_start_time"}`, wantErr: `goes together with deliver_policy`},
		"no time":               {raw: `{"url":"nats://a","stream":"S","start_time":"yesterday"}`, wantErr: `key "start_time"`},
		"consumer with a dot":   {raw: `{"url":"nats://a","stream":"S","consumer":"a.b"}`, wantErr: `a consumer's name has no`},
		"create what":           {raw: `{"url":"nats://a","stream":"S","create_stream":true}`, wantErr: `needs subject`},
		"max_deliver":           {raw: `{"url":"nats://a","stream":"S","max_deliver":0}`, wantErr: `-1 for no limit`},
		"policy":                {raw: `{"url":"nats://a","stream":"S","deliver_policy":"lst"}`, wantErr: `did you mean "last"?`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sourceDefaults()
			check(t, tc.raw, relaycfg.Decode([]byte(tc.raw), &got), tc.wantErr, got, tc.want)
		})
	}
}

// Every key that configurations had before is still one.
func TestOldKeys(t *testing.T) {
	t.Parallel()
	const conn = `"url":"nats://a","credentials_file":"","nkey_file":"","user":"u","password":"p","token":"","tls_ca":"a","tls_cert":"b","tls_key":"c","domain":"d"`
	sink := sinkDefaults()
	for _, mode := range []string{"auto", "full", "per_key"} {
		raw := `{` + conn + `,"stream":"S","subject":"a.{op}","create_stream":true,"stream_subjects":"a.>","stream_replicas":3,"duplicate_window":"1h",
			"ack_timeout":"7s","max_in_flight":9,"pipelining":"` + mode + `"}`
		sink = sinkDefaults()
		if err := relaycfg.Decode([]byte(raw), &sink); err != nil {
			t.Fatalf("Decode(%s) = %v", raw, err)
		}
		if !sink.CreateStream || sink.ConfirmTimeout.D() != 7*time.Second || sink.Pipelining != mode || sink.StrictOrder != (mode == "per_key") {
			t.Errorf("Decode(%s) = %+v", raw, sink)
		}
	}
	raw := `{` + conn + `,"stream":"S","durable_name":"c","subject":"a","deliver_policy":"by_start_time","opt_start_time":"2026-11-22T18:00:00Z","ack_wait":"9s",
		"max_deliver":3,"ack_policy":"explicit","max_ack_pending":7,"create_stream":true,"stream_replicas":3}`
	source := sourceDefaults()
	if err := relaycfg.Decode([]byte(raw), &source); err != nil {
		t.Fatalf("Decode(%s) = %v", raw, err)
	}
	if !source.CreateStream || source.Consumer != "c" || source.StartTime.IsZero() || source.Key.Reveal() != "c" {
		t.Errorf("Decode(%s) = %+v", raw, source)
	}
}

func check(t *testing.T, raw string, err error, wantErr string, got, want any) {
	t.Helper()
	if wantErr != "" {
		if err == nil || !strings.Contains(err.Error(), wantErr) {
			t.Fatalf("Decode(%s) = %v, want error with %q", raw, err, wantErr)
		}
		return
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("Decode(%s) = %+v, %v; want %+v", raw, got, err, want)
	}
}

func TestFilesAreChecked(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	for _, key := range []string{"credentials_file", "nkey_file", "tls_ca"} {
		_, err := trySink(t.Context(), []byte(`{"url":"nats://127.0.0.1:1","stream":"S","`+key+`":"`+missing+`"}`))
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), key) {
			t.Errorf("a %s that is missing = %v, want a fatal error that names the key", key, err)
		}
	}
}

func TestWildcards(t *testing.T) {
	t.Parallel()
	for template, want := range map[string]string{
		"pgtrickle.{stream_table}.{op}": "pgtrickle.*.>",
		"orders.{op}.v1":                "orders.*.v1",
		"orders":                        "orders",
		"{row.region.name}.x-{op}":      "*.>",
		"{{a}}.{op}":                    "{a}.>",
	} {
		parsed, err := relay.ParseTemplate(template)
		if got := wildcards(parsed); err != nil || got != want {
			t.Errorf("wildcards(%q) = %q, %v; want %q", template, got, err, want)
		}
	}
}

func TestOverlap(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"a.b", "a.b", true},
		{"a.b", "a.c", false},
		{"a.*", "a.b", true},
		{"a.*", "a.b.c", false},
		{"a.*", "a", false},
		{"a.>", "a.b.c", true},
		{"a.>", "a", false},
		{">", "a", true},
		{"a", "a.b", false},
		{"*.b", "a.b", true},
		{"a.b.c", "a.b", false},
		{"a.*", "*.b", true},
		{"a.*.c", "*.b.d", false},
		{"a.>", "*.b.c", true},
	} {
		if ab, ba := overlap(tc.a, tc.b), overlap(tc.b, tc.a); ab != tc.want || ba != tc.want {
			t.Errorf("overlap of %q and %q = %t, %t; want %t", tc.a, tc.b, ab, ba, tc.want)
		}
	}
	for subject, want := range map[string]bool{"a.b": true, "": false, "a..b": false, "a b": false, "a.*": false, ">": false, ".a": false, "a.": false, "ä.ø": true} {
		if got := validSubject(subject); got != want {
			t.Errorf("validSubject(%q) = %t, want %t", subject, got, want)
		}
	}
}

// The client's own error quotes the URL, and with it the password.
func TestMalformedURLIsNotQuoted(t *testing.T) {
	t.Parallel()
	for _, password := range []string{"canary8431%", "canary 8431", "canary8431/x:y", "canary8431,b"} {
		cfg := connConfig{URL: strings.Split("nats://user:"+password+"@127.0.0.1:1", ",")}
		_, err := dial(t.Context(), relay.Env{}, &cfg, "")
		if err == nil || strings.Contains(err.Error(), "8431") || strings.Contains(err.Error(), "canary") {
			t.Errorf("dial with password %q = %v, want an error without it", password, err)
		}
	}
}
