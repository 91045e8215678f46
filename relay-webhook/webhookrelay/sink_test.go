package webhookrelay

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// serve runs handler for the length of the test.
func serve(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	return srv.URL
}

func answer(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func one() []relay.Message { return []relay.Message{relaytest.Message(1, "k")} }

// What a plain server sees of one event.
func TestRequest(t *testing.T) {
	t.Parallel()
	var got *http.Request
	var body string
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
	})
	key := []byte("0123456789abcdef")
	s := openSink(t, url+"/hooks/{stream_table}/{row.key}?n={row.n}", map[string]any{
		"method":         "PUT",
		"headers":        map[string]string{"Authorization": "Bearer t", "X-Table": "{stream_table}", "Host": "hooks.example"},
		"signing_secret": []string{"whsec_" + base64.StdEncoding.EncodeToString(key), "plain"},
	})
	m := relaytest.Message(7, "a/b c?")
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-x"}, {Name: "X-Table", Value: "loses"}}
	m.FullRefresh = true
	if err := s.Publish(context.Background(), []relay.Message{m}); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if got.Method != "PUT" || got.RequestURI != "/hooks/orders/a%2Fb%20c%3F?n=7" || got.Host != "hooks.example" || body != string(m.Body) {
		t.Errorf("request = %s %s to %s with %q", got.Method, got.RequestURI, got.Host, body)
	}
	for name, want := range map[string]string{
		"Idempotency-Key": m.DeliveryID, "webhook-id": m.DeliveryID, "Pgtrickle-Dedup-Key": m.ID,
		"Content-Type": "application/json",
		"Pgtrickle-Op": "insert", "Pgtrickle-Outbox-Id": "7", "Pgtrickle-Full-Refresh": "true", "Pgtrickle-Key": "a/b c?",
		"Pgtrickle-Subject": "orders.insert", "traceparent": "00-x", "Authorization": "Bearer t", "X-Table": "orders", "User-Agent": "pgtrickle-relay",
	} {
		if v := got.Header.Get(name); v != want {
			t.Errorf("header %s = %q, want %q", name, v, want)
		}
	}
	timestamp := got.Header.Get("webhook-timestamp")
	if at, err := strconv.ParseInt(timestamp, 10, 64); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
		t.Errorf("webhook-timestamp = %q, want now in seconds", timestamp)
	}
	var want strings.Builder
	for _, k := range [][]byte{key, []byte("plain")} {
		mac := hmac.New(sha256.New, k)
		fmt.Fprintf(mac, "%s.%s.%s", m.DeliveryID, timestamp, body)
		want.WriteString(" v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if v := got.Header.Get("webhook-signature"); v != want.String()[1:] {
		t.Errorf("webhook-signature = %q, want %q", v, want.String()[1:])
	}
}

// The example of the Standard Webhooks specification's reference libraries.
func TestSignKnownVector(t *testing.T) {
	t.Parallel()
	keys, err := decodeSecrets("signing_secret", []relaycfg.Secret{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := newSigner(keys).sign(t.Context(), "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", content{bytes: []byte(`{"test": 2432232314}`)})
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("sign = %s, want %s", got, want)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, ofRow bool) error {
		if answer == onList {
			return classifier{retry: []int{422}, perMessage: ofRow}.classify(422, "", 0)
		}
		status, _ := strconv.Atoi((answer + "99")[:3])
		return classifier{perMessage: ofRow}.classify(status, "", 0)
	})
}

// TestPathOfDots: a row leads no request out of the template's path, also where a server
// decodes the path before it resolves it.
func TestPathOfDots(t *testing.T) {
	t.Parallel()
	var paths sync.Map
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { paths.Store(r.URL.EscapedPath(), true) })
	for tenant, refused := range map[string]bool{
		"..": true, ".": true, "../../admin": true, "a/../../admin": true, "a/..": true, `..\\admin`: true, "./a": true,
		"a..b": false, "...": false, "a/b": false, "..%2Fadmin": false, // the sink escapes the percent sign
	} {
		s := openSink(t, url+"/hooks/{row.tenant}", nil)
		m := relaytest.Message(1, "k")
		m.Row = []byte(`{"tenant":"` + tenant + `"}`)
		if dead := relaytest.Settle(t, s, []relay.Message{m}); (len(dead) > 0) != refused {
			t.Errorf("%s: dead letters %v, want refused %t", tenant, dead, refused)
		}
	}
	if _, ok := paths.Load("/hooks/a..b"); !ok {
		t.Error("the endpoint saw no request for /hooks/a..b")
	}
}

