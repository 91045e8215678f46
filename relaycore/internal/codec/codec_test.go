package codec_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/grove/pgtrickle-relay/relaycore/internal/codec"
	"github.com/grove/pgtrickle-relay/relaycore/internal/reshape"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func template(t testing.TB, text string) relay.Template {
	t.Helper()
	tmpl, err := relay.ParseTemplate(text)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

func change(op, row string) relay.Message {
	return relay.Message{
		ID: "outbox_orders:5:2", Op: op, Row: []byte(row), StreamTable: "orders", OutboxID: 5,
		Time: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC),
	}
}

func encode(t testing.TB, cfg codec.EncoderConfig, m relay.Message) relay.Message {
	t.Helper()
	e, err := codec.NewEncoder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	batch := []relay.Message{m}
	e.Encode(batch, nil)
	return batch[0]
}

func TestFormats(t *testing.T) {
	t.Parallel()
	update := change(relay.OpUpdate, `{"id": 7}`)
	update.Before = []byte(`{"id": 6}`)
	snapshot := change(relay.OpInsert, `{"id": 7}`)
	snapshot.FullRefresh = true
	snapshot.RefreshID = "0af76519-16cd-43dd-8448-eb211c80319c"
	for name, tc := range map[string]struct {
		format string
		m      relay.Message
		want   string
	}{
		"envelope": {
			"", change(relay.OpInsert, `{"id": 7}`),
			`{"dedup_key":"outbox_orders:5:2","subject":"pgtrickle.orders.insert","payload":{"id": 7},"op":"insert","is_full_refresh":false,"outbox_id":5,"refresh_id":null}`,
		},
		"envelope of a snapshot": {
			"envelope", snapshot,
			`{"dedup_key":"outbox_orders:5:2","subject":"pgtrickle.orders.insert","payload":{"id": 7},"op":"insert","is_full_refresh":true,"outbox_id":5,"refresh_id":"0af76519-16cd-43dd-8448-eb211c80319c"}`,
		},
		"envelope of a changed key": {
			"envelope", update,
			`{"dedup_key":"outbox_orders:5:2","subject":"pgtrickle.orders.update","payload":{"id": 7},"op":"update","is_full_refresh":false,"outbox_id":5,"refresh_id":null,"before_key":"6"}`,
		},
		"payload": {"payload", change(relay.OpDelete, `{"id": 7}`), `{"id": 7}`},
		"cloudevents": {
			"cloudevents", change(relay.OpInsert, `{"id": 7}`),
			`{"specversion":"1.0","id":"outbox_orders:5:2","source":"/pgtrickle/orders","type":"pgtrickle.orders.insert","time":"2026-11-22T10:00:00Z","datacontenttype":"application/json","pgtrickleop":"insert","partitionkey":"7","data":{"id": 7}}`,
		},
		"debezium update": {
			"debezium", update,
			`{"schema":null,"payload":{"before":{"id": 6},"after":{"id": 7},"op":"u","ts_ms":1795341600000,"source":{"version":"v9","connector":"pgtrickle","name":"pgtrickle-relay","ts_ms":1795341600000,"table":"orders","id":"outbox_orders:5:2"}}}`,
		},
		"debezium delete": {
			"debezium", change(relay.OpDelete, `{"id": 7}`),
			`{"schema":null,"payload":{"before":{"id": 7},"after":null,"op":"d","ts_ms":1795341600000,"source":{"version":"v9","connector":"pgtrickle","name":"pgtrickle-relay","ts_ms":1795341600000,"table":"orders","id":"outbox_orders:5:2"}}}`,
		},
		"debezium snapshot": {
			"debezium", snapshot,
			`{"schema":null,"payload":{"before":null,"after":{"id": 7},"op":"r","ts_ms":1795341600000,"source":{"version":"v9","connector":"pgtrickle","name":"pgtrickle-relay","ts_ms":1795341600000,"table":"orders","id":"outbox_orders:5:2"}}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := encode(t, codec.EncoderConfig{
				Subject: template(t, "pgtrickle.{stream_table}.{op}"), Format: tc.format, KeyColumns: []string{"id"}, Version: "v9",
			}, tc.m)
			if got.Err != nil || string(got.Body) != tc.want {
				t.Errorf("Encode as %s = %s, %v\nwant %s", tc.format, got.Body, got.Err, tc.want)
			}
			if !json.Valid(got.Body) {
				t.Errorf("Encode as %s is not JSON: %s", tc.format, got.Body)
			}
		})
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	row := `{"id": 7, "region": "eu", "tenant": "a\"b", "n": null}`
	for name, tc := range map[string]struct {
		cfg                   codec.EncoderConfig
		subject, key, wantErr string
	}{
		"primary key":      {cfg: codec.EncoderConfig{KeyColumns: []string{"id"}}, key: "7"},
		"composite key":    {cfg: codec.EncoderConfig{KeyColumns: []string{"region", "id"}}, key: "eu,7"},
		"projected away":   {cfg: codec.EncoderConfig{KeyColumns: []string{"id", "gone"}}, key: ""},
		"key field":        {cfg: codec.EncoderConfig{KeyField: "tenant", KeyColumns: []string{"id"}}, key: `a"b`},
		"null key":         {cfg: codec.EncoderConfig{KeyField: "n"}, key: ""},
		"no such field":    {cfg: codec.EncoderConfig{KeyField: "nope"}, wantErr: `key_field "nope": the row of outbox_orders:5:2 has no such field`},
		"key template":     {cfg: codec.EncoderConfig{KeyTemplate: template(t, "{row.region}/{row.id}"), KeyField: "id"}, key: "eu/7"},
		"subject of a row": {cfg: codec.EncoderConfig{Subject: template(t, "o.{row.region}.{outbox_id}.{op}")}, subject: "o.eu.5.insert"},
		"subject lacks":    {cfg: codec.EncoderConfig{Subject: template(t, "o.{row.nope}")}, wantErr: `has no field "nope"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := encode(t, tc.cfg, change(relay.OpInsert, row))
			if tc.wantErr != "" {
				if got.Err == nil || !strings.Contains(got.Err.Error(), tc.wantErr) || !relay.IsPermanent(got.Err) {
					t.Errorf("Err = %v, want a permanent error with %q", got.Err, tc.wantErr)
				}
				return
			}
			if got.Err != nil || got.Subject != tc.subject || got.Key != tc.key {
				t.Errorf("subject %q, key %q, error %v; want %q, %q", got.Subject, got.Key, got.Err, tc.subject, tc.key)
			}
		})
	}
}

// A part that cannot be rendered stays empty. Half a subject would be used as a whole
// one when the dead letter is redriven, and half a key would park another key.
func TestNothingIsLeftOfAHalfRendering(t *testing.T) {
	t.Parallel()
	row := `{"id": 7}`
	half := template(t, "shop.{row.region}")
	for name, tc := range map[string]struct {
		cfg                   codec.EncoderConfig
		subject, key, wantErr string
	}{
		"subject":      {codec.EncoderConfig{Subject: half, KeyColumns: []string{"id"}}, "", "7", `subject_template: the row of outbox_orders:5:2 has no field "region"`},
		"key template": {codec.EncoderConfig{Subject: template(t, "s.{row.id}"), KeyTemplate: half}, "s.7", "", `key_template: the row of outbox_orders:5:2 has no field "region"`},
		"both":         {codec.EncoderConfig{Subject: half, KeyTemplate: half}, "", "", "subject_template: "},
		"header":       {codec.EncoderConfig{Subject: template(t, "s.{row.id}"), KeyColumns: []string{"id"}, Headers: map[string]relay.Template{"x-region": half}}, "s.7", "7", "headers.x-region: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, err := codec.NewEncoder(tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			good := change(relay.OpInsert, `{"id": 8, "region": "eu"}`)
			batch := []relay.Message{good, change(relay.OpInsert, row), good}
			e.Encode(batch, nil)
			got := batch[1]
			if got.Subject != tc.subject || got.Key != tc.key || len(got.Headers) > 0 || got.Body != nil {
				t.Errorf("subject %q, key %q, headers %v, body %s; want %q, %q and no more", got.Subject, got.Key, got.Headers, got.Body, tc.subject, tc.key)
			}
			if got.Err == nil || !strings.HasPrefix(got.Err.Error(), tc.wantErr) || !relay.IsPermanent(got.Err) {
				t.Errorf("Err = %v, want a permanent error with %q", got.Err, tc.wantErr)
			}
			if batch[0].Err != nil || batch[2].Err != nil || batch[0].Subject != batch[2].Subject || batch[0].Key != batch[2].Key {
				t.Errorf("its neighbours are %+v and %+v", batch[0], batch[2])
			}
		})
	}
}

// An update that changes the key carries the key before, whichever way keys are made.
func TestBeforeKey(t *testing.T) {
	t.Parallel()
	const row, before = `{"id": 7, "at": "x", "kind": "b"}`, `{"id": 6, "at": "x", "kind": null}`
	for name, tc := range map[string]struct {
		cfg               codec.EncoderConfig
		op, given, before string
		want              string
	}{
		"primary key":             {cfg: codec.EncoderConfig{KeyColumns: []string{"at", "id"}}, want: "x,6"},
		"the same key":            {cfg: codec.EncoderConfig{KeyColumns: []string{"at"}}},
		"field":                   {cfg: codec.EncoderConfig{KeyField: "id"}, want: "6"},
		"field that was null":     {cfg: codec.EncoderConfig{KeyField: "kind"}},
		"template":                {cfg: codec.EncoderConfig{KeyTemplate: template(t, "o/{row.id}")}, want: "o/6"},
		"template over less":      {cfg: codec.EncoderConfig{KeyTemplate: template(t, "{row.id}/{row.at}")}, before: `{"id": 6}`},
		"column renamed since":    {cfg: codec.EncoderConfig{KeyColumns: []string{"id"}}, before: `{"nr": 6}`},
		"given by the writer":     {cfg: codec.EncoderConfig{KeyColumns: []string{"id"}}, given: "own"},
		"of a dead letter":        {cfg: codec.EncoderConfig{KeyColumns: []string{"id"}}, given: "7", want: "6"},
		"no update":               {cfg: codec.EncoderConfig{KeyColumns: []string{"id"}}, op: relay.OpInsert},
		"left out":                {cfg: codec.EncoderConfig{KeyColumns: []string{"id"}, Columns: reshape.NewColumns(reshape.ColumnsConfig{Exclude: []string{"id"}})}},
		"text with a quote, a nl": {cfg: codec.EncoderConfig{KeyColumns: []string{"at"}}, before: `{"at": "a\"\n"}`, want: "a\"\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := change(cmp.Or(tc.op, relay.OpUpdate), row)
			m.Before, m.Key = []byte(cmp.Or(tc.before, before)), tc.given
			tc.cfg.Subject = template(t, "s")
			got := encode(t, tc.cfg, m)
			if got.Err != nil || got.BeforeKey != tc.want {
				t.Fatalf("key before = %q, %v; want %q", got.BeforeKey, got.Err, tc.want)
			}
			back := decode(t, codec.DecoderConfig{}, relay.Message{ID: got.ID, Body: got.Body})
			if back.Err != nil || back.BeforeKey != tc.want {
				t.Errorf("came back as %q, %v", back.BeforeKey, back.Err)
			}
		})
	}
}

// A tombstone has no body. From the dead letters it comes as it was: its row was masked
// before, and a filter has let its event pass.
func TestEncodeTombstone(t *testing.T) {
	t.Parallel()
	jq, err := reshape.NewJQ(reshape.JQConfig{Filter: "false"})
	if err != nil {
		t.Fatal(err)
	}
	event := change(relay.OpUpdate, `{"id": 7}`)
	event.Key, event.BeforeKey, event.Before = "7", "6", []byte(`{"id": 6}`)
	m := event.Tombstone(event.EndedKey())
	got := encode(t, codec.EncoderConfig{
		Subject: template(t, "o.{row.id}.{op}"), KeyColumns: []string{"id"}, JQ: jq,
		Columns: reshape.NewColumns(reshape.ColumnsConfig{Exclude: []string{"id"}}),
	}, m)
	if got.Err != nil || got.Body != nil || got.ContentType != "" || got.Key != "6" || got.Subject != "o.6.delete" || !got.IsTombstone() {
		t.Errorf("a tombstone becomes %+v", got)
	}
	if string(got.Row) != `{"id": 6}` || got.EndedKey() != "" {
		t.Errorf("its row is %s, it ends %q", got.Row, got.EndedKey())
	}
}

func TestHeaders(t *testing.T) {
	t.Parallel()
	m := change(relay.OpInsert, `{"tenant":"acme"}`)
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-x"}, {Name: "x-tenant", Value: "old"}}
	got := encode(t, codec.EncoderConfig{Headers: map[string]relay.Template{"x-tenant": template(t, "t:{row.tenant}")}}, m)
	if want := "[{traceparent 00-x} {x-tenant t:acme}]"; fmt.Sprint(got.Headers) != want {
		t.Errorf("headers = %v, want %s", got.Headers, want)
	}
}

func decode(t testing.TB, cfg codec.DecoderConfig, m relay.Message) relay.Message {
	t.Helper()
	d, err := codec.NewDecoder(cfg)
	if err != nil {
		t.Fatal(err)
	}
	batch := []relay.Message{m}
	d.Decode(batch)
	return batch[0]
}

// TestIDsOfAPipeline: no producer's message gets an id outside its pipeline, whatever it
// claims to be. A dead letter that is decoded again keeps its id.
func TestIDsOfAPipeline(t *testing.T) {
	t.Parallel()
	event := relay.Message{ID: "outbox_orders.1:5:0", Subject: "orders.insert", Op: relay.OpInsert, Row: []byte(`{"id":1}`), OutboxID: 5}
	for _, format := range []string{"envelope", "payload", "cloudevents", "debezium"} {
		forged := encode(t, codec.EncoderConfig{Format: format}, event)
		for _, from := range []string{"", "header:x"} {
			forged.Headers = []relay.Header{{Name: "x", Value: "outbox_orders.1:6:0"}}
			cfg := codec.DecoderConfig{Format: format, EventIDFrom: from, IDPrefix: "pipeline:p:"}
			got := decode(t, cfg, forged)
			if got.Err != nil || !strings.HasPrefix(got.ID, "pipeline:p:outbox_orders.1:") {
				t.Errorf("%s, event_id_from %q: id %q, %v", format, from, got.ID, got.Err)
			}
			if again := decode(t, cfg, got); again.ID != got.ID {
				t.Errorf("%s, event_id_from %q: decoded again the id is %q", format, from, again.ID)
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"envelope", "payload", "cloudevents", "debezium"} {
		for _, op := range []string{relay.OpInsert, relay.OpUpdate, relay.OpDelete} {
			t.Run(format+"/"+op, func(t *testing.T) {
				t.Parallel()
				m := change(op, `{"id": 7, "name": "Ærø \"x\""}`)
				sent := encode(t, codec.EncoderConfig{Format: format, Subject: template(t, "a.{op}"), KeyColumns: []string{"id"}}, m)
				// What every broker's headers carry.
				wire := relay.Message{ID: sent.ID, Body: sent.Body, Key: sent.Key, Subject: sent.Subject, Op: sent.Op}
				got := decode(t, codec.DecoderConfig{Format: format}, wire)
				if got.Err != nil || got.ID != m.ID || got.Key != "7" || got.Subject != "a."+op || got.Op != op || string(got.Row) != string(m.Row) {
					t.Errorf("came back as %q %q %q %q %s, %v", got.ID, got.Key, got.Subject, got.Op, got.Row, got.Err)
				}
			})
		}
	}
}

// RFC 3339 has years of four digits, and PostgreSQL has others: such an event has no time.
func TestCloudEventWithoutTime(t *testing.T) {
	t.Parallel()
	for year, timed := range map[int]bool{-4712: false, 0: true, 9999: true, 10000: false, 294276: false} {
		m := change(relay.OpInsert, `{"id": 7}`)
		m.Time = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		sent := encode(t, codec.EncoderConfig{Format: "cloudevents", Subject: template(t, "a")}, m)
		if got := strings.Contains(string(sent.Body), `"time":`); got != timed {
			t.Errorf("year %d: time is there = %t, want %t: %s", year, got, timed, sent.Body)
		}
	}
}

func TestDecode(t *testing.T) {
	t.Parallel()
	envelope := `{"dedup_key":"outbox_orders:5:2","subject":"s","payload":{"id":7},"op":"delete","is_full_refresh":false,"outbox_id":5,"refresh_id":null}`
	wire := func(body string) relay.Message {
		return relay.Message{ID: "nats:S:1", Subject: "orders.new", Body: []byte(body), Origin: "nats:S", Headers: []relay.Header{{Name: "x-id", Value: "h1"}}}
	}
	for name, tc := range map[string]struct {
		cfg     codec.DecoderConfig
		body    string
		want    string // id subject key op origin row
		wantErr string
	}{
		"foreign JSON":        {body: `{"a":1}`, want: `nats:S:1 orders.new  event nats:S {"a":1}`},
		"our envelope":        {body: envelope, want: `outbox_orders:5:2 s  delete nats:S {"id":7}`},
		"envelope left alone": {cfg: codec.DecoderConfig{Format: "payload"}, body: envelope, want: `nats:S:1 orders.new  event nats:S ` + envelope},
		"almost an envelope":  {body: `{"dedup_key":"x"}`, want: `nats:S:1 orders.new  event nats:S {"dedup_key":"x"}`},
		"a scalar is JSON":    {body: `42`, want: `nats:S:1 orders.new  event nats:S 42`},
		"not JSON":            {body: `<xml/>`, wantErr: "the body of message nats:S:1 is not JSON"},
		"empty":               {body: ``, wantErr: "not JSON"},
		"id from header":      {cfg: codec.DecoderConfig{EventIDFrom: "header:X-Id"}, body: `{}`, want: `h1 orders.new  event nats:S {}`},
		"all from body": {
			cfg:  codec.DecoderConfig{EventIDFrom: "body:meta.id", EventTypeFrom: "body:type", AggregateIDFrom: "body:order", SourceFrom: "subject"},
			body: `{"meta":{"id":12},"type":"created","order":"o-1"}`, want: `12 created o-1 event created {"meta":{"id":12},"type":"created","order":"o-1"}`,
		},
		"id missing":       {cfg: codec.DecoderConfig{EventIDFrom: "body:id"}, body: `{}`, wantErr: "event_id_from"},
		"not a cloudevent": {cfg: codec.DecoderConfig{Format: "cloudevents"}, body: `{"a":1}`, wantErr: "not a CloudEvents event"},
		"ids of two sources": {
			cfg:  codec.DecoderConfig{Format: "cloudevents"},
			body: `{"specversion":"1.0","id":"1","source":"/billing","type":"paid","data":{"n":1}}`, want: `/billing#1 paid  event /billing {"n":1}`,
		},
		"a cloudevent of ours": {
			cfg:  codec.DecoderConfig{Format: "cloudevents"},
			body: `{"specversion":"1.0","id":"outbox_orders:5:2","source":"/pgtrickle/orders","type":"s","pgtrickleop":"insert","data":{"n":1}}`, want: `outbox_orders:5:2 s  insert /pgtrickle/orders {"n":1}`,
		},
		"a cloudevent without data": {
			cfg:  codec.DecoderConfig{Format: "cloudevents"},
			body: `{"specversion":"1.0","id":"1","source":"/s","type":"t"}`, want: `/s#1 t  event /s null`,
		},
		"binary data": {
			cfg:  codec.DecoderConfig{Format: "cloudevents"},
			body: `{"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"AAH/"}`,
			want: `/s#1 t  event /s {"specversion":"1.0","id":"1","source":"/s","type":"t","data_base64":"AAH/"}`,
		},
		"not debezium":  {cfg: codec.DecoderConfig{Format: "debezium"}, body: `{"a":1}`, wantErr: "not a Debezium event"},
		"bare debezium": {cfg: codec.DecoderConfig{Format: "debezium"}, body: `{"op":"c","after":{"id":1},"source":{}}`, want: `nats:S:1 orders.new  insert nats:S {"id":1}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := decode(t, tc.cfg, wire(tc.body))
			if tc.wantErr != "" {
				if got.Err == nil || !strings.Contains(got.Err.Error(), tc.wantErr) || string(got.Body) != tc.body {
					t.Errorf("Err = %v, want one with %q, and the body kept", got.Err, tc.wantErr)
				}
				return
			}
			if s := fmt.Sprintf("%s %s %s %s %s %s", got.ID, got.Subject, got.Key, got.Op, got.Origin, got.Row); got.Err != nil || s != tc.want {
				t.Errorf("Decode = %s, %v\nwant %s", s, got.Err, tc.want)
			}
		})
	}
}

func TestBadConfig(t *testing.T) {
	t.Parallel()
	if _, err := codec.NewDecoder(codec.DecoderConfig{EventIDFrom: "headr:x"}); err == nil || !strings.Contains(err.Error(), `"event_id_from"`) {
		t.Errorf("NewDecoder = %v, want an error that names the key", err)
	}
	if _, err := codec.NewEncoder(codec.EncoderConfig{Format: "xml"}); err == nil {
		t.Error("NewEncoder with format xml = nil, want an error")
	}
}

// FuzzEnvelope holds the hand-written envelope to encoding/json's reading of it.
func FuzzEnvelope(f *testing.F) {
	f.Add("outbox_orders:5:2", "pgtrickle.orders.insert", "k", `{"a":1}`)
	f.Add("x\x00\"\\", "\u2028", "é", `[]`)
	f.Fuzz(func(t *testing.T, id, subject, key, row string) {
		if !json.Valid([]byte(row)) || id == "" || !utf8.ValidString(id) || !utf8.ValidString(subject) || !utf8.ValidString(key) {
			t.Skip("PostgreSQL's text is UTF-8, and so are rows")
		}
		for _, format := range []string{"envelope", "cloudevents", "debezium"} {
			m := change(relay.OpInsert, row)
			m.ID, m.Subject, m.Key = id, subject, key
			sent := encode(t, codec.EncoderConfig{Format: format}, m)
			if !json.Valid(sent.Body) {
				t.Fatalf("%s of %q is not JSON: %s", format, id, sent.Body)
			}
			if format != "envelope" {
				continue
			}
			var e struct {
				DedupKey string          `json:"dedup_key"`
				Subject  string          `json:"subject"`
				Payload  json.RawMessage `json:"payload"`
			}
			if err := json.Unmarshal(sent.Body, &e); err != nil {
				t.Fatal(err)
			}
			if e.DedupKey != id || e.Subject != subject || string(e.Payload) != strings.Trim(row, " \t\r\n") {
				t.Errorf("envelope of %q, %q holds %q, %q, %s", id, subject, e.DedupKey, e.Subject, e.Payload)
			}
			back := decode(t, codec.DecoderConfig{}, relay.Message{ID: "x", Body: sent.Body})
			if back.Err != nil || back.ID != id || back.Subject != subject || string(back.Row) != string(e.Payload) {
				t.Errorf("envelope of %q came back as %q, %q, %s, %v", id, back.ID, back.Subject, back.Row, back.Err)
			}
		}
	})
}

func TestEncodeAllocations(t *testing.T) {
	e, err := codec.NewEncoder(codec.EncoderConfig{Subject: template(t, "pgtrickle.{stream_table}.{op}"), KeyColumns: []string{"id"}})
	if err != nil {
		t.Fatal(err)
	}
	batch, rows := make([]relay.Message, 1000), change(relay.OpInsert, `{"id": 7, "name": "somebody"}`)
	buf := make([]byte, 0, 1<<20)
	allocs := testing.AllocsPerRun(10, func() {
		for i := range batch {
			batch[i] = rows
		}
		e.Encode(batch, buf[:0])
	})
	if allocs > 10 {
		t.Errorf("encoding 1000 messages takes %.0f allocations, want a few a batch", allocs)
	}
}

// BenchmarkEncode encodes batches of 1,000 messages in each format.
func BenchmarkEncode(b *testing.B) {
	for _, format := range []string{codec.FormatEnvelope, codec.FormatPayload, codec.FormatCloudEvents, codec.FormatDebezium} {
		b.Run(format, func(b *testing.B) {
			e, err := codec.NewEncoder(codec.EncoderConfig{
				Format: format, Subject: template(b, "pgtrickle.{stream_table}.{op}"), KeyColumns: []string{"id"},
			})
			if err != nil {
				b.Fatal(err)
			}
			encodeBatches(b, e, change(relay.OpInsert, benchRow))
		})
	}
}

// BenchmarkDecode decodes batches of 1,000 messages that were encoded in each format.
func BenchmarkDecode(b *testing.B) {
	for _, format := range []string{codec.FormatEnvelope, codec.FormatPayload, codec.FormatCloudEvents, codec.FormatDebezium} {
		b.Run(format, func(b *testing.B) {
			sent := encode(b, codec.EncoderConfig{Format: format, Subject: template(b, "orders")}, change(relay.OpInsert, benchRow))
			d, err := codec.NewDecoder(codec.DecoderConfig{Format: format})
			if err != nil {
				b.Fatal(err)
			}
			batch := make([]relay.Message, 1000)
			defer relaytest.ReportCPU(b)()
			for b.Loop() {
				for i := range batch {
					batch[i] = relay.Message{ID: "s:1", Body: sent.Body}
				}
				d.Decode(batch)
			}
			if batch[0].Err != nil || len(batch[0].Row) == 0 {
				b.Errorf("Decode = %q, %v", batch[0].Row, batch[0].Err)
			}
		})
	}
}

const benchRow = `{"id": 7, "sku": "abcdef", "quantity": 12, "note": "` +
	`xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx` +
	`xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}`

func encodeBatches(b *testing.B, e *codec.Encoder, m relay.Message) {
	batch, buf := make([]relay.Message, 1000), make([]byte, 0, 1<<20)
	defer relaytest.ReportCPU(b)()
	for b.Loop() {
		for i := range batch {
			batch[i] = m
		}
		buf = e.Encode(batch, buf[:0])
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/message")
}

// BenchmarkReshape has the cost of columns, filters and transforms beside that of none.
func BenchmarkReshape(b *testing.B) {
	for _, bench := range []struct {
		name    string
		columns reshape.ColumnsConfig
		jq      reshape.JQConfig
	}{
		{name: "nothing"},
		{name: "exclude", columns: reshape.ColumnsConfig{Exclude: []string{"sku"}}},
		{name: "mask hash", columns: reshape.ColumnsConfig{Mask: map[string]string{"sku": "hash"}, Salt: "0123456789abcdef"}},
		{name: "filter keeps", jq: reshape.JQConfig{Filter: `.row.quantity > 10`}},
		{name: "filter drops", jq: reshape.JQConfig{Filter: `.row.quantity < 10`}},
		{name: "transform", jq: reshape.JQConfig{Transform: `{id: .row.id, sku: .row.sku}`}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			jq, err := reshape.NewJQ(bench.jq)
			if err != nil {
				b.Fatal(err)
			}
			e, _ := codec.NewEncoder(codec.EncoderConfig{
				Subject: template(b, "pgtrickle.{stream_table}.{op}"), KeyColumns: []string{"id"}, Columns: reshape.NewColumns(bench.columns), JQ: jq,
			})
			encodeBatches(b, e, change(relay.OpInsert, benchRow))
		})
	}
}

// TestInternalColumns: what pg_trickle adds to rows for itself does not reach receivers,
// unless that is asked for. A key may still be made of it.
func TestInternalColumns(t *testing.T) {
	t.Parallel()
	for keep, want := range map[bool]string{false: `{"id": 1, "note": "\"__pgt_x"} {}`, true: `{"__pgt_row_id": 7, "id": 1, "note": "\"__pgt_x"} {"__pgt_count": 2}`} {
		e, err := codec.NewEncoder(codec.EncoderConfig{Format: "payload", KeyField: "__pgt_row_id", KeepInternal: keep})
		if err != nil {
			t.Fatal(err)
		}
		batch := []relay.Message{{Op: relay.OpUpdate, Row: []byte(`{"__pgt_row_id": 7, "id": 1, "note": "\"__pgt_x"}`), Before: []byte(`{"__pgt_count": 2}`)}}
		e.Encode(batch, nil)
		if got := string(batch[0].Body) + " " + string(batch[0].Before); got != want || batch[0].Key != "7" || batch[0].Err != nil {
			t.Errorf("keep %v: %s, key %q, %v; want %s", keep, got, batch[0].Key, batch[0].Err, want)
		}
	}
}

// TestMarker: the marker of a snapshot's end is no row of the table. It has a subject, but
// no key and no header that looks into a row, and no columns or filter apply to it.
func TestMarker(t *testing.T) {
	t.Parallel()
	filter, err := reshape.NewJQ(reshape.JQConfig{Filter: ".row.id > 0"})
	if err != nil {
		t.Fatal(err)
	}
	e, err := codec.NewEncoder(codec.EncoderConfig{
		Subject: template(t, "o.{op}"), Format: "payload", KeyField: "id", JQ: filter,
		Headers: map[string]relay.Template{"tenant": template(t, "{row.tenant}"), "table": template(t, "o")},
		Columns: reshape.NewColumns(reshape.ColumnsConfig{Include: []string{"id"}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	batch := []relay.Message{{ID: "1:2", Op: relay.OpSnapshotEnd, Row: []byte(`{"outbox_id":1,"messages":2}`)}}
	e.Encode(batch, nil)
	m := &batch[0]
	if got := fmt.Sprintf("%s %q %v %s %v", m.Subject, m.Key, m.Headers, m.Body, m.Err); got != `o.snapshot_end "" [{table o}] {"outbox_id":1,"messages":2} <nil>` {
		t.Errorf("got %s", got)
	}
}

// A message without a body whose row the source has filled needs no format.
func TestDecodeTombstone(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"envelope", "payload", "cloudevents", "debezium"} {
		d, err := codec.NewDecoder(codec.DecoderConfig{Format: format, EventIDFrom: "body:id", AggregateIDFrom: "key"})
		if err != nil {
			t.Fatal(err)
		}
		batch := []relay.Message{{ID: "kafka:t:0:1", Key: "7", Op: relay.OpDelete, Row: []byte("7")}, {ID: "kafka:t:0:2", Key: "7"}}
		d.Decode(batch)
		if m := batch[0]; m.Err != nil || m.ID != "kafka:t:0:1" || m.Op != relay.OpDelete || string(m.Row) != "7" {
			t.Errorf("%s: a tombstone = %+v, want a delete of row 7", format, m)
		}
		if !relay.IsPermanent(batch[1].Err) {
			t.Errorf("%s: an empty body = %v, want a permanent error", format, batch[1].Err)
		}
	}
}

// TestStreamedBody: the body of a stream is that of the same row in memory, in each format.
func TestStreamedBody(t *testing.T) {
	t.Parallel()
	for _, format := range []string{codec.FormatEnvelope, codec.FormatPayload, codec.FormatCloudEvents, codec.FormatDebezium} {
		for _, op := range []string{relay.OpInsert, relay.OpUpdate, relay.OpDelete} {
			e, err := codec.NewEncoder(codec.EncoderConfig{Format: format, KeyField: "id", Version: "1"})
			if err != nil {
				t.Fatal(err)
			}
			const row = `{"id": "a\"\u0000b", "x": "not a small member"}`
			whole := relay.Message{ID: "t:1:0", Op: op, StreamTable: "t", OutboxID: 1, Row: []byte(row)}
			large := whole
			large.Row = []byte(`{"id":"a\"\u0000b"}`)
			large.Payload.Stream = &relay.Stream{RowLength: int64(len(row)), OpenRow: func(context.Context) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader(row)), nil
			}}
			batch := []relay.Message{whole, large}
			e.Encode(batch, nil)
			body, err := batch[1].Payload.Stream.Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(body)
			if err != nil || string(got) != string(batch[0].Body) || batch[1].Body != nil || batch[1].Key != batch[0].Key ||
				batch[1].Payload.Stream.Length() != int64(len(got)) || batch[1].ContentType != batch[0].ContentType {
				t.Errorf("%s of %s: %s, key %q, %v; want %s, key %q", format, op, got, batch[1].Key, err, batch[0].Body, batch[0].Key)
			}
		}
	}
	e, err := codec.NewEncoder(codec.EncoderConfig{})
	if err != nil {
		t.Fatal(err)
	}
	internal := []relay.Message{{ID: "t:1:0", Op: relay.OpInsert, Row: []byte(`{"__pgt_row_id":5}`), Payload: relay.Payload{Stream: &relay.Stream{}}}}
	if e.Encode(internal, nil); internal[0].Err == nil || !strings.Contains(internal[0].Err.Error(), "keep_internal_columns") {
		t.Errorf("a stream with the extension's columns: %v", internal[0].Err)
	}
}
