package natsrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func messages(subject string, from, count, keys int) []relay.Message {
	batch := make([]relay.Message, count)
	for i := range batch {
		batch[i] = relaytest.Message(from+i, fmt.Sprintf("k%d", (from+i)%keys))
		batch[i].Subject = subject
	}
	return batch
}

// What reaches the far end, read with the plain client.
func TestWire(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	m := messages(prefix+".orders.update", 5, 1, 1)[0]
	m.Op, m.FullRefresh = relay.OpUpdate, true
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-a-b-01"}, {Name: "X-Two", Value: "1"}, {Name: "X-Two", Value: "2"}, {Name: "nats-msg-id", Value: "not this"}}
	plain := messages(prefix+".orders.insert", 6, 1, 1)[0]
	plain.Key = ""
	if err := s.Publish(testContext(t), []relay.Message{m, plain, m}); err != nil {
		t.Fatal(err)
	}
	got := readRaw(t, js, stream, 2)
	if len(got) != 2 {
		t.Fatalf("the stream holds %d messages, want 2", len(got))
	}
	ctx := testContext(t)
	st, err := js.Stream(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	for seq, want := range map[uint64]nats.Header{
		1: {
			"Nats-Msg-Id": {m.DeliveryID}, "Pgtrickle-Dedup-Key": {m.ID}, "Pgtrickle-Op": {"update"}, "Pgtrickle-Outbox-Id": {"5"}, "Pgtrickle-Full-Refresh": {"true"},
			"Pgtrickle-Key": {"k0"}, "Content-Type": {"application/json"}, "traceparent": {"00-a-b-01"}, "X-Two": {"1", "2"},
		},
		2: {"Nats-Msg-Id": {plain.DeliveryID}, "Pgtrickle-Dedup-Key": {plain.ID}, "Pgtrickle-Op": {"insert"}, "Pgtrickle-Outbox-Id": {"6"}, "Content-Type": {"application/json"}},
	} {
		raw, err := st.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(raw.Header) != fmt.Sprint(want) {
			t.Errorf("message %d has headers %v, want %v", seq, raw.Header, want)
		}
	}
}

func TestStreamOptions(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	name := fmt.Sprintf("CREATED%d", time.Now().UnixNano())
	t.Cleanup(func() { _ = js.DeleteStream(context.Background(), name) })
	_, err := trySink(testContext(t), fmt.Appendf(nil, `{"url":%q,"stream":%q}`, url, name))
	if !relay.IsFatal(err) || !strings.Contains(err.Error(), "nats_create_if_missing") {
		t.Fatalf("a stream that does not exist = %v, want a fatal error that says what to do", err)
	}
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"create_stream":true,"subject":"%s.{op}","duplicate_window":"90s"}`, url, name, name))
	st, err := js.Stream(testContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	cfg := st.CachedInfo().Config
	if fmt.Sprint(cfg.Subjects) != "["+name+".>]" || cfg.Duplicates != 90*time.Second || cfg.Replicas != 1 || cfg.Storage != jetstream.FileStorage {
		t.Errorf("created stream with %+v", cfg)
	}
	if g := s.Guarantee(); !strings.Contains(g.Dedup, "1m30s") {
		t.Errorf("Guarantee() = %+v, want the duplicate window of 1m30s", g)
	}
	// Without a stream it is found by subject.
	found := openSink(t, fmt.Sprintf(`{"url":%q,"subject":"%s.{op}"}`, url, name))
	if found.stream != name {
		t.Errorf("stream found by subject = %q, want %q", found.stream, name)
	}
	lazily := openSink(t, fmt.Sprintf(`{"url":%q}`, url))
	if err := lazily.Publish(testContext(t), messages(name+".insert", 1, 3, 1)); err != nil || lazily.stream != name {
		t.Errorf("Publish without a stream = %v into %q, want %q", err, lazily.stream, name)
	}
	_, err = trySink(testContext(t), fmt.Appendf(nil, `{"url":%q,"subject":"nobody.takes.{op}"}`, url))
	if !relay.IsFatal(err) {
		t.Errorf("a subject that no stream takes = %v, want a fatal error", err)
	}
}

// Each answer of the server, and its class.
func TestErrorClasses(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, js := connect(t, url)
	const transient, permanent, fatal = "transient", "permanent", "fatal"
	for name, tc := range map[string]struct {
		stream func(*jetstream.StreamConfig)
		broken func(t *testing.T, stream string) // after the sink has opened the stream
		change func(m *relay.Message)            // the middle one of three, each of a key
		want   string
		stored int
	}{
		"beyond max_msg_size": {
			stream: func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 },
			change: func(m *relay.Message) { m.Body = make([]byte, 1001) }, want: permanent, stored: 2,
		},
		"beyond max_payload":   {change: func(m *relay.Message) { m.Body = make([]byte, nc.MaxPayload()) }, want: permanent, stored: 2},
		"not a subject":        {change: func(m *relay.Message) { m.Subject = "a b" }, want: permanent, stored: 2},
		"wildcard as subject":  {change: func(m *relay.Message) { m.Subject += ".*" }, want: permanent, stored: 2},
		"subject of no stream": {change: func(m *relay.Message) { m.Subject = "nobody.takes.this" }, want: fatal, stored: 1},
		"header name with a colon": {
			change: func(m *relay.Message) { m.Headers = []relay.Header{{Name: "a:b c", Value: "x"}} }, want: permanent, stored: 2,
		},
		"condition that fails": {
			change: func(m *relay.Message) {
				m.Headers = []relay.Header{{Name: "Nats-Expected-Stream", Value: "another"}}
			}, want: permanent, stored: 2,
		},
		"stream is full": {
			stream: func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 1, jetstream.DiscardNew },
			change: func(*relay.Message) {}, want: transient, stored: 1,
		},
		"stream was sealed": {
			broken: func(t *testing.T, stream string) {
				changeStream(t, js, stream, func(c *jetstream.StreamConfig) { c.Sealed = true })
			}, change: func(*relay.Message) {}, want: fatal,
		},
		"stream was deleted": {
			broken: func(t *testing.T, stream string) {
				if err := js.DeleteStream(t.Context(), stream); err != nil {
					t.Fatal(err)
				}
			}, change: func(*relay.Message) {}, want: fatal,
		},
	} {
		t.Run(name, func(t *testing.T) {
			stream, prefix := addStream(t, js, tc.stream)
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
			if tc.broken != nil {
				tc.broken(t, stream)
			}
			batch := messages(prefix+".a", 1, 3, 3)
			tc.change(&batch[1])
			err := s.Publish(testContext(t), batch)
			first := err
			var partial *relay.BatchError
			if errors.As(err, &partial) {
				if first = partial.Failed[1]; first == nil {
					first = partial.Failed[0]
				}
			}
			got := transient
			switch {
			case err == nil:
				got = "none"
			case relay.IsFatal(first):
				got = fatal
			case relay.IsPermanent(first):
				got = permanent
			}
			if got != tc.want {
				t.Errorf("Publish = %v, which is %s; want %s", first, got, tc.want)
			}
			t.Log(first)
			if name == "stream was deleted" {
				return
			}
			if n := len(readRaw(t, js, stream, tc.stored)); n != tc.stored {
				t.Errorf("the stream holds %d messages, want %d", n, tc.stored)
			}
		})
	}
}

// A message that a stream with room for the next one refuses is not overtaken.
func TestFullStreamKeepsOrder(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) { c.MaxBytes, c.Discard = 3000, jetstream.DiscardNew })
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	batch := messages(prefix+".a", 1, 4, 1)
	batch[1].Body = make([]byte, 5000) // never fits; the two behind it would
	err := s.Publish(testContext(t), batch)
	var partial *relay.BatchError
	if !errors.As(err, &partial) || len(partial.Failed) != 3 || relay.IsPermanent(partial.Failed[1]) {
		t.Fatalf("Publish = %v, want messages 1 to 3 failed, transiently", err)
	}
	if got := readRaw(t, js, stream, 1); len(got) != 1 {
		t.Errorf("the stream holds %d messages, want the first alone", len(got))
	}
}

// The same where it is the account whose storage has no room.
func TestFullAccountKeepsOrder(t *testing.T) {
	for name, tc := range map[string]struct {
		limit   string
		storage jetstream.StorageType
	}{
		"file":   {"max_file: 20000", jetstream.FileStorage},
		"memory": {"max_mem: 20000", jetstream.MemoryStorage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t, fmt.Sprintf("accounts { A { jetstream { %s }, users: [ { user: a, password: a } ] } }", tc.limit))
			url := strings.Replace(srv.url, "://", "://a:a@", 1)
			_, js := connect(t, url)
			stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) { c.Storage = tc.storage })
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
			batch := messages(prefix+".a", 1, 4, 1)
			batch[1].Body = make([]byte, 30000) // never fits; the two behind it would
			err := s.Publish(testContext(t), batch)
			partial, ok := errors.AsType[*relay.BatchError](err)
			if !ok || len(partial.Failed) != 3 || relay.IsPermanent(partial.Failed[1]) || relay.IsFatal(partial.Failed[1]) {
				t.Fatalf("Publish = %v, want messages 1 to 3 failed, transiently", err)
			}
			if got := readRaw(t, js, stream, 1); len(got) != 1 {
				t.Errorf("the stream holds %d messages, want the first alone", len(got))
			}
		})
	}
}

func TestAccountLimited(t *testing.T) {
	t.Parallel()
	limits := func(memory, store int64) jetstream.Tier {
		return jetstream.Tier{Limits: jetstream.AccountLimits{MaxMemory: memory, MaxStore: store}}
	}
	file, memory := jetstream.StreamConfig{Storage: jetstream.FileStorage, Replicas: 1}, jetstream.StreamConfig{Storage: jetstream.MemoryStorage}
	tiers := map[string]jetstream.Tier{"R1": limits(-1, 100), "R3": limits(100, -1)}
	for name, tc := range map[string]struct {
		account jetstream.AccountInfo
		stream  jetstream.StreamConfig
		want    bool
	}{
		"none":                   {jetstream.AccountInfo{Tier: limits(-1, -1)}, file, false},
		"store":                  {jetstream.AccountInfo{Tier: limits(-1, 100)}, file, true},
		"store, not memory":      {jetstream.AccountInfo{Tier: limits(-1, 100)}, memory, false},
		"memory":                 {jetstream.AccountInfo{Tier: limits(100, -1)}, memory, true},
		"memory, not store":      {jetstream.AccountInfo{Tier: limits(100, -1)}, file, false},
		"the tier's":             {jetstream.AccountInfo{Tiers: tiers}, file, true},
		"the tier's, not memory": {jetstream.AccountInfo{Tiers: tiers}, memory, false},
	} {
		if got := accountLimited(&tc.account, &tc.stream); got != tc.want {
			t.Errorf("%s: accountLimited = %t, want %t", name, got, tc.want)
		}
	}
}

// A user without the right to ask about the account publishes as ever.
func TestAccountInfoNotPermitted(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ inJetStream, key, subject string }{
		"own":    {"", "", "$JS.API.INFO"},
		"domain": {"domain: hub", `,"domain":"hub"`, "$JS.hub.API.INFO"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t, fmt.Sprintf(`authorization { users: [ { user: a, password: a, permissions: { publish: { deny: [%q] } } } ] }`, tc.subject), tc.inJetStream)
			url := strings.Replace(srv.url, "://", "://a:a@", 1)
			_, js := connect(t, url)
			stream, prefix := addStream(t, js, nil)
			began := time.Now()
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q%s}`, url, stream, tc.key))
			if s.perKey || time.Since(began) > 2*time.Second {
				t.Errorf("the sink opened after %s, one of a key in flight = %t; want it at once, and many", time.Since(began), s.perKey)
			}
			first := s.conn
			if err := s.Publish(testContext(t), messages(prefix+".a", 1, 20, 2)); err != nil || s.conn != first {
				t.Errorf("Publish = %v, over the same connection %t; want nil, true", err, s.conn == first)
			}
		})
	}
}

