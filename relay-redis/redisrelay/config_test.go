package redisrelay

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		c.URL = "redis://h"
		change(&c)
		return c
	}
	stream, _ := relay.ParseTemplate("x:{op}")
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"defaults stay": {raw: `{"url":"redis://h"}`, want: with(func(*sinkConfig) {})},
		"alias":         {raw: `{"url":"redis://h","stream_key":"x:{op}"}`, want: with(func(c *sinkConfig) { c.Stream = stream })},
		"minid id":      {raw: `{"url":"redis://h","minid":"5-0"}`, want: with(func(c *sinkConfig) { c.MinID = "5-0" })},
		"minid age":     {raw: `{"url":"redis://h","minid":"72h"}`, want: with(func(c *sinkConfig) { c.MinID = "72h" })},
		"all of the rest": {raw: `{"url":"redis://h","username":"u","password":"p","tls":true,"tls_ca":"a","tls_cert":"b","tls_key":"c","confirm_timeout":"1s","maxlen":5,"resume":false,"wait_replicas":1,"wait_timeout":"2s"}`, want: with(func(c *sinkConfig) {
			c.Username, c.Password, c.Use, c.TLS = "u", "p", true, relaynet.TLS{CA: "a", Cert: "b", Key: "c"}
			c.ConfirmTimeout, c.MaxLen, c.Resume, c.WaitReplicas, c.WaitTimeout = relaycfg.Duration(time.Second), 5, false, 1, relaycfg.Duration(2*time.Second)
		})},
		"no url":      {raw: `{}`, wantErr: `key "url": is required`},
		"no stream":   {raw: `{"url":"redis://h","stream":""}`, wantErr: `key "stream": is required`},
		"no scheme":   {raw: `{"url":"h:6379"}`, wantErr: `key "url": has no scheme`},
		"scheme":      {raw: `{"url":"http://u:hunter2@h"}`, wantErr: `unknown scheme "http"`},
		"kind":        {raw: `{"url":"redis+ring://u:hunter2@h"}`, wantErr: `unknown scheme "redis+ring"`},
		"malformed":   {raw: `{"url":"redis://u:hunter2@h:x"}`, wantErr: `key "url": is malformed`},
		"parameter":   {raw: `{"url":"redis://u:hunter2@h?read_timout=1s"}`, wantErr: `key "url": is malformed`},
		"no master":   {raw: `{"url":"redis+sentinel://u:hunter2@h"}`, wantErr: `names no master`},
		"both trims":  {raw: `{"url":"redis://h","maxlen":1,"minid":"1h"}`, wantErr: `key "maxlen": excludes minid`},
		"bad minid":   {raw: `{"url":"redis://h","minid":"yesterday"}`, wantErr: `wants an entry id`},
		"half a cert": {raw: `{"url":"redis://h","tls_key":"k"}`, wantErr: `needs tls_cert`},
		"unknown key": {raw: `{"url":"redis://h","max_len":1}`, wantErr: `did you mean "maxlen"?`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sinkDefaults()
			checkDecode(t, tc.raw, relaycfg.Decode([]byte(tc.raw), &got), tc.wantErr, got, tc.want)
		})
	}
}

func TestSourceConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sourceConfig)) sourceConfig {
		c := sourceDefaults()
		c.URL, c.Stream = "redis://h", "s"
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sourceConfig
		wantErr string
	}{
		"defaults stay": {raw: `{"url":"redis://h","stream":"s"}`, want: with(func(*sourceConfig) {})},
		"aliases":       {raw: `{"url":"redis://h","stream_key":"s","group_name":"g","consumer_name":"c"}`, want: with(func(c *sourceConfig) { c.Group, c.Consumer = "g", "c" })},
		"the rest": {raw: `{"url":"redis://h","stream":"s","start_id":"$","block_ms":50,"claim_idle":"2s"}`, want: with(func(c *sourceConfig) {
			c.StartID, c.Block, c.ClaimIdle = "$", relaycfg.Duration(50*time.Millisecond), relaycfg.Duration(2*time.Second)
		})},
		"no stream":   {raw: `{"url":"redis://h"}`, wantErr: `key "stream": is required`},
		"start_id":    {raw: `{"url":"redis://h","stream":"s","start_id":"first"}`, wantErr: `must be 0, $ or an entry id`},
		"no consumer": {raw: `{"url":"redis://h","stream":"s","consumer":""}`, wantErr: `key "consumer": is required`},
		"no block":    {raw: `{"url":"redis://h","stream":"s","block":"0s"}`, wantErr: `key "block"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sourceDefaults()
			checkDecode(t, tc.raw, relaycfg.Decode([]byte(tc.raw), &got), tc.wantErr, got, tc.want)
		})
	}
}

func checkDecode(t *testing.T, raw string, err error, wantErr string, got, want any) {
	t.Helper()
	switch {
	case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
		t.Fatalf("Decode(%s) = %v, want error with %q", raw, err, wantErr)
	case wantErr != "" && strings.Contains(err.Error(), "hunter2"):
		t.Fatalf("Decode(%s) = %v, which shows the password", raw, err)
	case wantErr == "" && (err != nil || !reflect.DeepEqual(got, want)):
		t.Fatalf("Decode(%s) = %+v, %v; want %+v", raw, got, err, want)
	}
}

func TestParseURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]struct {
		kind  string
		addrs string
	}{
		"redis://h":                                      {"single", "h:6379"},
		"rediss://u:p@h:1/3":                             {"single", "h:1"},
		"unix:///run/redis.sock":                         {"single", "/run/redis.sock"},
		"redis+cluster://a:1,b:2,c:3":                    {"cluster", "a:1 b:2 c:3"},
		"rediss+cluster://u:p@a:1":                       {"cluster", "a:1"},
		"redis://a:1?addr=b:2":                           {"cluster", "a:1 b:2"},
		"redis+sentinel://a:1,b:2/mymaster":              {"sentinel", "mymaster a:1 b:2"},
		"redis+sentinel://u:p@a:1,b:2/mymaster/4":        {"sentinel", "mymaster a:1 b:2"},
		"redis://a:1?master_name=mymaster&addr=b:2":      {"sentinel", "mymaster a:1 b:2"},
		"redis+sentinel://a:1/?master_name=other":        {"sentinel", "other a:1"},
		"redis+sentinel://a:1?master_name=m&password=pw": {"sentinel", "m a:1"},
	} {
		opts, err := parseURL(raw)
		if err != nil {
			t.Errorf("parseURL(%q) = %v", raw, err)
			continue
		}
		kind, addrs := "", ""
		switch o := opts.(type) {
		case *redis.Options:
			kind, addrs = "single", o.Addr
		case *redis.ClusterOptions:
			kind, addrs = "cluster", strings.Join(o.Addrs, " ")
		case *redis.FailoverOptions:
			kind, addrs = "sentinel", o.MasterName+" "+strings.Join(o.SentinelAddrs, " ")
		}
		if kind != want.kind || addrs != want.addrs {
			t.Errorf("parseURL(%q) = %s, %q; want %s, %q", raw, kind, addrs, want.kind, want.addrs)
		}
	}
}

// TestSkipVerifyIsRefused: no URL switches verification off unnoticed.
func TestSkipVerifyIsRefused(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"rediss://h?skip_verify=true", "rediss+sentinel://a:1/m?skip_verify=true"} {
		_, err := newClients(relay.Env{}, &connConfig{URL: relaycfg.Secret(url)}, new(relaynet.Dialer), 1)
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), "skip_verify") {
			t.Errorf("%s: %v, want a fatal error that names skip_verify", url, err)
		}
	}
}

// Every key that configurations had before is still one.
func TestOldKeys(t *testing.T) {
	t.Parallel()
	const conn = `"url":"redis://h","username":"u","password":"p","tls":true,"tls_ca":"a","tls_cert":"b","tls_key":"c"`
	for _, timeout := range []string{`"timeout":"7s"`, `"timeout_ms":7000`, `"timeout_seconds":7`} {
		sink, source := sinkDefaults(), sourceDefaults()
		raw := `{` + conn + `,` + timeout + `,"stream_key":"x:{op}","maxlen":1,"minid":"","resume":false,"wait_replicas":2,"wait_timeout":"3s"}`
		if err := relaycfg.Decode([]byte(raw), &sink); err != nil || sink.ConfirmTimeout.D() != 7*time.Second || sink.Stream.String() != "x:{op}" || sink.Key.Reveal() != "c" {
			t.Errorf("Decode(%s) = %v, %+v", raw, err, sink)
		}
		raw = `{` + conn + `,` + timeout + `,"stream_key":"s","group_name":"g","consumer_name":"c","start_id":"0","block":"1s","claim_idle":"1m"}`
		if err := relaycfg.Decode([]byte(raw), &source); err != nil || source.ConfirmTimeout.D() != 7*time.Second || source.Group != "g" || source.Consumer != "c" {
			t.Errorf("Decode(%s) = %v, %+v", raw, err, source)
		}
	}
}

func TestPattern(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"pgtrickle:{stream_table}": "pgtrickle:*", "a[1]*:{row.id}:{op}": `a\[1\]\*:*:*`,
		"{{a}}:{op}": "{a}:*",
	} {
		tmpl, err := relay.ParseTemplate(text)
		if got := tmpl.Pattern("*", special); err != nil || got != want {
			t.Errorf("Pattern of %q = %q, %v; want %q", text, got, err, want)
		}
	}
}