// TestPingCompletesTLS: a certificate that a request would refuse does not open.
func TestPingCompletesTLS(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	srv := httptest.NewUnstartedServer(answer(http.StatusOK))
	srv.TLS = ca.Server(t)
	srv.TLS.ClientAuth = tls.NoClientCert
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	openSink(t, srv.URL, map[string]any{"tls_ca": ca.File})
	for name, config := range map[string]map[string]any{
		"no authority":      nil,
		"another authority": {"tls_ca": tlstest.New(t).File},
		"another name":      {"tls_ca": ca.File, "tls_server_name": "x.example"},
	} {
		if _, err := tryOpenSink(t, srv.URL, config); !relay.IsFatal(err) || !strings.Contains(err.Error(), "set webhook_tls_") {
			t.Errorf("%s: NewSink = %v, want a fatal error with the key to set", name, err)
		}
	}
}

// TestPingSeesARefusedClient: with TLS 1.3 the handshake of a client is complete before the
// endpoint refuses its certificate.
func TestPingSeesARefusedClient(t *testing.T) {
	t.Parallel()
	ca, other := tlstest.New(t), tlstest.New(t)
	config := ca.Server(t)
	url := "https://" + relaytest.Serve(t, func(conn net.Conn) {
		_ = tls.Server(conn, config).Handshake()
		_, _ = conn.Read(make([]byte, 1024))
	})
	cert, key := ca.Issue(t, "client")
	wrong, wrongKey := other.Issue(t, "client")
	for i := range 20 {
		if _, err := tryOpenSink(t, url, map[string]any{"tls_ca": ca.File}); classOf(err) != "fatal" || !strings.Contains(err.Error(), "webhook_tls_cert") {
			t.Fatalf("attempt %d without a certificate = %v, want a fatal error with the key", i, err)
		}
		_, err := tryOpenSink(t, url, map[string]any{"tls_ca": ca.File, "tls_cert": wrong, "tls_key": wrongKey})
		if classOf(err) != "fatal" {
			t.Fatalf("attempt %d with another authority's certificate = %v, want a fatal error", i, err)
		}
	}
	if _, err := tryOpenSink(t, url, map[string]any{"tls_ca": ca.File, "tls_cert": cert, "tls_key": key}); err != nil {
		t.Error(err)
	}
}

// A URL that a row makes, and that does not exist or refuses the relay, stops the messages
// for it and no others.
func TestURLOfRowIsRefusedAlone(t *testing.T) {
	t.Parallel()
	for _, status := range []int{403, 404, 405, 410} {
		url := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/bad" {
				w.WriteHeader(status)
			}
		})
		s := openSink(t, url+"/{row.tenant}", nil)
		batch := make([]relay.Message, 4)
		for i := range batch {
			batch[i] = relaytest.Message(i+1, strconv.Itoa(i))
			batch[i].Row = []byte(`{"tenant":"good"}`)
		}
		batch[2].Row = []byte(`{"tenant":"bad"}`)
		if dead := relaytest.Settle(t, s, batch); !slices.Equal(dead, []string{batch[2].ID}) {
			t.Errorf("answer %d: dead letters %v, want the third message", status, dead)
		}
	}
}

func TestStatusClasses(t *testing.T) {
	t.Parallel()
	const (
		ok        = "ok"
		transient = "transient"
		permanent = "permanent"
		fatal     = "fatal"
	)
	for status, want := range map[int]string{
		200: ok, 201: ok, 202: ok, 204: ok,
		301: fatal, 302: fatal, 307: fatal,
		400: permanent, 402: permanent, 409: permanent, 413: permanent, 418: permanent, 422: permanent,
		401: fatal, 403: fatal, 404: fatal, 405: fatal, 410: fatal, 415: fatal, 501: fatal, 505: fatal,
		408: transient, 429: transient, 500: transient, 502: transient, 503: transient, 504: transient, 507: transient, 522: transient,
	} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				if status >= 400 {
					_, _ = io.WriteString(w, "because\n")
				}
			})
			err := openSink(t, url, nil).Publish(context.Background(), one())
			got := classOf(err)
			if got != want || (status >= 400 && !strings.Contains(err.Error(), `"because"`)) {
				t.Errorf("answer %d = %v (%s), want %s", status, err, got, want)
			}
		})
	}
}

func classOf(err error) string {
	var partial *relay.BatchError
	if errors.As(err, &partial) {
		err = partial.Failed[0]
	}
	switch {
	case err == nil:
		return "ok"
	case relay.IsFatal(err):
		return "fatal"
	case relay.IsPermanent(err):
		return "permanent"
	}
	return "transient"
}