// An account that imports another's stream has no JetStream of its own to ask about, or
// no answer comes. Neither holds up the sink for long.
func TestAccountInfoOfAnImportedStream(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer string
		perKey bool
	}{
		"not enabled": {`{"error":{"code":503,"err_code":10039,"description":"JetStream not enabled for account"}}`, false},
		"unanswered":  {"", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := startServer(t, `accounts {
				HUB { jetstream: enabled, users: [ { user: h, password: h } ],
					exports: [ { service: "$JS.API.STREAM.INFO.*" }, { service: "s.>" }, { service: "info" } ] }
				APP { users: [ { user: a, password: a } ], imports: [
					{ service: { account: HUB, subject: "$JS.API.STREAM.INFO.S" } }, { service: { account: HUB, subject: "s.>" } },
					{ service: { account: HUB, subject: "info" }, to: "$JS.API.INFO" } ] } }`)
			hub, js := connect(t, strings.Replace(srv.url, "://", "://h:h@", 1))
			if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
				t.Fatal(err)
			}
			if _, err := hub.Subscribe("info", func(m *nats.Msg) {
				if tc.answer != "" {
					_ = m.Respond([]byte(tc.answer))
				}
			}); err != nil {
				t.Fatal(err)
			}
			if err := hub.Flush(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":"S","ack_timeout":"20s"}`, strings.Replace(srv.url, "://", "://a:a@", 1)))
			if took := time.Since(began); s.perKey != tc.perKey || took > 10*time.Second {
				t.Errorf("the sink opened after %s, one of a key in flight = %t; want it within seconds, and %t", took, s.perKey, tc.perKey)
			}
			if err := s.Publish(testContext(t), messages("s.a", 1, 20, 2)); err != nil {
				t.Errorf("Publish = %v", err)
			}
		})
	}
}

