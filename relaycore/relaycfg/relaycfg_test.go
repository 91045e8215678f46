package relaycfg_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

type config struct {
	URL     relaycfg.List             `json:"url" relay:"required" doc:"Servers."`
	Policy  string                    `json:"deliver_policy" relay:"enum=all|last|new" doc:"Where to begin."`
	Durable string                    `json:"consumer" relay:"alias=durable_name" doc:"Consumer."`
	Wait    relaycfg.Duration         `json:"ack_wait" doc:"Redelivery."`
	Poll    relaycfg.Duration         `json:"wait_time_seconds" doc:"Poll."`
	Visible relaycfg.Duration         `json:"visibility_timeout" relay:"unit=s" doc:"Visibility."`
	Max     int                       `json:"max_in_flight" relay:"min=1" doc:"Window."`
	Body    relaycfg.Size             `json:"max_body" doc:"Limit."`
	Token   relaycfg.Secret           `json:"token" doc:"Token."`
	Subject relay.Template            `json:"subject" doc:"Subject."`
	Headers map[string]relay.Template `json:"headers" doc:"Headers."`
	Create  bool                      `json:"create_stream" doc:"Create."`
}

func defaults() config {
	return config{Policy: "all", Wait: relaycfg.Duration(30 * time.Second), Max: 4096}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	with := func(change func(*config)) config {
		c := defaults()
		c.URL = relaycfg.List{"a"}
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    config
		wantErr string
	}{
		"defaults stay":        {raw: `{"url":"a"}`, want: with(func(*config) {})},
		"null is the default":  {raw: `{"url":"a","max_in_flight":null}`, want: with(func(*config) {})},
		"list":                 {raw: `{"url":["a","b"]}`, want: with(func(c *config) { c.URL = relaycfg.List{"a", "b"} })},
		"comma list":           {raw: `{"url":"a, b"}`, want: with(func(c *config) { c.URL = relaycfg.List{"a", "b"} })},
		"alias":                {raw: `{"url":"a","durable_name":"d"}`, want: with(func(c *config) { c.Durable = "d" })},
		"duration string":      {raw: `{"url":"a","ack_wait":"250ms"}`, want: with(func(c *config) { c.Wait = relaycfg.Duration(250 * time.Millisecond) })},
		"duration in ms":       {raw: `{"url":"a","ack_wait_ms":250}`, want: with(func(c *config) { c.Wait = relaycfg.Duration(250 * time.Millisecond) })},
		"duration in its name": {raw: `{"url":"a","wait_time_seconds":20}`, want: with(func(c *config) { c.Poll = relaycfg.Duration(20 * time.Second) })},
		"duration with a unit": {raw: `{"url":"a","visibility_timeout":30}`, want: with(func(c *config) { c.Visible = relaycfg.Duration(30 * time.Second) })},
		"size":                 {raw: `{"url":"a","max_body":"1 MiB"}`, want: with(func(c *config) { c.Body = 1 << 20 })},
		"number out of env":    {raw: `{"url":"a","max_in_flight":"7"}`, want: with(func(c *config) { c.Max = 7 })},
		"boolean out of env":   {raw: `{"url":"a","create_stream":"true"}`, want: with(func(c *config) { c.Create = true })},
		"seconds out of env":   {raw: `{"url":"a","wait_time_seconds":"20"}`, want: with(func(c *config) { c.Poll = relaycfg.Duration(20 * time.Second) })},
		"unknown key":          {raw: `{"url":"a","max_inflight":1}`, wantErr: `key "max_inflight": unknown key; did you mean "max_in_flight"?`},
		"missing":              {raw: `{}`, wantErr: `key "url": is required: Servers.`},
		"empty":                {raw: ``, wantErr: `key "url": is required`},
		"wrong type":           {raw: `{"url":"a","create_stream":"yes"}`, wantErr: `key "create_stream": wants boolean, not the string "yes"`},
		"enum":                 {raw: `{"url":"a","deliver_policy":"al"}`, wantErr: `unknown value "al"; did you mean "all"?`},
		"no unit":              {raw: `{"url":"a","ack_wait":30}`, wantErr: `wants a duration with a unit, such as "30s"`},
		"negative duration":    {raw: `{"url":"a","ack_wait":"-1s"}`, wantErr: `must not be negative`},
		"too small":            {raw: `{"url":"a","max_in_flight":0}`, wantErr: `must be at least 1`},
		"twice":                {raw: `{"url":"a","consumer":"x","durable_name":"y"}`, wantErr: `is the same key as "consumer"`},
		"template":             {raw: `{"url":"a","subject":"{stream}.x"}`, wantErr: `unknown variable {stream}`},
		"secret of wrong type": {raw: `{"url":"a","token":5}`, wantErr: `key "token": wants a string`},
		"not an object":        {raw: `[]`, wantErr: `not a JSON object`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := defaults()
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

// TestDecodeBounds: the bounds of a value, and keys that depend on each other.
func TestDecodeBounds(t *testing.T) {
	t.Parallel()
	type bounds struct {
		Cert    string            `json:"cert" relay:"needs=key" doc:"Certificate."`
		Key     relaycfg.Secret   `json:"key" relay:"needs=cert,alias=cert_key" doc:"Its key."`
		User    string            `json:"user" relay:"needs=password|realm,excludes=cert|token" doc:"User."`
		Secret  string            `json:"password" doc:"Password."`
		Realm   string            `json:"realm" doc:"Realm."`
		Token   string            `json:"token" doc:"Token."`
		Count   int               `json:"count" relay:"min=1,max=10" doc:"Count."`
		Bytes   relaycfg.Size     `json:"bytes" relay:"max=1024" doc:"Bytes."`
		Wait    relaycfg.Duration `json:"wait" relay:"min=1,max=20000000000" doc:"Wait."`
		Group   string            `json:"group" relay:"required" doc:"Group."`
		Follows bool              `json:"follow" relay:"needs=realm" doc:"Follow."`
	}
	for raw, want := range map[string]string{
		`{}`:                          "",
		`{"cert":"c","cert_key":"k"}`: "",
		`{"cert":"c"}`:                `key "cert": needs key: set both or none`,
		`{"key":"k","cert":""}`:       `key "key": needs cert: set both or none`,
		`{"user":"u","password":"p"}`: `key "user": needs realm: set both or none`,
		`{"user":"u"}`:                "key \"user\": needs password: set both or none\nkey \"user\": needs realm: set both or none",
		`{"follow":true}`:             `key "follow": needs realm: set both or none`,
		`{"follow":false}`:            "",
		`{"user":"u","password":"p","realm":"r"}`:             "",
		`{"user":"u","password":"p","realm":"r","token":"t"}`: `key "user": excludes token: set one of them`,
		`{"count":10,"bytes":1024,"wait":"20s"}`:              "",
		`{"count":11}`:                                        `key "count": is 11; must be at most 10`,
		`{"count":0}`:                                         `key "count": is 0; must be at least 1`,
		`{"bytes":"1MiB"}`:                                    `key "bytes": is 1048576; must be at most 1024`,
		`{"wait":"21s"}`:                                      `key "wait": is 21s; must be at most 20s`,
		`{"wait":"0s"}`:                                       `key "wait": is 0s; must be greater than 0`,
		`{"group":""}`:                                        `key "group": is required: Group.`,
	} {
		text := ""
		if err := relaycfg.Decode([]byte(raw), &bounds{Count: 1, Group: "g"}); err != nil {
			text = err.Error()
		}
		if text != want {
			t.Errorf("Decode(%s) = %q, want %q", raw, text, want)
		}
	}
	for _, key := range relaycfg.Keys(bounds{Group: "g"}) {
		if key.Required {
			t.Errorf("key %s has a default and counts as one that must be present", key.Name)
		}
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	t.Parallel()
	c := config{Token: "hunter2"}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(format, c); strings.Contains(out, "hunter2") {
			t.Errorf("Sprintf(%q) = %s, want the token hidden", format, out)
		}
	}
}

func TestExpand(t *testing.T) {
	t.Setenv("RELAYCFG_TEST", `pass"word`)
	got, err := relaycfg.Unrestricted().Expand([]byte(`{"url":"x://u:${env:RELAYCFG_TEST}@h/${ENV:RELAYCFG_TEST}","n":12345678901234567890}`))
	want := `{"n":12345678901234567890,"url":"x://u:pass\"word@h/pass\"word"}`
	if err != nil || string(got) != want {
		t.Errorf("Expand = %s, %v; want %s", got, err, want)
	}
	_, err = relaycfg.Unrestricted().Expand([]byte(`{"a":{"token":"${env:RELAYCFG_UNSET}"}}`))
	if err == nil || err.Error() != `key "a.token": ${env:RELAYCFG_UNSET}: environment variable is not set` {
		t.Errorf("Expand of an unset variable = %v", err)
	}
}