func TestRetryOnStatus(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{404: "transient", 503: "permanent", 301: "transient"} {
		s := openSink(t, serve(t, answer(status)), map[string]any{"retry_on_status": []int{404, 301}})
		if err := s.Publish(context.Background(), one()); classOf(err) != want {
			t.Errorf("answer %d with retry_on_status [404,301] = %v, want %s", status, err, want)
		}
	}
}

// Where the URL depends on the row, the row is to blame for what is not there.
func TestMissingPerMessage(t *testing.T) {
	t.Parallel()
	s := openSink(t, serve(t, answer(404))+"/{row.n}", nil)
	if err := s.Publish(context.Background(), one()); classOf(err) != "permanent" {
		t.Errorf("404 for a URL of the row's own = %v, want permanent", err)
	}
	m := one()
	m[0].Row = []byte(`{"n":".."}`)
	if err := s.Publish(context.Background(), m); classOf(err) != "permanent" || !strings.Contains(err.Error(), "dots") {
		t.Errorf("Publish with n = .. = %v, want a permanent error", err)
	}
	m[0].Row = []byte(`{}`)
	if err := s.Publish(context.Background(), m); classOf(err) != "permanent" {
		t.Errorf("Publish without n = %v, want a permanent error", err)
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "x": 0, "999999999999": time.Hour,
		"Sun, 22 Nov 2026 12:01:30 GMT": 90 * time.Second, "Sun, 22 Nov 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}}, now); got != want {
			t.Errorf("retryAfter(%q) = %s, want %s", value, got, want)
		}
	}
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "3")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	err := openSink(t, url, nil).Publish(context.Background(), one())
	if d, ok := relay.RetryDelay(err); !ok || d != 3*time.Second {
		t.Errorf("RetryDelay(%v) = %s, %t; want 3s", err, d, ok)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	url := serve(t, func(http.ResponseWriter, *http.Request) { <-release })
	defer close(release)
	s := openSink(t, url, map[string]any{"timeout_ms": 100})
	began := time.Now()
	err := s.Publish(context.Background(), one())
	if classOf(err) != "transient" || !errors.Is(err, errTimeout) || time.Since(began) > 5*time.Second {
		t.Errorf("Publish to a server that does not answer = %v after %s", err, time.Since(began))
	}
}

// One server error does not make the sink try everything else against it; and
// what it does not try it does not blame.
func TestStopsWhenTheEndpointFails(t *testing.T) {
	t.Parallel()
	var requests atomic.Int64
	url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	batch := make([]relay.Message, 500)
	for i := range batch {
		batch[i] = relaytest.Message(i, "") // no order asked
	}
	err := openSink(t, url, map[string]any{"concurrency": 4}).Publish(context.Background(), batch)
	if classOf(err) != "transient" || requests.Load() > 8 {
		t.Errorf("Publish = %v after %d requests, want a transient error after no more than 8", err, requests.Load())
	}
}

// A 500 is as likely to be one message's fault, and holds up its key alone.
func TestOtherKeysGoOn(t *testing.T) {
	t.Parallel()
	var got atomic.Int64
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Pgtrickle-Key") == "bad" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		got.Add(1)
	})
	var batch []relay.Message
	for i := range 60 {
		batch = append(batch, relaytest.Message(i, []string{"bad", "a", "b"}[i%3]))
	}
	err := openSink(t, url, nil).Publish(context.Background(), batch)
	var partial *relay.BatchError
	if !errors.As(err, &partial) || len(partial.Failed) != 20 || !errors.Is(partial.Failed[3], relay.ErrHeldBack) || got.Load() != 40 {
		t.Errorf("Publish = %v; %d arrived, want 40 and the 20 of the bad key failed", err, got.Load())
	}
}

// Keys run side by side, messages of one key do not.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var now, most int
	byKey := make(map[string]int)
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Pgtrickle-Key")
		mu.Lock()
		now++
		most = max(most, now)
		if byKey[key]++; byKey[key] > 1 {
			t.Errorf("two requests of key %s at once", key)
		}
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		now--
		byKey[key]--
		mu.Unlock()
	})
	s := openSink(t, url, map[string]any{"concurrency": 3})
	var batch []relay.Message
	for i := range 60 {
		batch = append(batch, relaytest.Message(i, fmt.Sprint("k", i%6)))
	}
	if err := s.Publish(context.Background(), batch); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if most != 3 {
		t.Errorf("%d requests at once with concurrency 3", most)
	}
}

