package relay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errPlain = errors.New("connection reset")

func TestErrorClasses(t *testing.T) {
	t.Parallel()
	batch := &relay.BatchError{Failed: map[int]error{3: relay.Permanent(errPlain)}}
	for name, tc := range map[string]struct {
		err              error
		permanent, fatal bool
	}{
		"plain":                     {err: errPlain},
		"nil":                       {},
		"permanent":                 {err: relay.Permanent(errPlain), permanent: true},
		"fatal":                     {err: relay.Fatal(errPlain), fatal: true},
		"wrapped":                   {err: fmt.Errorf("publish: %w", relay.Permanent(errPlain)), permanent: true},
		"the outer mark counts":     {err: relay.Fatal(relay.Permanent(errPlain)), fatal: true},
		"joined":                    {err: errors.Join(errPlain, relay.Fatal(errPlain)), fatal: true},
		"a batch has none":          {err: batch},
		"a wrapped batch has none":  {err: fmt.Errorf("publish: %w", batch)},
		"a marked batch is as said": {err: relay.Fatal(batch), fatal: true},
		"asked to wait":             {err: relay.RetryAfter(relay.Permanent(errPlain), time.Second), permanent: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if p, f := relay.IsPermanent(tc.err), relay.IsFatal(tc.err); p != tc.permanent || f != tc.fatal {
				t.Errorf("IsPermanent, IsFatal of %v = %v, %v; want %v, %v", tc.err, p, f, tc.permanent, tc.fatal)
			}
			if tc.err != nil && !errors.Is(tc.err, errPlain) {
				t.Errorf("errors.Is(%v, cause) = false", tc.err)
			}
		})
	}
	if relay.Permanent(nil) != nil || relay.Fatal(nil) != nil || relay.RetryAfter(nil, 1) != nil {
		t.Error("a mark on nil is not nil")
	}
}

func TestRetryDelay(t *testing.T) {
	t.Parallel()
	batch := &relay.BatchError{Failed: map[int]error{1: relay.RetryAfter(errPlain, 7*time.Second)}}
	for _, err := range []error{relay.RetryAfter(errPlain, 7*time.Second), fmt.Errorf("x: %w", batch)} {
		if d, ok := relay.RetryDelay(err); !ok || d != 7*time.Second {
			t.Errorf("RetryDelay(%v) = %v, %v; want 7s", err, d, ok)
		}
	}
	if _, ok := relay.RetryDelay(errPlain); ok {
		t.Error("RetryDelay of a plain error reports a delay")
	}
}

func TestBatchErrorText(t *testing.T) {
	t.Parallel()
	failed := &relay.BatchError{Failed: map[int]error{0: errPlain, 2: errPlain, 3: relay.ErrHeldBack}}
	if got, want := failed.Error(), "3 messages not confirmed, the first: connection reset"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
}

func TestTemplate(t *testing.T) {
	t.Parallel()
	m := relay.Message{
		ID: "outbox_orders:41:2", StreamTable: "orders", Op: relay.OpInsert, OutboxID: 41, RefreshID: "r-1",
		Row: []byte(`{"id": 7, "region": "eu \"x\"", "none": null, "o": {"a":1}}`),
	}
	for text, tc := range map[string]struct{ want, wantErr string }{
		"":                              {want: ""},
		"orders":                        {want: "orders"},
		"pgtrickle.{stream_table}.{op}": {want: "pgtrickle.orders.insert"},
		"{outbox_id}/{refresh_id}":      {want: "41/r-1"},
		"r.{row.region}.{row.id}":       {want: `r.eu "x".7`},
		"{row.none}|{row.o}":            {want: `|{"a":1}`},
		"{{literal}} {op}":              {want: "{literal} insert"},
		"{stream}":                      {wantErr: "unknown variable {stream}"},
		"{row.}":                        {wantErr: "unknown variable {row.}"},
		"{}":                            {wantErr: "unknown variable {}"},
		"a{op":                          {wantErr: "no closing brace for the one at character 2"},
		"é{stream}":                     {wantErr: "unknown variable {stream};"},
		"{row.missing}":                 {wantErr: `the row of outbox_orders:41:2 has no field "missing"`},
	} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			tmpl, err := relay.ParseTemplate(text)
			got := ""
			if err == nil {
				got, err = tmpl.Render(&m)
			}
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("template %q: %v, want error with %q", text, err, tc.wantErr)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("template %q renders %q, %v; want %q", text, got, err, tc.want)
			}
		})
	}
}

