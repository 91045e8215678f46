package sqsrelay

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

const awsURL = "https://sqs.eu-west-1.amazonaws.com/123456789012/orders.fifo"

func TestSinkConfig(t *testing.T) {
	t.Parallel()
	with := func(change func(*sinkConfig)) sinkConfig {
		c := sinkDefaults()
		c.QueueURL, c.Region = awsURL, "eu-west-1"
		change(&c)
		return c
	}
	group, err := relay.ParseTemplate("{row.customer}")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw     string
		want    sinkConfig
		wantErr string
	}{
		"region of the URL": {raw: `{"queue_url":"` + awsURL + `"}`, want: with(func(*sinkConfig) {})},
		"region":            {raw: `{"queue_url":"` + awsURL + `","region":"eu-north-1"}`, want: with(func(c *sinkConfig) { c.Region = "eu-north-1" })},
		"endpoint of the URL": {raw: `{"queue_url":"http://localhost:9324/000000000000/q"}`, want: with(func(c *sinkConfig) {
			c.QueueURL, c.Endpoint, c.Region = "http://localhost:9324/000000000000/q", "http://localhost:9324", "us-east-1"
		})},
		"endpoint": {raw: `{"queue_url":"` + awsURL + `","endpoint":"https://vpce-1.example"}`, want: with(func(c *sinkConfig) { c.Endpoint = "https://vpce-1.example" })},
		"group":    {raw: `{"queue_url":"` + awsURL + `","message_group_id":"{row.customer}","batch_same_group":true,"concurrency":8}`, want: with(func(c *sinkConfig) { c.MessageGroupID, c.BatchSameGroup, c.Concurrency = group, true, 8 })},
		"credentials": {raw: `{"queue_url":"` + awsURL + `","access_key_id":"a","secret_access_key":"b","session_token":"c","role_arn":"arn:aws:iam::1:role/r","request_timeout":"3s"}`, want: with(func(c *sinkConfig) {
			c.AccessKeyID, c.SecretAccessKey, c.SessionToken, c.RoleARN, c.ConfirmTimeout = "a", "b", "c", "arn:aws:iam::1:role/r", relaycfg.Duration(3*time.Second)
		})},
		"new name":                {raw: `{"queue_url":"` + awsURL + `","confirm_timeout":"3s"}`, want: with(func(c *sinkConfig) { c.ConfirmTimeout = relaycfg.Duration(3 * time.Second) })},
		"no queue":                {raw: `{}`, wantErr: `key "queue_url": is required`},
		"not a URL":               {raw: `{"queue_url":"orders"}`, wantErr: `is not the URL of a queue`},
		"unknown key":             {raw: `{"queue_url":"` + awsURL + `","queue":"x"}`, wantErr: `key "queue": unknown key`},
		"group of standard queue": {raw: `{"queue_url":"http://localhost:9324/0/q","message_group_id":"x"}`, wantErr: `is for FIFO queues`},
		"half of credentials":     {raw: `{"queue_url":"` + awsURL + `","access_key_id":"a"}`, wantErr: `needs secret_access_key`},
		"token alone":             {raw: `{"queue_url":"` + awsURL + `","session_token":"a"}`, wantErr: `needs access_key_id`},
		"no concurrency":          {raw: `{"queue_url":"` + awsURL + `","concurrency":0}`, wantErr: `must be at least 1`},
		"too much concurrency":    {raw: `{"queue_url":"` + awsURL + `","concurrency":1000}`, wantErr: `must be at most 100`},
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
		"least":          {raw: `{"queue_url":"` + awsURL + `"}`},
		"numbers":        {raw: `{"queue_url":"` + awsURL + `","wait_time_seconds":5,"visibility_timeout":60,"max_messages":3}`},
		"texts":          {raw: `{"queue_url":"` + awsURL + `","wait_time_seconds":"5s","visibility_timeout":"1m"}`},
		"messages":       {raw: `{"queue_url":"` + awsURL + `","max_messages":11}`, wantErr: `must be at most 10`},
		"wait":           {raw: `{"queue_url":"` + awsURL + `","wait_time_seconds":21}`, wantErr: `at most 20`},
		"visibility":     {raw: `{"queue_url":"` + awsURL + `","visibility_timeout":"13h"}`, wantErr: `at most 12h`},
		"no visibility":  {raw: `{"queue_url":"` + awsURL + `","visibility_timeout":0}`, wantErr: `must be at least`},
		"part of second": {raw: `{"queue_url":"` + awsURL + `","visibility_timeout":"1500ms"}`, wantErr: `whole seconds`},
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

func TestEveryKeyHasDoc(t *testing.T) {
	t.Parallel()
	for _, cfg := range []any{sinkDefaults(), sourceDefaults()} {
		for _, key := range relaycfg.Keys(cfg) {
			if key.Doc == "" {
				t.Errorf("key %q has no doc", key.Name)
			}
		}
	}
}