func TestBatchRequests(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var bodies []string
	var first http.Header
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, string(b))
		if first == nil {
			first = r.Header
		}
	})
	batch := make([]relay.Message, 5)
	for i := range batch {
		batch[i] = relaytest.Message(i, "k")
		batch[i].Body = []byte(strconv.Itoa(i))
	}
	s := openSink(t, url, map[string]any{"batch_mode": true, "batch_messages": 2, "signing_secret": "s"})
	if err := s.Publish(context.Background(), batch); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if got := strings.Join(bodies, " "); got != "[0,1] [2,3] [4]" {
		t.Errorf("bodies = %s", got)
	}
	id := first.Get("webhook-id")
	signature, _ := newSigner([][]byte{[]byte("s")}).sign(t.Context(), id, first.Get("webhook-timestamp"), content{bytes: []byte("[0,1]")})
	if !strings.HasPrefix(id, "batch_") || first.Get("Idempotency-Key") != id || first.Get("Pgtrickle-Batch") != "2" ||
		first.Get("webhook-signature") != signature {
		t.Errorf("headers of a batch = %v", first)
	}
	bodies = nil
	s = openSink(t, url, map[string]any{"mode": "batch", "batch_bytes": 5})
	if err := s.Publish(context.Background(), batch); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if got := strings.Join(bodies, " "); got != "[0,1] [2,3] [4]" {
		t.Errorf("bodies of at most 5 bytes = %s", got)
	}
	bodies = nil
	for i := range batch {
		batch[i].ContentType = "application/cloudevents+json"
	}
	first = nil
	s = openSink(t, url+"/{row.n}", map[string]any{"mode": "batch"})
	batch[1].Row = batch[0].Row
	if err := s.Publish(context.Background(), batch); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if got := strings.Join(bodies, " "); got != "[0,1] [2] [3] [4]" || first.Get("Content-Type") != "application/cloudevents-batch+json" {
		t.Errorf("bodies by URL = %s of type %s", got, first.Get("Content-Type"))
	}
}

func TestBatchResults(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer string
		want   string // classes of the four events
	}{
		"nothing said":  {`thanks`, "ok ok ok ok"},
		"other JSON":    {`{"ok":true,"data":{"results":"none"}}`, "ok ok ok ok"},
		"a list":        {`["results"]`, "ok ok ok ok"},
		"no results":    {`{"results":null}`, "ok ok ok ok"},
		"by position":   {`{"results":[{"status":200},{"status":422,"error":"no"},{"status":503},{}]}`, "ok permanent transient held"},
		"by id":         {`{"results":[{"id":"outbox_orders:3:0","status":500}]}`, "ok ok ok transient"},
		"error alone":   {`{"results":[{"id":"outbox_orders:1:0","error":"no"}]}`, "ok permanent ok held"},
		"wrong number":  {`{"results":[{"status":200}]}`, "transient transient transient transient"},
		"unknown id":    {`{"results":[{"id":"x","status":200}]}`, "transient transient transient transient"},
		"empty results": {`{"results":[]}`, "ok ok ok ok"},

		// There is no doubt what these mean.
		"status in quotes":   {`{"results":[{"status":"200"},{"status":"422","error":"no"},{"status":"503"},{"status":0}]}`, "ok permanent transient held"},
		"error is an object": {`{"results":[{"id":"outbox_orders:1:0","status":422,"error":{"code":7}}]}`, "ok permanent ok held"},
		"error object alone": {`{"results":[{"id":"outbox_orders:1:0","error":{"code":7}}]}`, "ok permanent ok held"},
		"no error":           {`{"results":[{"error":null},{"error":false},{"error":""},{"status":200,"error":"x"}]}`, "ok ok ok ok"},
		"numbers for ids":    {`{"results":[{"id":7,"status":200}]}`, "transient transient transient transient"},

		// These have a refusal in them that cannot be read.
		"status in words":    {`{"results":[{},{"status":"rejected"},{},{}]}`, "transient transient transient transient"},
		"status out of HTTP": {`{"results":[{},{"status":42},{},{}]}`, "transient transient transient transient"},
		"status is a list":   {`{"results":[{},{"status":[422]},{},{}]}`, "transient transient transient transient"},
		"id is an object":    {`{"results":[{"id":{},"status":422}]}`, "transient transient transient transient"},
		"not objects":        {`{"results":["ok","no","ok","ok"]}`, "transient transient transient transient"},
		"not a list":         {`{"results":{"outbox_orders:1:0":422}}`, "transient transient transient transient"},
		"broken off":         {`{"results":[{"id":"outbox_orders:1:0","status":422`, "transient transient transient transient"},
		"cut off":            {`{"results":[` + strings.Repeat(" ", maxResults) + `{"id":"outbox_orders:1:0","status":422}]}`, "transient transient transient transient"},
		"long thanks":        {`thanks ` + strings.Repeat("a lot ", maxResults/6), "ok ok ok ok"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusMultiStatus)
				_, _ = io.WriteString(w, tc.answer)
			})
			batch := make([]relay.Message, 4)
			for i := range batch {
				batch[i] = relaytest.Message(i, fmt.Sprint(i%2))
			}
			err := openSink(t, url, map[string]any{"mode": "batch"}).Publish(context.Background(), batch)
			var partial *relay.BatchError
			if err != nil && !errors.As(err, &partial) {
				partial = &relay.BatchError{Failed: map[int]error{0: err, 1: err, 2: err, 3: err}}
			}
			var got []string
			for i := range batch {
				switch {
				case partial == nil || partial.Failed[i] == nil:
					got = append(got, "ok")
				case errors.Is(partial.Failed[i], relay.ErrHeldBack):
					got = append(got, "held")
				default:
					got = append(got, classOf(partial.Failed[i]))
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("results = %s, want %s (%v)", strings.Join(got, " "), tc.want, err)
			}
		})
	}
}