// republish does as the engine: before it publishes again what is in doubt, it reads
// back the stream from the last position. It returns the number of messages found.
func republish(t testing.TB, s *sink, batch []relay.Message) (found int) {
	t.Helper()
	ctx := testContext(t)
	for doubt := true; len(batch) > 0; {
		if doubt {
			position, err := s.Position(ctx)
			if err != nil {
				t.Fatal(err)
			}
			there := make(map[string]bool)
			if err := s.Resume(ctx, position, func(id string) { there[id] = true }); err != nil {
				t.Logf("Resume: %v", err)
				continue
			}
			n := len(batch)
			batch = slices.DeleteFunc(slices.Clone(batch), func(m relay.Message) bool { return there[m.ID] })
			found += n - len(batch)
		}
		if len(batch) == 0 {
			break
		}
		err := s.Publish(ctx, batch)
		if err == nil {
			break
		}
		t.Logf("Publish: %v", err)
		doubt = relay.IsUnknown(err)
	}
	return found
}

// The server stops answering in the middle of a batch, and comes back after the
// duplicate window has passed. What had been stored is not stored again.
func TestUnknownBeyondDuplicateWindow(t *testing.T) {
	srv := startServer(t, "")
	_, js := connect(t, srv.url)
	stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) { c.Duplicates = 100 * time.Millisecond })
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"confirm_timeout":"300ms"}`, srv.url, stream))
	first := messages(prefix+".a", 1, 5, 2)
	if err := s.Publish(testContext(t), first); err != nil {
		t.Fatal(err)
	}
	batch := messages(prefix+".a", 6, 20, 2)
	srv.freeze(t)
	err := s.Publish(testContext(t), batch)
	if !errors.Is(err, errConfirmTimeout) || !relay.IsUnknown(err) {
		t.Fatalf("Publish to a frozen server = %v, want a timeout after which it is unknown what arrived", err)
	}
	srv.thaw()                          // it reads what we had sent
	_ = readRaw(t, js, stream, 25)      // and stores it
	time.Sleep(1200 * time.Millisecond) // the server forgets ids lazily
	if found := republish(t, s, batch); found != 20 {
		t.Errorf("%d messages were found in the stream, want 20", found)
	}
	if got := readRaw(t, js, stream, 25); len(got) != 25 {
		t.Errorf("the stream holds %d messages, want 25", len(got))
	}
}

func TestPerKeyPipelining(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	for _, mode := range []string{"full", "per_key", "auto"} {
		s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"pipelining":%q}`, url, stream, mode))
		if want := mode == "per_key"; s.perKey != want {
			t.Errorf("pipelining %s on a plain stream: one of a key in flight = %t, want %t", mode, s.perKey, want)
		}
		if err := s.Publish(testContext(t), messages(prefix+".a", 1, 200, 7)); err != nil {
			t.Errorf("pipelining %s: Publish = %v", mode, err)
		}
	}
	if got := readRaw(t, js, stream, 200); len(got) != 200 {
		t.Errorf("the stream holds %d messages, want 200", len(got))
	}
}

