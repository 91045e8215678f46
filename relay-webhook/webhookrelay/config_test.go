package webhookrelay

import (
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		raw     string
		check   func(*sinkConfig) bool
		wantErr string
	}{
		"defaults": {raw: `{"url":"https://h/x"}`, check: func(c *sinkConfig) bool {
			return c.Concurrency == 16 && c.ConfirmTimeout.D() == 10*time.Second && c.Method == "POST" && c.Mode == modeEvent && len(c.RetryOnStatus) == 6
		}},
		"timeout_ms":         {raw: `{"url":"https://h","timeout_ms":1500}`, check: func(c *sinkConfig) bool { return c.ConfirmTimeout.D() == 1500*time.Millisecond }},
		"batch mode":         {raw: `{"url":"https://h","batch_mode":true}`, check: func(c *sinkConfig) bool { return c.Mode == modeBatch }},
		"secrets":            {raw: `{"url":"https://h","signing_secret":["whsec_YWI=","c"]}`, check: func(c *sinkConfig) bool { return string(c.secrets[0]) == "ab" && string(c.secrets[1]) == "c" }},
		"variables":          {raw: `{"url":"https://h/{op}?id={row.id}"}`, check: func(c *sinkConfig) bool { return !c.URL.Fixed() }},
		"no url":             {raw: `{}`, wantErr: `key "url": is required`},
		"other scheme":       {raw: `{"url":"ftp://h/x"}`, wantErr: `must begin with http:// or https://`},
		"variable in host":   {raw: `{"url":"https://{row.host}/x"}`, wantErr: "has a variable in its host"},
		"variable for host":  {raw: `{"url":"https://h{row.x}"}`, wantErr: "has a variable in its host"},
		"no host":            {raw: `{"url":"https:///x"}`, wantErr: "no valid host"},
		"bad header":         {raw: `{"url":"https://h","headers":{"a b":"c"}}`, wantErr: `key "headers.a b": is not a valid name`},
		"reserved header":    {raw: `{"url":"https://h","headers":{"webhook-id":"c"}}`, wantErr: "is written by the relay"},
		"method":             {raw: `{"url":"https://h","method":"GET"}`, wantErr: `unknown value "GET"`},
		"mode":               {raw: `{"url":"https://h","mode":"batches"}`, wantErr: `did you mean "batch"?`},
		"retry on success":   {raw: `{"url":"https://h","retry_on_status":[200]}`, wantErr: "between 300 and 599"},
		"broken secret":      {raw: `{"url":"https://h","signing_secret":"whsec_!"}`, wantErr: "is not base64"},
		"empty secret":       {raw: `{"url":"https://h","signing_secret":"whsec_"}`, wantErr: "is empty"},
		"key without cert":   {raw: `{"url":"https://h","tls_key":"x"}`, wantErr: "set both or none"},
		"unknown key":        {raw: `{"url":"https://h","retry_on_statuses":[500]}`, wantErr: `did you mean "retry_on_status"?`},
		"missing authority":  {raw: `{"url":"https://h","tls_ca":"/nowhere.pem"}`, wantErr: `key "tls_ca"`},
		"missing client key": {raw: `{"url":"https://h","tls_cert":"/nowhere.pem","tls_key":"/nowhere.key"}`, wantErr: `key "tls_cert"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := sinkDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &cfg)
			if err == nil {
				_, err = cfg.TLS.Client(relay.Env{}.Read)
			}
			checkConfig(t, tc.raw, err, tc.wantErr)
			if err == nil && !tc.check(&cfg) {
				t.Errorf("Decode(%s) = %+v", tc.raw, cfg)
			}
		})
	}
}

func checkConfig(t *testing.T, raw string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("Decode(%s) = %v", raw, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("Decode(%s) = %v, want an error with %q", raw, err, want)
	}
}

func TestSourceConfig(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		raw     string
		check   func(*sourceConfig) bool
		wantErr string
	}{
		"defaults": {raw: `{"auth":"none"}`, check: func(c *sourceConfig) bool {
			return c.Bind == "127.0.0.1:8080" && c.Path == "/events" && c.MaxBody == 1<<20 && c.Auth == authNone
		}},
		"aliases":          {raw: `{"listen_addr":":1","max_body_bytes":5,"auth":"bearer","auth_value":"s"}`, check: func(c *sourceConfig) bool { return c.Bind == ":1" && c.MaxBody == 5 && string(c.secrets[0]) == "s" }},
		"standard":         {raw: `{"auth":"standard-webhooks","secret":"whsec_YWI="}`, check: func(c *sourceConfig) bool { return string(c.secrets[0]) == "ab" }},
		"as it is":         {raw: `{"auth":"hmac","secret":"whsec_YWI="}`, check: func(c *sourceConfig) bool { return string(c.secrets[0]) == "whsec_YWI=" }},
		"path":             {raw: `{"auth":"none","path":"events"}`, wantErr: "must be a path that begins with /"},
		"no auth":          {raw: `{}`, wantErr: `key "auth": is required: How a request proves where it comes from; write none to accept all requests`},
		"empty auth":       {raw: `{"auth":""}`, wantErr: `key "auth": unknown value ""; must be one of none,`},
		"timestamp_header": {raw: `{"auth":"hmac","secret":"s","timestamp_header":"a b"}`, wantErr: "not a valid name"},
		"no timestamp":     {raw: `{"auth":"github","secret":"s","timestamp_header":"T"}`, wantErr: "only auth hmac"},
		"no secret":        {raw: `{"auth":"hmac"}`, wantErr: "is required with auth hmac"},
		"empty secret":     {raw: `{"auth":"hmac","secret":["a",""]}`, wantErr: "is empty"},
		"secret unused":    {raw: `{"auth":"none","secret":"x"}`, wantErr: "has no effect with auth none"},
		"auth":             {raw: `{"auth":"strip","secret":"x"}`, wantErr: `did you mean "stripe"?`},
		"client_ca, plain": {raw: `{"auth":"none","client_ca":"x"}`, wantErr: "needs tls_cert"},
		"key without cert": {raw: `{"auth":"none","tls_key":"x"}`, wantErr: "set both or none"},
		"no room":          {raw: `{"auth":"none","max_pending":100}`, wantErr: "max_body and 1 KiB"},
		"no room for one":  {raw: `{"auth":"none","max_body":100,"max_pending":100}`, wantErr: "must be at least 1124"},
		"room for one":     {raw: `{"auth":"none","max_body":100,"max_pending":1124}`, check: func(c *sourceConfig) bool { return c.MaxPending == 1124 }},
		"auth_header":      {raw: `{"auth":"none","auth_header":"a b"}`, wantErr: "not a valid name"},
		"signature_header": {raw: `{"auth":"none","signature_header":""}`, wantErr: "not a valid name"},
		"on_missing_id":    {raw: `{"auth":"none","on_missing_id":"random"}`, wantErr: "must be one of refuse, hash"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := sourceDefaults()
			err := relaycfg.Decode([]byte(tc.raw), &cfg)
			checkConfig(t, tc.raw, err, tc.wantErr)
			if err == nil && !tc.check(&cfg) {
				t.Errorf("Decode(%s) = %+v", tc.raw, cfg)
			}
		})
	}
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	for bind, want := range map[string]string{"nonsense": "missing port", "127.0.0.1:99999": "invalid port"} {
		_, err := tryOpenSource(t, Backend(), map[string]any{"bind": bind, "auth": "none"})
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("NewSource on %s = %v, want a fatal error with %q", bind, err, want)
		}
	}
}

// docs/config.md is made from the fields' tags.
func TestEveryKeyIsDocumented(t *testing.T) {
	t.Parallel()
	for _, cfg := range []any{sinkDefaults(), sourceDefaults()} {
		for _, k := range relaycfg.Keys(cfg) {
			if k.Doc == "" {
				t.Errorf("key %q has no doc", k.Name)
			}
		}
	}
}

// Keys of earlier versions are still valid.
func TestOldKeys(t *testing.T) {
	t.Parallel()
	for key, value := range map[string]string{"timeout": `"3s"`, "timeout_ms": `3000`, "timeout_seconds": `3`, "confirm_timeout": `"3s"`} {
		cfg := sinkDefaults()
		raw := `{"url":"https://h","` + key + `":` + value + `}`
		if err := relaycfg.Decode([]byte(raw), &cfg); err != nil || cfg.ConfirmTimeout.D() != 3*time.Second {
			t.Errorf("Decode(%s) = %v, confirm_timeout %s; want 3s", raw, err, cfg.ConfirmTimeout)
		}
	}
}

// The keys of TLS have the names that they had before they were shared.
func TestTLSKeys(t *testing.T) {
	t.Parallel()
	sink, source := sinkDefaults(), sourceDefaults()
	err := relaycfg.Decode([]byte(`{"url":"https://h","tls_ca":"ca","tls_cert":"cert","tls_key":"key"}`), &sink)
	if want := (relaynet.TLS{CA: "ca", Cert: "cert", Key: "key"}); err != nil || sink.TLS != want {
		t.Errorf("Decode of a sink = %v, %+v; want %+v", err, sink.TLS, want)
	}
	err = relaycfg.Decode([]byte(`{"auth":"none","tls_cert":"cert","tls_key":"key","client_ca":"ca"}`), &source)
	if want := (relaynet.ServerTLS{Cert: "cert", Key: "key", ClientCA: "ca"}); err != nil || source.ServerTLS != want {
		t.Errorf("Decode of a source = %v, %+v; want %+v", err, source.ServerTLS, want)
	}
}