// The error describes the answer, for the endpoint's author.
func TestBatchResultsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	s := &sink{}
	for answer, want := range map[string]string{
		`{"results":[{"status":"rejected"}]}`: `result 0 of the answer: status: "rejected" is not one of HTTP`,
		`{"results":[{"id":[]}]}`:             `result 0 of the answer: id: neither a string nor a number`,
		`{"results":["no"]}`:                  `result 0 of the answer: "no" is not an object`,
		`{"results":"no"}`:                    `the answer's results are not a list: "no"`,
		`{"results":[{}],}`:                   `the answer has results and is not JSON`,
	} {
		if _, err := s.results([]byte(answer), one()); err == nil || !strings.Contains(err.Error(), want) || classOf(err) != "transient" {
			t.Errorf("results(%s) = %v, want a transient error with %q", answer, err, want)
		}
	}
	events := one()
	events[0].ID = "42"
	errs, err := s.results([]byte(`{"results":[{"id":42,"error":"no"}]}`), events)
	if err != nil || len(errs) != 1 || !relay.IsPermanent(errs[0]) {
		t.Errorf("results by a number = %v, %v; want event 42 refused", errs, err)
	}
}

// A refused array in the middle comes first next time, as a whole, so that the
// engine can bisect it.
func TestBatchRefusedInTheMiddle(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if b, _ := io.ReadAll(r.Body); strings.Contains(string(b), "poison") {
			w.WriteHeader(http.StatusBadRequest)
		}
	})
	s := openSink(t, url, map[string]any{"mode": "batch", "batch_messages": 2})
	batch := make([]relay.Message, 6)
	for i := range batch {
		batch[i] = relaytest.Message(i, "")
	}
	batch[3].Body = []byte(`"poison"`)
	err := s.Publish(context.Background(), batch)
	var partial *relay.BatchError
	if !errors.As(err, &partial) || len(partial.Failed) != 4 || partial.Failed[2] == nil || classOf(partial.Failed[3]) != "transient" {
		t.Fatalf("Publish = %v, want the last four to be tried again", err)
	}
	if err := s.Publish(context.Background(), batch[2:]); !relay.IsPermanent(err) {
		t.Fatalf("Publish of the refused array = %v, want a permanent error for the whole", err)
	}
	if err := s.Publish(context.Background(), batch[3:4]); classOf(err) != "permanent" {
		t.Errorf("Publish of the poison alone = %v", err)
	}
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	var got string
	target := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = r.Method + " " + string(b)
	})
	redirect := func(status int) string {
		return serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, status) })
	}
	follow := map[string]any{"follow_redirects": true}
	m := one()
	if err := openSink(t, redirect(307), follow).Publish(context.Background(), m); err != nil || got != "POST "+string(m[0].Body) {
		t.Errorf("Publish through a 307 = %v; arrived %q", err, got)
	}
	got = ""
	// A client would follow a 302 with GET and lose the body.
	if err := openSink(t, redirect(302), follow).Publish(context.Background(), m); classOf(err) != "fatal" || got != "" {
		t.Errorf("Publish through a 302 = %v; arrived %q", err, got)
	}
	if err := openSink(t, redirect(307), nil).Publish(context.Background(), m); classOf(err) != "fatal" || got != "" {
		t.Errorf("Publish through a 307 that is not to be followed = %v; arrived %q", err, got)
	}

	for _, to := range []string{"file:///etc/passwd", "gopher://127.0.0.1/"} {
		other := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusTemporaryRedirect) })
		if err := openSink(t, other, follow).Publish(context.Background(), m); classOf(err) != "fatal" {
			t.Errorf("Publish through a redirect to %s = %v, want a fatal error", to, err)
		}
	}
}