// Of two pipelines of one outbox in a stream, each recognises what it wrote, and takes
// what an older relay wrote for its own.
func TestResumeBesideAnotherPipeline(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	at, err := s.Position(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	batch := messages(prefix+".a", 1, 3, 1)
	batch[1].DeliveryID = relay.DeliveryID("anotherpipel", batch[1].ID)
	batch[2].DeliveryID = ""
	if err := s.Publish(testContext(t), batch); err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := s.Resume(testContext(t), at, func(id string) { got = append(got, id) }); err != nil {
		t.Fatal(err)
	}
	if want := []string{batch[0].ID, batch[2].ID}; !slices.Equal(got, want) {
		t.Errorf("Resume saw %q, want %q", got, want)
	}
}

// A stream that is deleted and created again is read back from its beginning.
func TestResumeOfNewStream(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	config := fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream)
	s := openSink(t, config)
	if err := s.Publish(testContext(t), messages(prefix+".a", 1, 30, 1)); err != nil {
		t.Fatal(err)
	}
	at, err := s.Position(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	st, _ := js.Stream(testContext(t), stream)
	cfg := st.CachedInfo().Config
	_ = js.DeleteStream(testContext(t), stream)
	if _, err := js.CreateStream(testContext(t), cfg); err != nil {
		t.Fatal(err)
	}
	again := openSink(t, config)
	if err := again.Publish(testContext(t), messages(prefix+".a", 31, 5, 1)); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := openSink(t, config).Resume(testContext(t), at, func(string) { n++ }); err != nil || n != 5 {
		t.Errorf("Resume of a stream made anew saw %d, %v; want 5", n, err)
	}
}

// A work queue cannot be read back. Its duplicate window must do, after a crash
// and after confirmations that never came.
func TestWorkQueue(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	for name, filters := range map[string][]string{"without consumer": nil, "with a consumer": {""}, "with filtered consumers": {".a", ".b"}} {
		t.Run(name, func(t *testing.T) {
			stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) { c.Retention = jetstream.WorkQueuePolicy })
			for i, filter := range filters {
				cfg := jetstream.ConsumerConfig{Durable: fmt.Sprint("c", i), AckPolicy: jetstream.AckExplicitPolicy}
				if filter != "" {
					cfg.FilterSubject = prefix + filter
				}
				if _, err := js.CreateConsumer(testContext(t), stream, cfg); err != nil {
					t.Fatal(err)
				}
			}
			config := fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream)
			s := openSink(t, config)
			at, err := s.Position(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			batch := messages(prefix+".a", 1, 30, 3)
			if err := s.Publish(testContext(t), batch); err != nil { // and dies before its checkpoint
				t.Fatal(err)
			}
			next := openSink(t, config)
			if err := next.Resume(testContext(t), at, func(string) {}); err != nil {
				t.Fatalf("Resume = %v", err)
			}
			if at, err := next.Position(testContext(t)); err != nil || !strings.HasSuffix(at, " 30") {
				t.Errorf("Position() after Resume = %q, %v; want it behind message 30", at, err)
			}
			if err := next.Publish(testContext(t), batch); err != nil || next.TakeDuplicates() != 30 {
				t.Errorf("Publish again = %v, want 30 duplicates", err)
			}
			if id := next.DuplicateID(); !slices.ContainsFunc(batch, func(m relay.Message) bool { return m.ID == id }) {
				t.Errorf("DuplicateID = %q, which is none of the batch", id)
			}
			if g := next.Guarantee(); strings.Contains(g.Dedup, "tail") || !strings.Contains(g.Weakest, "work queue") {
				t.Errorf("Guarantee() = %+v, want the duplicate window alone", g)
			}
		})
	}
}

