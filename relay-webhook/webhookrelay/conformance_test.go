package webhookrelay

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// receiver is a plain net/http server that keeps what it is sent.
type receiver struct {
	mu     sync.Mutex
	got    []relay.Message
	server *httptest.Server
}

// newReceiver answers 422 to a body that has "refuse-me" in it.
func newReceiver(t testing.TB, batches bool) *receiver {
	r := &receiver{}
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if bytes.Contains(body, []byte("refuse-me")) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if batches {
			r.keepBatch(body)
		} else {
			r.keep(req.Header, body)
		}
	}))
	t.Cleanup(func() { r.server.Close() })
	return r
}

func (r *receiver) keep(h http.Header, body []byte) {
	m := relay.Message{Body: body}
	for name, values := range h {
		addHeader(&m, name, values[0])
	}
	m.ID = cmp.Or(h.Get(relay.HeaderDedupKey), h.Get("Idempotency-Key"))
	r.got = append(r.got, m)
}

// keepBatch takes an array of envelopes.
func (r *receiver) keepBatch(body []byte) {
	var events []struct {
		DedupKey string          `json:"dedup_key"`
		Payload  json.RawMessage `json:"payload"`
	}
	_ = json.Unmarshal(body, &events)
	for _, e := range events {
		r.got = append(r.got, relay.Message{ID: e.DedupKey, Body: e.Payload})
	}
}

// restart closes the server with all its connections and opens it again.
func (r *receiver) restart(t testing.TB) {
	t.Helper()
	addr, handler := r.server.Listener.Addr().String(), r.server.Config.Handler
	r.server.CloseClientConnections()
	r.server.Close()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	r.server = &httptest.Server{Listener: ln, Config: &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}}
	r.server.Start()
}