// TestRedirectsCarryNoSecrets: another host than that of the configuration gets neither its
// headers nor its path, which can be secrets.
func TestRedirectsCarryNoSecrets(t *testing.T) {
	t.Parallel()
	var got http.Header
	target := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Clone() })
	redirect := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token1234" {
			http.Redirect(w, r, "/same", http.StatusTemporaryRedirect)
			return
		}
		if r.Header.Get("X-Api-Key") != "secret1234" {
			t.Errorf("the same host got %q", r.Header)
		}
		http.Redirect(w, r, strings.Replace(target, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
	})
	config := map[string]any{"follow_redirects": true, "headers": map[string]string{"x-api-key": "secret1234", "Authorization": "Bearer secret1234"}}
	if err := openSink(t, redirect+"/token1234", config).Publish(context.Background(), one()); err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprint(got); strings.Contains(text, "1234") || got.Get("Webhook-Id") == "" {
		t.Errorf("another host got %s", text)
	}
}

// The guard looks at what is dialled, whatever the URL calls it.
func TestGuardRefusesAtTheDial(t *testing.T) {
	t.Parallel()
	url := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("a request reached a private address") })
	_, port, err := net.SplitHostPort(strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254", "[::ffff:7f00:1]"} {
		_, err := tryOpenSink(t, "http://"+host+":"+port, map[string]any{"allow_private": false})
		if !relay.IsFatal(err) || !strings.Contains(err.Error(), "webhook_allow_private") {
			t.Errorf("NewSink onto %s = %v, want it refused", host, err)
		}
	}
	// As if the name had changed its mind, or a redirect led here.
	s := openSink(t, url, nil).(*sink)
	s.dialer.Control = newDialer(new(sinkConfig), nil).Control
	if err := s.Publish(context.Background(), one()); classOf(err) != "fatal" || !strings.Contains(err.Error(), "is not a public address; set webhook_allow_private") {
		t.Errorf("Publish to a private address = %v, want a fatal error", err)
	}
}

// The operator's list decides, and not webhook_allow_private: for the endpoint, for what
// its name resolves to, and for the target of a redirect.
func TestOperatorsListBeatsAllowPrivate(t *testing.T) {
	t.Parallel()
	reached := 0
	target := serve(t, func(http.ResponseWriter, *http.Request) { reached++ })
	other := serve(t, func(w http.ResponseWriter, r *http.Request) { // 127.0.0.2 is loopback, too
		http.Redirect(w, r, strings.Replace(target, "127.0.0.1", "127.0.0.2", 1), http.StatusTemporaryRedirect)
	})
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(target, "http://"))
	for _, tc := range []struct {
		list, url string
		private   bool
		permitted bool
	}{
		{"10.0.0.0/8", target, true, false},
		{"none", target, true, false},
		{"10.0.0.0/8", "http://localhost:" + port, true, false},
		{"127.0.0.0/8", target, true, true},
		{"127.0.0.0/8", target, false, true},
		{"127.0.0.1", other, true, false},
	} {
		e := env()
		var err error
		if e.Control, err = relaynet.Networks(tc.list); err != nil {
			t.Fatal(err)
		}
		reached = 0
		raw := fmt.Sprintf(`{"url": %q, "allow_private": %t, "follow_redirects": true}`, tc.url, tc.private)
		s, err := Backend().Sink.New(t.Context(), e, []byte(raw))
		if err == nil {
			err = s.Publish(t.Context(), one())
			_ = s.Close()
		}
		refused := relay.IsFatal(err) && strings.Contains(err.Error(), "--allow-private 127.0.0.") || err != nil && strings.Contains(tc.url, "localhost")
		if tc.permitted && err != nil || !tc.permitted && !refused || tc.permitted != (reached > 0) {
			t.Errorf("%+v: %v, reached %t", tc, err, reached > 0)
		}
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	_, err := tryOpenSink(t, "http://"+freeAddr(t), nil)
	if err == nil || relay.IsFatal(err) || relay.IsPermanent(err) {
		t.Errorf("NewSink onto a closed port = %v, want a transient error", err)
	}
}

func TestUserInfoAndDestination(t *testing.T) {
	t.Parallel()
	var user, password string
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		user, password, _ = r.BasicAuth()
		w.WriteHeader(http.StatusTeapot)
	})
	s := openSink(t, strings.Replace(url, "http://", "http://u:hunter2@", 1), nil)
	err := s.Publish(context.Background(), one())
	if user != "u" || password != "hunter2" || err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("basic auth = %s:%s; error %v", user, password, err)
	}
	m := one()
	if d, err := s.(relay.Router).Destination(&m[0]); err != nil || strings.Contains(d, "hunter2") || !strings.HasPrefix(d, "POST http://u:") {
		t.Errorf("Destination = %q, %v", d, err)
	}
}