// A header name that cannot be sent costs its own message alone, and what is
// behind it in its key.
func TestHeaderNames(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	const n, keys, at = 12, 4, 3
	for _, name := range []string{"user id", "a:b", "naïve", "", "a/b"} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			stream, prefix := addStream(t, js, nil)
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
			batch := messages(prefix+".a", 1, n, keys)
			batch[at].Headers = append(batch[at].Headers, relay.Header{Name: name, Value: "x"})
			err := s.Publish(testContext(t), batch)
			partial, ok := errors.AsType[*relay.BatchError](err)
			if !ok || !relay.IsPermanent(partial.Failed[at]) || !strings.Contains(partial.Failed[at].Error(), "printable ASCII") {
				t.Fatalf("Publish = %v, want message %d refused for good", err, at)
			}
			for i := range batch {
				behind := i > at && batch[i].Key == batch[at].Key
				if i != at && behind != errors.Is(partial.Failed[i], relay.ErrHeldBack) {
					t.Errorf("message %d: %v, held back %t", i, partial.Failed[i], behind)
				}
			}
			if got := readRaw(t, js, stream, n-n/keys); len(got) != n-n/keys {
				t.Errorf("the stream holds %d messages, want %d", len(got), n-n/keys)
			}
		})
	}
}

// The client would send another value than the row's, without a word.
func TestHeaderValues(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	n := 0
	for value, sent := range map[string]bool{
		"a\r\nNats-Msg-Id: forged": false, "a\nb": false, "a\rb": false, " a": false, "a ": false, "\ta": false,
		"": true, "a b": true, "naïve": true, "a:b": true,
	} {
		n++
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			stream, prefix := addStream(t, js, nil)
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
			batch := messages(prefix+".a", 1, 2, 2)
			batch[0].Headers = append(batch[0].Headers, relay.Header{Name: "X-Note", Value: value})
			err := s.Publish(testContext(t), batch)
			if partial, ok := errors.AsType[*relay.BatchError](err); sent != (err == nil) || !sent && (!ok || !relay.IsPermanent(partial.Failed[0]) || len(partial.Failed) != 1) {
				t.Fatalf("Publish of %q = %v, want the first message alone refused = %t", value, err, !sent)
			}
			stored := readRaw(t, js, stream, 1)
			if got, _ := stored[0].Header("X-Note"); sent && got != value {
				t.Errorf("X-Note arrived as %q", got)
			}
		})
	}
}