func (r *receiver) read(t testing.TB, n int) []relay.Message {
	t.Helper()
	deadline := time.Now().Add(relaytest.Patience())
	for {
		r.mu.Lock()
		got := append([]relay.Message(nil), r.got...)
		r.mu.Unlock()
		// At least once: a request without an answer may have arrived, too.
		seen := make(map[string]bool)
		unique := got[:0]
		for _, m := range got {
			if !seen[m.ID] {
				seen[m.ID] = true
				unique = append(unique, m)
			}
		}
		if len(unique) >= n {
			return unique
		}
		if time.Now().After(deadline) {
			t.Fatalf("the receiver has %d events, want %d", len(unique), n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestSink(t *testing.T) {
	var r *receiver
	relaytest.TestSink(t, relaytest.SinkHarness{
		Restart: func(t testing.TB) { r.restart(t) },
		Refuse:  func(_ testing.TB, m *relay.Message) { m.Body = []byte(`"refuse-me"`) },
		New: func(t testing.TB) relaytest.SinkCase {
			r = newReceiver(t, false)
			return relaytest.SinkCase{
				Open: func(t testing.TB) relay.Sink { return openSink(t, r.server.URL, nil) },
				Read: func(t testing.TB, n int) []relay.Message { return r.read(t, n) },
			}
		},
	})
}

// In mode batch the ids travel in the bodies, as they do in an envelope.
func TestSinkBatch(t *testing.T) {
	var r *receiver
	relaytest.TestSink(t, relaytest.SinkHarness{
		NoHeaders: true, JSONOnly: true, UTF8Only: true,
		Restart: func(t testing.TB) { r.restart(t) },
		Refuse:  func(_ testing.TB, m *relay.Message) { m.Body = []byte(`"refuse-me"`) },
		New: func(t testing.TB) relaytest.SinkCase {
			r = newReceiver(t, true)
			return relaytest.SinkCase{
				Open: func(t testing.TB) relay.Sink {
					return enveloped{openSink(t, r.server.URL, map[string]any{"mode": "batch", "batch_messages": 50})}
				},
				Read: func(t testing.TB, n int) []relay.Message { return r.read(t, n) },
			}
		},
	})
}

// enveloped wraps the suite's bodies, as the engine's encoder does.
type enveloped struct{ relay.Sink }

func (e enveloped) Publish(ctx context.Context, batch []relay.Message) error {
	wrapped := append([]relay.Message(nil), batch...)
	for i := range wrapped {
		wrapped[i].Body = envelope(&wrapped[i])
	}
	return e.Sink.Publish(ctx, wrapped)
}

func envelope(m *relay.Message) []byte {
	b, _ := json.Marshal(map[string]any{"dedup_key": m.ID, "subject": m.Subject, "op": m.Op, "payload": json.RawMessage(m.Body)})
	return b
}

func openSink(t testing.TB, url string, config map[string]any) relay.Sink {
	t.Helper()
	s, err := tryOpenSink(t, url, config)
	if err != nil {
		t.Fatalf("NewSink = %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tryOpenSink(t testing.TB, url string, config map[string]any) (relay.Sink, error) {
	t.Helper()
	all := map[string]any{"url": url, "allow_private": true}
	maps.Copy(all, config)
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return Backend().Sink.New(context.Background(), env(), raw)
}

func env() relay.Env {
	return relay.Env{Pipeline: "hooks", Identity: relaytest.Identity, Logger: slog.New(slog.DiscardHandler)}
}

func TestSource(t *testing.T) {
	relaytest.TestSource(t, relaytest.SourceHarness{
		NoEmpty: true, // a request without a body is refused
		New: func(t testing.TB) relaytest.SourceCase {
			b := Backend()
			bind := freeAddr(t)
			sender := newSender(t, "http://"+bind+"/events")
			return relaytest.SourceCase{
				Open: func(t testing.TB, _ relay.Checkpoint) relay.Source {
					return openSource(t, b, map[string]any{"bind": bind, "auth": "bearer", "secret": "s", "on_missing_id": "hash"})
				},
				Feed: sender.feed,
				FeedForeign: func(t testing.TB, body []byte) {
					sender.post(t, http.Header{"Content-Type": {"application/json"}}, body)
				},
			}
		},
	})
}

func openSource(t testing.TB, b relay.Backend, config map[string]any) relay.Source {
	t.Helper()
	s, err := tryOpenSource(t, b, config)
	if err != nil {
		t.Fatalf("NewSource = %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func tryOpenSource(t testing.TB, b relay.Backend, config map[string]any) (relay.Source, error) {
	t.Helper()
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	return b.Source.New(context.Background(), env(), raw)
}

func freeAddr(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// sender is a plain net/http client that repeats each request until it is
// answered with 2xx, as every provider of webhooks does.
type sender struct {
	url    string
	client *http.Client
	ctx    context.Context
	sent   sync.WaitGroup
}

func newSender(t testing.TB, url string) *sender {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sender{url: url, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}, ctx: ctx}
	t.Cleanup(func() {
		cancel()
		s.sent.Wait()
		s.client.CloseIdleConnections()
	})
	return s
}

// feed sends one message with headers, and several as a batch of envelopes.
func (s *sender) feed(t testing.TB, batch []relay.Message) {
	if len(batch) > 1 {
		parts := make([]json.RawMessage, len(batch))
		for i := range batch {
			parts[i] = envelope(&batch[i])
		}
		body, err := json.Marshal(parts)
		if err != nil {
			t.Fatal(err)
		}
		s.post(t, http.Header{"Content-Type": {"application/json"}}, body)
		return
	}
	m := &batch[0]
	h := http.Header{"Idempotency-Key": {m.ID}, "Pgtrickle-Subject": {m.Subject}}
	for _, x := range m.WireHeaders(nil) {
		h.Set(x.Name, x.Value)
	}
	if !json.Valid(m.Body) {
		h.Set("Content-Type", "application/octet-stream")
	}
	s.post(t, h, m.Body)
}

func (s *sender) post(t testing.TB, h http.Header, body []byte) {
	s.sent.Go(func() {
		for s.ctx.Err() == nil {
			req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.url, bytes.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header = h.Clone()
			req.Header.Set("Authorization", "Bearer s")
			resp, err := s.client.Do(req)
			if err == nil {
				answer, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					return
				}
				if resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
					t.Errorf("the source answers %d: %s", resp.StatusCode, strings.TrimSpace(string(answer)))
					return
				}
			}
			select {
			case <-s.ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}