// The URL is hidden in the part of an answer that an error quotes. The rest, which can
// be megabytes, is not searched.
func TestHide(t *testing.T) {
	t.Parallel()
	u := &url.URL{Path: "/hooks/T0p-s3cr3t"}
	for name, tc := range map[string]struct{ answer, want string }{
		"short":             {"no T0p-s3cr3t here", "no … here"},
		"long":              {strings.Repeat("x", 4<<20), strings.Repeat("x", maxDetail)},
		"at the end":        {strings.Repeat("x", maxDetail-3) + "T0p-s3cr3t" + strings.Repeat("x", 4<<20), strings.Repeat("x", maxDetail-3) + "…"},
		"behind many of it": {"no way:" + strings.Repeat("T0p-s3cr3t", 1000), "no way:" + strings.Repeat("…", 26)}, // it ends in the 27th
	} {
		got := hide([]byte(tc.answer), u)
		if quoted := excerpt(got); quoted != tc.want || len(got) > maxDetail+len(u.RequestURI()) {
			t.Errorf("%s: hide = %d bytes, of which an error quotes %q, want %q", name, len(got), quoted, tc.want)
		}
	}
}

// Errors are logged, stored and shown; a token in the URL is not.
func TestErrorsKeepTheURLsSecrets(t *testing.T) {
	t.Parallel()
	const token = "T0p-s3cr3t"
	const path = "/hooks/" + token + "?key=" + token
	repeat := func(space int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, strings.Repeat(" ", space)+"Cannot POST "+r.RequestURI)
		}
	}
	abort := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for name, tc := range map[string]struct {
		url    string
		config map[string]any
		want   string
	}{
		"an answer":          {url: serve(t, answer(503)) + path, want: ": answer 503"},
		"an answer to many":  {url: serve(t, answer(503)) + path, config: map[string]any{"mode": "batch"}, want: ": answer 503"},
		"repeated by it":     {url: serve(t, repeat(0)) + path, want: "Cannot POST /hooks/…?key=…"},
		"repeated and cut":   {url: serve(t, repeat(maxDetail-len("Cannot POST /hooks/T0p-s3cr"))) + path, want: `"Cannot POST /hooks/"`},
		"no answer":          {url: serve(t, abort) + path, want: "EOF"},
		"no answer, client":  {url: serve(t, abort) + path, config: map[string]any{"follow_redirects": true}, want: "EOF"},
		"a field is missing": {url: serve(t, answer(200)) + path + "&id={row.nope}", want: `webhook_url: the row of outbox_orders:1:0 has no field "nope"`},
		"of a header":        {url: serve(t, answer(200)) + path, config: map[string]any{"headers": map[string]string{"X-Token": token + "{row.nope}"}}, want: `webhook_headers.X-Token: the row of`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := openSink(t, strings.Replace(tc.url, "http://", "http://u:"+token+"@", 1), tc.config)
			err := s.Publish(context.Background(), one())
			if err == nil || strings.Contains(err.Error(), token[:4]) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Publish = %v, want an error with %q and without the token", err, tc.want)
			}
		})
	}
}

func TestHeadersThatCannotTravel(t *testing.T) {
	t.Parallel()
	var got http.Header
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	m := one()
	m[0].Key = " line\nbreak ü"
	if err := openSink(t, url, nil).Publish(context.Background(), m); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if v := got.Get("Pgtrickle-Key*"); v != "UTF-8''%20line%0Abreak%20%C3%BC" {
		t.Errorf("Pgtrickle-Key* = %q", v)
	}
	if v, ok := decodeExtended(got.Get("Pgtrickle-Key*")); !ok || v != m[0].Key {
		t.Errorf("decodeExtended = %q, %t", v, ok)
	}
	for name, want := range map[string]string{"Content-Length": "fatal", "webhook-id": "fatal", "x y": "fatal"} {
		m := one()
		m[0].Headers = []relay.Header{{Name: name, Value: "1"}}
		if err := openSink(t, url, nil).Publish(context.Background(), m); classOf(err) != want {
			t.Errorf("Publish with header %q = %v, want %s", name, err, want)
		}
	}
}

// An answer without end neither blocks the sink nor fills its memory.
func TestEndlessAnswer(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	s := openSink(t, url, nil)
	for range 3 {
		if err := s.Publish(context.Background(), one()); err != nil {
			t.Fatalf("Publish = %v", err)
		}
	}
}