func TestAllocations(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	ctx := testContext(t)
	batch := messages(prefix+".a", 1, 1000, 1)
	if err := s.Publish(ctx, batch); err != nil {
		t.Fatal(err)
	}
	// The client makes one for the header block it sends, and four for each
	// confirmation: subject, message, data and its place in the subscription.
	perMessage := testing.AllocsPerRun(10, func() {
		if err := s.Publish(ctx, batch); err != nil {
			t.Error(err)
		}
	}) / float64(len(batch))
	if perMessage > 13 { // these are duplicates, which encoding/json reads
		t.Errorf("%.1f allocations a message", perMessage)
	}
	next := 1001
	fresh := make([][]relay.Message, 5)
	for i := range fresh {
		fresh[i] = messages(prefix+".a", next, 1000, 1)
		next += 1000
	}
	i := 0
	perMessage = testing.AllocsPerRun(len(fresh)-1, func() {
		if err := s.Publish(ctx, fresh[i]); err != nil {
			t.Error(err)
		}
		i++
	}) / 1000
	t.Logf("%.2f allocations a message", perMessage)
	if perMessage > 6.5 { // the race detector adds one
		t.Errorf("%.2f allocations a message, want 5", perMessage)
	}
}

// A subject that comes from a row stops the messages with that subject, no others.
func TestSubjectOfRowIsRefusedAlone(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, js := connect(t, url)
	name := fmt.Sprintf("ROW%d", time.Now().UnixNano())
	t.Cleanup(func() { _ = js.DeleteStream(context.Background(), name) })
	_, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: name, Subjects: []string{name + ".in.>"}})
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()

	for _, stream := range []string{name, ""} {
		s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"subject":"%s.{row.place}.{row.city}"}`, url, stream, name))
		batch := messages(name+".in.bonn", 1, 4, 4)
		for i := range batch {
			batch[i].ID += stream
		}
		batch[1].Subject = name + ".in." + strings.Repeat("x", 4100)
		batch[2].Subject = name + ".out.bonn"
		partial, ok := errors.AsType[*relay.BatchError](s.Publish(testContext(t), batch))
		if !ok || len(partial.Failed) != 2 || !relay.IsPermanent(partial.Failed[1]) || !relay.IsPermanent(partial.Failed[2]) {
			t.Errorf("stream %q: Publish = %v, want the second and the third message refused for good", stream, partial)
		}
	}

	// The longest subject that passes.
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, name))
	batch := messages(name+".in.bonn", 10, 1, 1)
	for n := 4096; n > 3900; n-- {
		batch[0].Subject = name + ".in." + strings.Repeat("x", n-len(name)-4)
		err := s.Publish(testContext(t), batch)
		if err == nil {
			break
		}
		if partial, ok := errors.AsType[*relay.BatchError](err); !ok || !relay.IsPermanent(partial.Failed[0]) {
			t.Fatalf("a subject of %d bytes: %v, want a permanent error", n, err)
		}
	}
	if n := len(batch[0].Subject); n < 3990 || n > 4060 {
		t.Errorf("the longest subject has %d bytes, want about 4,030", n)
	}

	// A template that can make no subject of the stream is an error of the configuration.
	s = openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"subject":"%s.out.{row.city}"}`, url, name, name))
	partial, ok := errors.AsType[*relay.BatchError](s.Publish(testContext(t), messages(name+".out.bonn", 20, 2, 2)))
	if !ok || !relay.IsFatal(partial.Failed[0]) {
		t.Errorf("a template beside the stream = %v, want a fatal error", partial)
	}
}