// A token that ${env:NAME} put into a template is in no error.
func TestTemplateErrorsKeepSecrets(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"https://h/s3cr3t/{row.missing}", "https://h/s3cr3t/{row.id", "https://h/{s3cr3t/{row.id}", "https://h/s3cr3t/{nope}", "https://h/s3cr3t/{row.}",
	} {
		tmpl, err := relay.ParseTemplate(text)
		if err == nil {
			_, err = tmpl.Render(&relay.Message{ID: "outbox_orders:41:2", Row: []byte(`{"id":1}`)})
		}
		if err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("template %q: %v, want an error without s3cr3t", text, err)
		}
	}
}

// Half a rendering is not handed out.
func TestTemplateAppendsAllOrNothing(t *testing.T) {
	t.Parallel()
	tmpl, err := relay.ParseTemplate("a.{row.id}.{row.missing}")
	if err != nil {
		t.Fatal(err)
	}
	m := relay.Message{Row: []byte(`{"id":1}`)}
	if got, err := tmpl.Append([]byte("before"), &m); err == nil || string(got) != "before" {
		t.Errorf("Append = %s, %v; want what was there, and an error", got, err)
	}
	if got, err := tmpl.Render(&m); err == nil || got != "" {
		t.Errorf("Render = %q, %v; want nothing, and an error", got, err)
	}
}

func TestWireHeadersRoundTrip(t *testing.T) {
	t.Parallel()
	sent := relay.Message{
		ID: "outbox_orders:41:2", Op: relay.OpDelete, OutboxID: 41, FullRefresh: true, Key: "k", BeforeKey: "j", ContentType: "application/json",
		Headers: []relay.Header{{Name: "traceparent", Value: "00-1"}},
	}
	var got relay.Message
	for _, h := range sent.WireHeaders(nil) {
		got.AddWireHeader(strings.ToLower(h.Name), h.Value)
	}
	got.AddWireHeader(relay.HeaderDedupKey, sent.ID)
	if fmt.Sprint(got) != fmt.Sprint(sent) {
		t.Errorf("headers came back as %+v, want %+v", got, sent)
	}
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	nopSink := relay.SinkFactory{Open: func(context.Context, relay.Env, any) (relay.Sink, error) { return nil, nil }}
	sink := relay.Backend{Name: "a", Aliases: []string{"alpha"}, Sink: nopSink}
	for name, tc := range map[string]struct {
		backends []relay.Backend
		wantErr  string
	}{
		"one":          {backends: []relay.Backend{sink}},
		"twice":        {backends: []relay.Backend{sink, sink}, wantErr: `name "a" is taken`},
		"alias taken":  {backends: []relay.Backend{sink, {Name: "alpha", Sink: nopSink}}, wantErr: `name "alpha" is taken`},
		"no name":      {backends: []relay.Backend{{Sink: nopSink}}, wantErr: "no name"},
		"no direction": {backends: []relay.Backend{{Name: "x"}}, wantErr: "neither sink nor source"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, err := relay.NewRegistry(tc.backends...)
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("NewRegistry = %v, want error with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatalf("NewRegistry = %v", err)
			}
			if b, err := r.Lookup("alpha"); err != nil || b.Name != "a" {
				t.Errorf("Lookup of an alias = %v, %v", b.Name, err)
			}
			if _, err := r.Lookup("kafka"); !errors.Is(err, relay.ErrUnknownBackend) || !strings.Contains(err.Error(), "this binary has a") {
				t.Errorf("Lookup of a stranger = %v, want one that lists what is linked", err)
			}
		})
	}
}