func TestHTTP2AndTLS(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "client")
	var proto atomic.Value
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		proto.Store(r.Proto + " " + r.TLS.PeerCertificates[0].Subject.CommonName)
	}))
	srv.TLS = ca.Server(t)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	s := openSink(t, srv.URL, map[string]any{"tls_ca": ca.File, "tls_cert": cert, "tls_key": key})
	var batch []relay.Message
	for i := range 100 {
		batch = append(batch, relaytest.Message(i, ""))
	}
	if err := s.Publish(context.Background(), batch); err != nil || proto.Load() != "HTTP/2.0 client" {
		t.Errorf("Publish = %v over %v, want HTTP/2.0 with the client's certificate", err, proto.Load())
	}
	if _, err := tryOpenSink(t, srv.URL, map[string]any{"tls_ca": ca.File}); err == nil {
		t.Error("NewSink without the client's certificate = nil")
	}
}

// The slow reader of a large body: the batch's bytes are not touched after
// Publish has returned. The race detector looks on.
func TestBodyIsLetGo(t *testing.T) {
	t.Parallel()
	url := serve(t, answer(http.StatusUnauthorized)) // before the body is read
	s := openSink(t, url, map[string]any{"timeout": "2s"})
	body := make([]byte, 4<<20)
	for range 10 {
		m := one()
		m[0].Body = body
		if err := s.Publish(context.Background(), m); err == nil {
			t.Fatal("Publish = nil")
		}
		for i := range body {
			body[i]++
		}
	}
}

// Header and body of a small event arrive in one packet. A second packet costs both
// sides a system call and a wake-up: a third of the whole cost.
func TestOnePacket(t *testing.T) {
	t.Parallel()
	const small = 12 << 10 // with its header it fits the transport's buffer
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	first := make(chan string, 2)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 32<<10)
			if n, _ := conn.Read(b); n > 0 { // not the sink's look at whether it is there
				first <- string(b[:n])
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
			conn.Close()
		}
	}()
	m := one()
	m[0].Body = bytes.Repeat([]byte("x"), small)
	if err := openSink(t, "http://"+ln.Addr().String(), nil).Publish(context.Background(), m); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	if got := <-first; !strings.HasSuffix(got, "\r\n\r\n"+string(m[0].Body)) {
		t.Errorf("the first packet has %d bytes, of a header and a body of %d", len(got), small)
	}
}

func BenchmarkSink(b *testing.B) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	const keys, size = 16, 1000
	batch := make([]relay.Message, size)
	for i := range batch {
		batch[i] = relaytest.Message(i, strconv.Itoa(i%keys))
		batch[i].Body = json.RawMessage(`{"dedup_key":"outbox_orders:1:0","subject":"orders.insert","payload":{"id":1,"note":"` + strings.Repeat("x", 180) + `"},"op":"insert"}`)
	}
	b.Run("relay", func(b *testing.B) {
		s := openSink(b, srv.URL, nil)
		b.ReportAllocs()
		for b.Loop() {
			if err := s.Publish(context.Background(), batch); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("raw", func(b *testing.B) {
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: keys}}
		b.ReportAllocs()
		for b.Loop() {
			var wg sync.WaitGroup
			for k := range keys {
				wg.Go(func() {
					for i := k; i < size; i += keys {
						req, _ := http.NewRequestWithContext(context.Background(), http.MethodPost, srv.URL, bytes.NewReader(batch[i].Body))
						req.Header = http.Header{
							"Content-Type": {"application/json"}, "Idempotency-Key": {batch[i].ID}, "Webhook-Id": {batch[i].ID},
							"Webhook-Timestamp": {strconv.FormatInt(time.Now().Unix(), 10)}, "Pgtrickle-Op": {"insert"}, "Pgtrickle-Outbox-Id": {"1"},
							"Pgtrickle-Key": {batch[i].Key}, "Pgtrickle-Subject": {batch[i].Subject},
						}
						resp, err := client.Do(req)
						if err != nil {
							b.Error(err)
							return
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						_ = resp.Body.Close()
					}
				})
			}
			wg.Wait()
		}
		b.ReportMetric(float64(b.N*size)/b.Elapsed().Seconds(), "events/s")
	})
}

// TestLargeArrayIsNotKept: a sink keeps the memory of a usual array, and not that of a large
// event.
func TestLargeArrayIsNotKept(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	s := openSink(t, srv.URL, map[string]any{"mode": "batch"}).(*sink)
	for size, kept := range map[int]bool{1 << 10: true, maxKept + 1: false} {
		m := relaytest.Message(1, "")
		m.Body = []byte(`"` + strings.Repeat("x", size) + `"`)
		if err := s.Publish(t.Context(), []relay.Message{m}); err != nil {
			t.Fatal(err)
		}
		if (s.joined != nil) != kept {
			t.Errorf("%d bytes are kept after a body of %d", cap(s.joined), size)
		}
	}
}