// A limit that was raised holds for the next message: dlq retry must deliver after the
// operator's cure, without a new connection.
func TestLimitIsAskedAgain(t *testing.T) {
	srv := startServer(t, "max_payload: 4000")
	_, js := connect(t, srv.url)
	stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 })
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, srv.url, stream))
	large := relay.Message{ID: "1", Subject: prefix + ".a", Body: make([]byte, 2000)}
	publish := func() error {
		s.asked = time.Time{} // a second later
		return s.Publish(testContext(t), []relay.Message{large})
	}
	if err := publish(); !relay.IsPermanent(batchError(err, 0)) {
		t.Fatalf("Publish = %v, want a permanent error", err)
	}
	changeStream(t, js, stream, func(c *jetstream.StreamConfig) { c.MaxMsgSize = 100_000 })
	if err := publish(); err != nil {
		t.Errorf("Publish after max_msg_size was raised = %v", err)
	}

	large.ID, large.Body = "2", make([]byte, 5000)
	if err := publish(); !relay.IsPermanent(batchError(err, 0)) {
		t.Fatalf("Publish = %v, want a permanent error", err)
	}
	conf, err := os.ReadFile(srv.conf)
	if err == nil {
		err = os.WriteFile(srv.conf, bytes.ReplaceAll(conf, []byte("4000"), []byte("8000")), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err = publish(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("Publish after max_payload was raised = %v", err)
		}
	}
}

func batchError(err error, i int) error {
	if e, ok := errors.AsType[*relay.BatchError](err); ok {
		return e.Failed[i]
	}
	return err
}

// A sealed stream stores nothing again: the pipeline stops and names it.
func TestSealedStream(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, js := connect(t, url)
	defer nc.Close()
	name := fmt.Sprintf("SEALED%d", time.Now().UnixNano())
	t.Cleanup(func() { _ = js.DeleteStream(context.Background(), name) })
	cfg := jetstream.StreamConfig{Name: name, Subjects: []string{name + ".>"}}
	if _, err := js.CreateStream(testContext(t), cfg); err != nil {
		t.Fatal(err)
	}
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, name))
	if err := s.Publish(testContext(t), messages(name+".a", 1, 2, 2)); err != nil {
		t.Fatal(err)
	}
	cfg.Sealed = true
	if _, err := js.UpdateStream(testContext(t), cfg); err != nil {
		t.Fatal(err)
	}
	err := s.Publish(testContext(t), messages(name+".a", 3, 2, 2))
	if partial, ok := errors.AsType[*relay.BatchError](err); ok {
		err = partial.Failed[0]
	}
	if !relay.IsFatal(err) || !strings.Contains(err.Error(), "sealed") {
		t.Errorf("Publish to a sealed stream = %v, want a fatal error that names the cause", err)
	}
}
