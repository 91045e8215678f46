package rabbitmqrelay

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		c.URL = relaycfg.Secrets{"amqp://h"}
		change(&c)
		return c
	}
	key, _ := relay.ParseTemplate("x.{op}")
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"defaults stay": {raw: `{"url":"amqp://h"}`, want: with(func(*sinkConfig) {})},
		"list":          {raw: `{"url":["amqp://h","amqp://i"]}`, want: with(func(c *sinkConfig) { c.URL = relaycfg.Secrets{"amqp://h", "amqp://i"} })},
		"alias":         {raw: `{"url":"amqp://h","routing_key_template":"x.{op}"}`, want: with(func(c *sinkConfig) { c.RoutingKey = key })},
		"all of the rest": {raw: `{"url":"amqp://h","exchange":"e","exchange_type":"fanout","declare_exchange":true,"mandatory":false,"persistent":false,"strict_order":true,"max_in_flight":7,"confirm_timeout":"1s","heartbeat":"5s","timeout":"2s"}`, want: with(func(c *sinkConfig) {
			c.Exchange, c.ExchangeType, c.CreateIfMissing, c.Mandatory, c.Persistent, c.StrictOrder = "e", "fanout", true, false, false, true
			c.MaxInFlight, c.ConfirmTimeout, c.Heartbeat, c.Timeout = 7, relaycfg.Duration(time.Second), relaycfg.Duration(5*time.Second), relaycfg.Duration(2*time.Second)
		})},
		"new names": {raw: `{"url":"amqp://h","exchange":"e","create_if_missing":true}`, want: with(func(c *sinkConfig) {
			c.Exchange, c.CreateIfMissing = "e", true
		})},
		"tls keys": {raw: `{"url":"amqp://h","tls":true,"tls_ca":"a","tls_cert":"b","tls_key":"c","tls_server_name":"d"}`, want: with(func(c *sinkConfig) {
			c.Use, c.CA, c.Cert, c.Key, c.ServerName = true, "a", "b", "c", "d"
		})},
		"no url":           {raw: `{}`, wantErr: `key "url": is required`},
		"not amqp":         {raw: `{"url":"http://u:hunter2@h"}`, wantErr: `key "url": number 1 is malformed`},
		"malformed":        {raw: `{"url":"amqp://u:hunter2@h:x"}`, wantErr: `key "url": number 1 is malformed`},
		"declare default":  {raw: `{"url":"amqp://h","declare_exchange":true}`, wantErr: `key "create_if_missing": needs exchange`},
		"half a cert":      {raw: `{"url":"amqp://h","tls_cert":"c"}`, wantErr: `key "tls_cert"`},
		"unknown variable": {raw: `{"url":"amqp://h","routing_key":"{table}"}`, wantErr: `unknown variable {table}`},
		"unknown key":      {raw: `{"url":"amqp://h","exchnge":"x"}`, wantErr: `did you mean "exchange"?`},
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
		c.URL, c.Queue = relaycfg.Secrets{"amqp://h"}, "q"
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sourceConfig
		wantErr string
	}{
		"defaults stay": {raw: `{"url":"amqp://h","queue":"q"}`, want: with(func(*sourceConfig) {})},
		"alias":         {raw: `{"url":"amqp://h","queue":"q","prefetch_count":5}`, want: with(func(c *sourceConfig) { c.Prefetch = 5 })},
		"all of the rest": {raw: `{"url":"amqp://h","queue":"q","declare_queue":true,"queue_type":"stream","bind_exchange":"e","bind_keys":"a,b","on_reject":"drop","id":"hash","max_deliveries":3,"consumer_tag":"t","stream_offset":"1h","offset_queue":"o"}`, want: with(func(c *sourceConfig) {
			c.CreateIfMissing, c.QueueType, c.BindExchange, c.BindKeys = true, "stream", "e", relaycfg.List{"a", "b"}
			c.OnReject, c.ID, c.MaxDeliveries, c.ConsumerTag, c.StreamOffset, c.OffsetQueue = "drop", "hash", 3, "t", "1h", "o"
		})},
		"new names":  {raw: `{"url":"amqp://h","queue":"q","create_if_missing":true}`, want: with(func(c *sourceConfig) { c.CreateIfMissing = true })},
		"no queue":   {raw: `{"url":"amqp://h"}`, wantErr: `key "queue": is required`},
		"queue type": {raw: `{"url":"amqp://h","queue":"q","queue_type":"lazy"}`, wantErr: `must be one of quorum, classic, stream`},
		"on_reject":  {raw: `{"url":"amqp://h","queue":"q","on_reject":"deadletter"}`, wantErr: `did you mean "dead-letter"?`},
		"prefetch":   {raw: `{"url":"amqp://h","queue":"q","prefetch":70000}`, wantErr: `must be at most 65535`},
		"unlimited":  {raw: `{"url":"amqp://h","queue":"q","prefetch":0}`, wantErr: `must be at least 1`},
		"bind":       {raw: `{"url":"amqp://h","queue":"q","bind_exchange":"e"}`, wantErr: `needs create_if_missing`},
		"offset":     {raw: `{"url":"amqp://h","queue":"q","stream_offset":"oldest"}`, wantErr: `must be first, last, next`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := sourceDefaults()
			checkDecode(t, tc.raw, relaycfg.Decode([]byte(tc.raw), &got), tc.wantErr, got, tc.want)
		})
	}
}

var compared = cmp.Options{
	cmp.AllowUnexported(sinkConfig{}, sourceConfig{}),
	cmp.Comparer(func(a, b relay.Template) bool { return a.String() == b.String() }),
	cmp.Comparer(func(a, b relaycfg.Secret) bool { return a == b }),
}

func checkDecode(t *testing.T, raw string, err error, wantErr string, got, want any) {
	t.Helper()
	switch {
	case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
		t.Fatalf("Decode(%s) = %v, want error with %q", raw, err, wantErr)
	case wantErr != "" && strings.Contains(err.Error(), "hunter2"):
		t.Fatalf("Decode(%s) = %v, which shows the password", raw, err)
	case wantErr != "":
	case err != nil:
		t.Fatalf("Decode(%s) = %v", raw, err)
	case !cmp.Equal(got, want, compared):
		t.Fatalf("Decode(%s) (-want +got):\n%s", raw, cmp.Diff(want, got, compared))
	}
}

func TestTLSIsImplied(t *testing.T) {
	t.Parallel()
	for _, keys := range []relaynet.OptionalTLS{{Use: true}, {TLS: relaynet.TLS{CA: "x"}}, {TLS: relaynet.TLS{Cert: "x"}}} {
		c := connConfig{URL: relaycfg.Secrets{"amqp://a, amqps://b"}, OptionalTLS: keys}
		if got, want := c.urls(), []string{"amqps://a", "amqps://b"}; !slices.Equal(got, want) {
			t.Errorf("urls() = %q, want %q", got, want)
		}
	}
}
