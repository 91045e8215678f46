package webhookrelay

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// running is a source with an engine that acknowledges everything, and keeps it.
type running struct {
	url string
	got chan relay.Message
	relay.Source
}

func start(t testing.TB, config map[string]any) *running {
	t.Helper()
	bind := freeAddr(t)
	all := map[string]any{"bind": bind, "auth": "none"}
	maps.Copy(all, config)
	r := &running{url: "http://" + bind + "/events", got: make(chan relay.Message, 1000), Source: openSource(t, Backend(), all)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			batch, err := r.Receive(ctx, 100)
			if err != nil {
				return
			}
			for _, m := range batch {
				r.got <- m
			}
			_ = r.Ack(ctx, batch)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func send(t testing.TB, method, url string, h map[string]string, body string) (status int, answer string, header http.Header) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), relaytest.Patience())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for k, v := range h {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(b)), resp.Header
}

func TestAnswers(t *testing.T) {
	t.Parallel()
	bearer := map[string]any{"auth": "bearer", "secret": []string{"old", "new"}}
	id := func(h map[string]string) map[string]string {
		out := map[string]string{"Idempotency-Key": "a", "Content-Type": "application/json"}
		maps.Copy(out, h)
		return out
	}
	for name, tc := range map[string]struct {
		config map[string]any
		method string
		path   string
		header map[string]string
		body   string
		want   int
		says   string
	}{
		"stored":            {header: id(nil), body: `{}`, want: 200, says: `{"accepted":1}`},
		"put":               {method: "PUT", header: id(nil), body: `{}`, want: 200},
		"batch":             {header: id(nil), body: `[1,2,3]`, want: 200, says: `{"accepted":3}`},
		"array as an event": {config: map[string]any{"split_arrays": false}, header: id(nil), body: `[1,2,3]`, want: 200, says: `{"accepted":1}`},
		"own path":          {config: map[string]any{"path": "/a/b"}, path: "/a/b", header: id(nil), body: `{}`, want: 200},
		"other path":        {config: map[string]any{"path": "/a/b"}, path: "/a", header: id(nil), body: `{}`, want: 404, says: "no pipeline has this path"},
		"get":               {method: "GET", want: 405},
		"form":              {header: id(map[string]string{"Content-Type": "application/x-www-form-urlencoded"}), body: "a=b", want: 415},
		"compressed":        {header: id(map[string]string{"Content-Encoding": "gzip"}), body: "x", want: 415},
		"not JSON":          {header: id(nil), body: `{`, want: 400, says: "not JSON"},
		"no id":             {header: map[string]string{"Content-Type": "application/json"}, body: `{}`, want: 400, says: "has no id"},
		"no id, hashed":     {config: map[string]any{"on_missing_id": "hash"}, body: `{}`, want: 200},
		"no id in a batch":  {body: `[{"dedup_key":"a"},{}]`, want: 400, says: "event 1 of the batch"},
		"same id in batch":  {body: `[{"dedup_key":"a"},{"dedup_key":"a"}]`, want: 400, says: "same id"},
		"empty batch":       {header: id(nil), body: `[]`, want: 400, says: "empty"},
		"no body":           {header: id(nil), body: ``, want: 400, says: "JSON"},
		"just fits":         {config: map[string]any{"max_body": 10}, header: id(nil), body: `"89012345"`, want: 200},
		"too large":         {config: map[string]any{"max_body": 10}, header: id(nil), body: `"890123456"`, want: 413, says: "larger than 10 bytes"},
		"no token":          {config: bearer, header: id(nil), body: `{}`, want: 401},
		"wrong token":       {config: bearer, header: id(map[string]string{"Authorization": "Bearer nope"}), body: `{}`, want: 401},
		"token":             {config: bearer, header: id(map[string]string{"Authorization": "Bearer old"}), body: `{}`, want: 200},
		"other token":       {config: bearer, header: id(map[string]string{"authorization": "bearer new"}), body: `{}`, want: 200},
		"token in a header": {config: map[string]any{"auth": "bearer", "auth_value": "s", "auth_header": "X-Token"}, header: id(map[string]string{"X-Token": "s"}), body: `{}`, want: 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, tc.config)
			url := r.url
			if tc.path != "" {
				url = strings.TrimSuffix(url, "/events") + tc.path
			}
			method := tc.method
			if method == "" {
				method = "POST"
			}
			status, answer, _ := send(t, method, url, tc.header, tc.body)
			if status != tc.want || !strings.Contains(answer, tc.says) {
				t.Errorf("answer = %d %s, want %d with %q", status, answer, tc.want, tc.says)
			}
			if arrived := len(r.got); (arrived > 0) != (tc.want == 200) {
				t.Errorf("%d events arrived with answer %d", arrived, status)
			}
		})
	}
}

// A body may have more than an event may.
func TestEventTooLarge(t *testing.T) {
	t.Parallel()
	r := start(t, map[string]any{"on_missing_id": "hash"})
	r.Source.(*source).maxEvent = 10
	for body, want := range map[string]int{`[1,2,3,4,5,6,7]`: 200, `[1,"89012345"]`: 200, `[1,"890123456"]`: 413, `"890123456"`: 413} {
		status, answer, _ := send(t, "POST", r.url, map[string]string{"Content-Type": "application/json"}, body)
		if status != want || want == 413 && !strings.Contains(answer, "an event has 11 bytes; at most 10 are accepted") {
			t.Errorf("answer to %s = %d %s, want %d", body, status, answer, want)
		}
	}
}

// A body without a length is limited as well.
func TestChunkedTooLarge(t *testing.T) {
	t.Parallel()
	r := start(t, map[string]any{"max_body": 1000})
	resp, err := http.Post(r.url, "application/json", io.MultiReader(strings.NewReader(`"`), strings.NewReader(strings.Repeat("x", 5000))))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("answer = %d, want 413", resp.StatusCode)
	}
}

func TestMapping(t *testing.T) {
	t.Parallel()
	signed := func(secret, text string) string {
		mac := hmac.New(sha256.New, []byte(secret))
		_, _ = mac.Write([]byte(text))
		return hex.EncodeToString(mac.Sum(nil))
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	for name, tc := range map[string]struct {
		config map[string]any
		header map[string]string
		body   string
		want   string // id, subject, key, op, content type, number of other headers
	}{
		"plain":            {header: map[string]string{"Idempotency-Key": "a"}, body: `{}`, want: "a|events||event|application/json|0"},
		"webhook-id first": {header: map[string]string{"Idempotency-Key": "a", "webhook-id": "b"}, body: `{}`, want: "b|events||event|application/json|0"},
		"ours": {
			header: map[string]string{"Idempotency-Key": "a", "Pgtrickle-Subject": "orders.new", "Pgtrickle-Key*": "UTF-8''%20k%C3%BC", "Pgtrickle-Op": "update", "Content-Type": "application/json", "traceparent": "00-x", "X-Own": "1"},
			body:   `{}`, want: "a|orders.new| kü|update|application/json|2",
		},
		"secrets are dropped":      {header: map[string]string{"Idempotency-Key": "a", "Authorization": "Bearer x", "Cookie": "c", "X-Webhook-Signature": "s"}, body: `{}`, want: "a|events||event|application/json|0"},
		"envelope":                 {body: `{"dedup_key":"outbox_orders:1:0","payload":{}}`, want: "outbox_orders:1:0|events||event|application/json|0"},
		"cloud event":              {body: `{"specversion":"1.0","id":"7","source":"/shop","type":"t"}`, want: "/shop#7|events||event|application/json|0"},
		"cloud event of ours":      {body: `{"specversion":"1.0","id":"outbox_orders:1:0","source":"/pgtrickle/orders","type":"t"}`, want: "outbox_orders:1:0|events||event|application/json|0"},
		"cloud event, binary mode": {header: map[string]string{"ce-id": "7", "ce-source": "/shop", "ce-specversion": "1.0"}, body: `{}`, want: "/shop#7|events||event|application/json|3"},
		"debezium of ours":         {body: `{"schema":null,"payload":{"op":"c","source":{"connector":"pgtrickle","id":"outbox_orders:5:2"}}}`, want: "outbox_orders:5:2|events||event|application/json|0"},
		"github": {
			config: map[string]any{"auth": "github", "secret": "s"},
			header: map[string]string{"X-GitHub-Delivery": "d", "X-GitHub-Event": "push", "Idempotency-Key": "forged", "X-Hub-Signature-256": "sha256=" + signed("s", `{}`)},
			body:   `{}`, want: "d|push||event|application/json|2",
		},
		"stripe": {
			config: map[string]any{"auth": "stripe", "secret": "s"},
			header: map[string]string{"Idempotency-Key": "forged", "Stripe-Signature": "t=" + now + ",v1=" + signed("s", now+`.{"id":"evt_1","type":"charge.paid"}`) + ",v0=x"},
			body:   `{"id":"evt_1","type":"charge.paid"}`, want: "evt_1|charge.paid||event|application/json|0",
		},
		"hash": {config: map[string]any{"on_missing_id": "hash"}, body: `{}`, want: "webhook:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a|events||event|application/json|0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, tc.config)
			if status, answer, _ := send(t, "POST", r.url, tc.header, tc.body); status != 200 {
				t.Fatalf("answer = %d %s", status, answer)
			}
			m := <-r.got
			got := fmt.Sprintf("%s|%s|%s|%s|%s|%d", m.ID, m.Subject, m.Key, m.Op, m.ContentType, len(m.Headers))
			if got != tc.want || string(m.Body) != tc.body || m.Origin != "webhook:/events" || time.Since(m.Time) > time.Minute {
				t.Errorf("message = %s %q of %s at %s (%v), want %s", got, m.Body, m.Origin, m.Time, m.Headers, tc.want)
			}
		})
	}
}

func TestBatchIDs(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	body := `[{"dedup_key":"x","n":1}, {"n":2}]`
	if status, answer, _ := send(t, "POST", r.url, map[string]string{"Idempotency-Key": "b", "Pgtrickle-Key": "k"}, body); status != 200 {
		t.Fatalf("answer = %d %s", status, answer)
	}
	a, b := <-r.got, <-r.got
	if a.ID != "x" || b.ID != "b:1" || string(b.Body) != `{"n":2}` || b.Key != "k" {
		t.Errorf("events = %s %q, %s %q", a.ID, a.Body, b.ID, b.Body)
	}
}

// What our sink sends with signatures, our source believes; a day later not.
func TestStandardWebhooksRoundTrip(t *testing.T) {
	t.Parallel()
	secret := "whsec_" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef"))
	for _, mode := range []string{"event", "batch"} {
		r := start(t, map[string]any{"auth": "standard-webhooks", "secret": []string{"other", secret}})
		s := openSink(t, r.url, map[string]any{"signing_secret": []string{"rotated out", secret}, "mode": mode})
		m := relaytest.Message(1, "k")
		m.Body = envelope(&m)
		if err := s.Publish(context.Background(), []relay.Message{m}); err != nil {
			t.Fatalf("Publish in mode %s = %v", mode, err)
		}
		if got := <-r.got; got.ID != m.ID || !bytes.Equal(got.Body, m.Body) {
			t.Errorf("mode %s: received %s %q", mode, got.ID, got.Body)
		}
		wrong := openSink(t, r.url, map[string]any{"signing_secret": "wrong", "mode": mode})
		if err := wrong.Publish(context.Background(), []relay.Message{m}); classOf(err) != "fatal" {
			t.Errorf("Publish with a wrong secret = %v, want a fatal error", err)
		}
	}
}

func TestAnswerWaitsForAck(t *testing.T) {
	t.Parallel()
	bind := freeAddr(t)
	src := openSource(t, Backend(), map[string]any{"bind": bind, "auth": "none"})
	answered := make(chan int, 2)
	post := func() {
		status, _, _ := send(t, "POST", "http://"+bind+"/events", map[string]string{"Idempotency-Key": "a"}, `[1,2]`)
		answered <- status
	}
	go post()
	var got []relay.Message
	for len(got) < 2 {
		batch, err := src.Receive(context.Background(), 1)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, batch...)
	}
	if err := src.Ack(context.Background(), got[:1]); err != nil {
		t.Fatal(err)
	}
	go post() // the sender repeats itself; nothing new is queued but what was settled
	select {
	case status := <-answered:
		t.Fatalf("answer %d before all events were acknowledged", status)
	case <-time.After(100 * time.Millisecond):
	}
	if err := src.Ack(context.Background(), got[1:]); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != 200 {
		t.Errorf("answer = %d, want 200", status)
	}
	again, err := src.Receive(context.Background(), 10)
	if err != nil || len(again) != 1 || again[0].ID != "a:0" {
		t.Fatalf("Receive = %v, %v; want the settled event alone again", again, err)
	}
	if err := src.Ack(context.Background(), again); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != 200 {
		t.Errorf("second answer = %d, want 200", status)
	}
}

func TestConflictFullSlowAndStopping(t *testing.T) {
	t.Parallel()
	bind := freeAddr(t)
	b := Backend()
	src := openSource(t, b, map[string]any{"bind": bind, "auth": "none", "max_body": 10, "max_pending": 2*eventOverhead + 16, "ack_timeout": "200ms"})
	other := openSource(t, b, map[string]any{"bind": bind, "auth": "none", "path": "/other"})
	url := "http://" + bind + "/events"
	first := make(chan int, 1)
	go func() {
		status, _, h := send(t, "POST", url, map[string]string{"Idempotency-Key": "a"}, `"12345678"`)
		if h.Get("Retry-After") == "" {
			t.Error("503 without Retry-After")
		}
		first <- status
	}()
	if _, err := src.Receive(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := send(t, "POST", url, map[string]string{"Idempotency-Key": "a"}, `"b"`); status != http.StatusConflict {
		t.Errorf("the same id with another body = %d, want 409", status)
	}
	if status, _, h := send(t, "POST", url, map[string]string{"Idempotency-Key": "c"}, `"12345678"`); status != http.StatusTooManyRequests || h.Get("Retry-After") == "" {
		t.Errorf("more than max_pending = %d, want 429 with Retry-After", status)
	}
	if status := <-first; status != http.StatusServiceUnavailable {
		t.Errorf("after ack_timeout = %d, want 503", status)
	}
	waiting := make(chan int, 1)
	go func() {
		status, _, _ := send(t, "POST", "http://"+bind+"/other", map[string]string{"Idempotency-Key": "w"}, `1`)
		waiting <- status
	}()
	if _, err := other.Receive(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	if status := <-waiting; status != http.StatusServiceUnavailable {
		t.Errorf("a request that waits when its pipeline stops = %d, want 503", status)
	}
	if status, _, _ := send(t, "POST", "http://"+bind+"/other", map[string]string{"Idempotency-Key": "w"}, `1`); status != http.StatusServiceUnavailable {
		t.Errorf("a request just after its pipeline has stopped = %d, want 503", status)
	}
}

// What small events take is mostly not their bodies: a MiB of them would be half a
// million.
func TestSmallEventsAreCounted(t *testing.T) {
	t.Parallel()
	bind := freeAddr(t)
	src := openSource(t, Backend(), map[string]any{"bind": bind, "auth": "none", "max_body": 16 << 10, "max_pending": 64 << 10}).(*source)
	post := func(id string, n int) int {
		status, _, _ := send(t, "POST", "http://"+bind+"/events", map[string]string{"Idempotency-Key": id}, "[1"+strings.Repeat(",1", n-1)+"]")
		return status
	}
	if status := post("a", 64); status != http.StatusRequestEntityTooLarge {
		t.Fatalf("a batch for which there is never room = %d, want 413", status)
	}
	first := make(chan int, 1)
	go func() { first <- post("b", 40) }()
	got, err := src.Receive(context.Background(), 100)
	if err != nil || len(got) != 40 {
		t.Fatalf("Receive = %d events, %v; want 40", len(got), err)
	}
	if status := post("c", 40); status != http.StatusTooManyRequests {
		t.Errorf("a batch for which there is no room now = %d, want 429", status)
	}
	if err := src.Ack(context.Background(), got); err != nil {
		t.Fatal(err)
	}
	if status := <-first; status != http.StatusOK {
		t.Errorf("the first batch = %d, want 200", status)
	}
	holds(t, src, 0)
}

// A client without a secret can announce a body, and hold the connection for a minute.
func TestAnnouncedBodiesTakeNoRoom(t *testing.T) {
	t.Parallel()
	bind := freeAddr(t)
	src := openSource(t, Backend(), map[string]any{"bind": bind, "auth": "github", "secret": "s", "max_body": 16 << 10, "max_pending": 32 << 10}).(*source)
	begin := func(body string) net.Conn {
		conn, err := net.Dial("tcp", bind)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := fmt.Fprintf(conn, "POST /events HTTP/1.1\r\nHost: h\r\nContent-Length: 16384\r\n\r\n%s", body); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for range 10 {
		begin("")
	}
	half := begin(strings.Repeat("x", 10_000))
	if status, answer, _ := send(t, "POST", "http://"+bind+"/events", nil, "{}"); status != http.StatusUnauthorized {
		t.Errorf("a request beside idle ones = %d %s, want 401", status, answer)
	}
	_ = half.Close()
	holds(t, src, 0)
}

// holds waits until src accounts for so many bytes.
func holds(t *testing.T, src *source, want int64) {
	t.Helper()
	var got int64
	for end := time.Now().Add(relaytest.Patience()); time.Now().Before(end); time.Sleep(time.Millisecond) {
		src.mu.Lock()
		got = src.reserved
		src.mu.Unlock()
		src.unverified.mu.Lock()
		got += src.unverified.used
		src.unverified.mu.Unlock()
		if got == want {
			return
		}
	}
	t.Errorf("%d bytes are accounted for, want %d", got, want)
}

func TestSharedListener(t *testing.T) {
	t.Parallel()
	b, bind := Backend(), freeAddr(t)
	a := openSource(t, b, map[string]any{"bind": bind, "auth": "none", "path": "/a"})
	c := openSource(t, b, map[string]any{"bind": bind, "auth": "none", "path": "/c"})
	if _, err := tryOpenSource(t, b, map[string]any{"bind": bind, "auth": "none", "path": "/a"}); !relay.IsFatal(err) || !strings.Contains(err.Error(), `belongs to pipeline "hooks"`) {
		t.Errorf("the same path twice = %v, want a fatal error", err)
	}
	cert, key := tlstest.New(t).Issue(t, "server")
	if _, err := tryOpenSource(t, b, map[string]any{"bind": bind, "auth": "none", "path": "/d", "tls_cert": cert, "tls_key": key}); !relay.IsFatal(err) {
		t.Errorf("the same address with TLS = %v, want a fatal error", err)
	}
	if _, err := tryOpenSource(t, Backend(), map[string]any{"bind": bind, "auth": "none", "path": "/d"}); err == nil || relay.IsFatal(err) {
		t.Errorf("the address of another process = %v, want a transient error", err)
	}
	for path, src := range map[string]relay.Source{"/a": a, "/c": c} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			send(t, "POST", "http://"+bind+path, map[string]string{"Idempotency-Key": path}, `1`)
		}()
		got, err := src.Receive(context.Background(), 1)
		if err != nil || got[0].ID != path || got[0].Origin != "webhook:"+path {
			t.Fatalf("Receive = %v, %v", got, err)
		}
		_ = src.Ack(context.Background(), got)
		<-done
	}
	for _, src := range []relay.Source{a, c} {
		if err := src.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	ln, err := net.Listen("tcp", bind)
	if err != nil {
		t.Fatalf("the address is still taken after the last pipeline has closed: %v", err)
	}
	_ = ln.Close()
}

func TestServerTLS(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	cert, key := ca.Issue(t, "server")
	r := start(t, map[string]any{"tls_cert": cert, "tls_key": key, "client_ca": ca.File})
	url := strings.Replace(r.url, "http://", "https://", 1)
	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "client"))
	if err != nil {
		t.Fatal(err)
	}
	for _, certs := range [][]tls.Certificate{{pair}, nil} {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool, Certificates: certs}, ForceAttemptHTTP2: true}}
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, strings.NewReader(`1`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Idempotency-Key", "a")
		resp, err := client.Do(req)
		if certs == nil {
			if err == nil {
				t.Errorf("without a client's certificate: answer %d", resp.StatusCode)
			}
			continue
		}
		if err != nil || resp.StatusCode != 200 || resp.ProtoMajor != 2 {
			t.Fatalf("with a client's certificate: %v, %v; want 200 over HTTP/2", resp, err)
		}
		_ = resp.Body.Close()
		client.CloseIdleConnections()
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_700_000_000, 0)
	body := []byte(`{"a":1}`)
	mac := func(parts ...string) []byte {
		m := hmac.New(sha256.New, []byte("s2"))
		_, _ = m.Write([]byte(strings.Join(parts, "")))
		return m.Sum(nil)
	}
	hexMAC := hex.EncodeToString(mac(string(body)))
	timed := hex.EncodeToString(mac("1700000000.", string(body)))
	standard := "v1," + base64.StdEncoding.EncodeToString(mac("id.1700000000.", string(body)))
	stripe := "v1=" + hex.EncodeToString(mac("1700000000.", string(body)))
	for name, tc := range map[string]struct {
		auth      string
		timestamp string
		header    map[string]string
		after     time.Duration // our clock
		want      bool
	}{
		"hmac":                     {auth: "hmac", header: map[string]string{"X-Webhook-Signature": hexMAC}, want: true},
		"hmac, prefixed":           {auth: "hmac", header: map[string]string{"X-Webhook-Signature": "sha256=" + hexMAC}, want: true},
		"hmac, upper case":         {auth: "hmac", header: map[string]string{"X-Webhook-Signature": strings.ToUpper(hexMAC)}, want: true},
		"hmac, with time":          {auth: "hmac", timestamp: "X-Time", header: map[string]string{"X-Time": "1700000000", "X-Webhook-Signature": timed}, after: 5 * time.Minute, want: true},
		"hmac, too late":           {auth: "hmac", timestamp: "X-Time", header: map[string]string{"X-Time": "1700000000", "X-Webhook-Signature": timed}, after: 301 * time.Second},
		"hmac, from to-morrow":     {auth: "hmac", timestamp: "X-Time", header: map[string]string{"X-Time": "1700000000", "X-Webhook-Signature": timed}, after: -301 * time.Second},
		"hmac, other time":         {auth: "hmac", timestamp: "X-Time", header: map[string]string{"X-Time": "1700000001", "X-Webhook-Signature": timed}},
		"hmac, time not signed":    {auth: "hmac", timestamp: "X-Time", header: map[string]string{"X-Time": "1700000000", "X-Webhook-Signature": hexMAC}},
		"hmac, no time":            {auth: "hmac", timestamp: "X-Time", header: map[string]string{"X-Webhook-Signature": timed}},
		"hmac, none":               {auth: "hmac"},
		"hmac, cut short":          {auth: "hmac", header: map[string]string{"X-Webhook-Signature": hexMAC[:62]}},
		"github":                   {auth: "github", header: map[string]string{"X-Hub-Signature-256": "sha256=" + hexMAC}, want: true},
		"github, bare":             {auth: "github", header: map[string]string{"X-Hub-Signature-256": hexMAC}},
		"github, sha1":             {auth: "github", header: map[string]string{"X-Hub-Signature": "sha1=" + hexMAC}},
		"standard":                 {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000000", "webhook-signature": "v1,AAAA v1a,x " + standard}, want: true},
		"standard, svix":           {auth: "standard-webhooks", header: map[string]string{"svix-id": "id", "svix-timestamp": "1700000000", "svix-signature": standard}, want: true},
		"standard, late":           {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000000", "webhook-signature": standard}, after: 5 * time.Minute, want: true},
		"standard, too late":       {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000000", "webhook-signature": standard}, after: 301 * time.Second},
		"standard, from to-morrow": {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000000", "webhook-signature": standard}, after: -301 * time.Second},
		"standard, other id":       {auth: "standard-webhooks", header: map[string]string{"webhook-id": "ie", "webhook-timestamp": "1700000000", "webhook-signature": standard}},
		"standard, other time":     {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000001", "webhook-signature": standard}},
		"standard, no time":        {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-signature": standard}},
		"standard, bare":           {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000000", "webhook-signature": standard[3:]}},
		"standard, too many":       {auth: "standard-webhooks", header: map[string]string{"webhook-id": "id", "webhook-timestamp": "1700000000", "webhook-signature": strings.Repeat("v1,AAAA ", 9) + standard}},
		"stripe":                   {auth: "stripe", header: map[string]string{"Stripe-Signature": "t=1700000000," + stripe}, want: true},
		"stripe, second":           {auth: "stripe", header: map[string]string{"Stripe-Signature": "t=1700000000,v1=00,v0=11," + stripe}, want: true},
		"stripe, too late":         {auth: "stripe", header: map[string]string{"Stripe-Signature": "t=1700000000," + stripe}, after: time.Hour},
		"stripe, two times":        {auth: "stripe", header: map[string]string{"Stripe-Signature": "t=1700000000,t=1700000000," + stripe}},
		"stripe, none":             {auth: "stripe"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := testVerifier(t, tc.auth)
			v.timestamp = tc.timestamp
			v.now = func() time.Time { return at.Add(tc.after) }
			h := make(http.Header)
			for k, x := range tc.header {
				h.Set(k, x)
			}
			if got := v.before(h) && v.after(h, body); got != tc.want {
				t.Errorf("verify(%v) = %t, want %t", tc.header, got, tc.want)
			}
			if tc.want && v.after(h, []byte(`{"a":2}`)) {
				t.Error("another body passes with the same signature")
			}
		})
	}
}

func testVerifier(t testing.TB, auth string) verifier {
	t.Helper()
	cfg := sourceDefaults()
	cfg.Auth, cfg.Secret = auth, []relaycfg.Secret{"s1", "s2"}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	return newVerifier(&cfg)
}

// No header that the fuzzer finds passes, and none panics.
func FuzzVerify(f *testing.F) {
	f.Add("id", "1700000000", "v1,AAAA", "t=1700000000,v1=00", "sha256=00", []byte("{}"))
	f.Add("", "-1", "v1,,v1, v1a,x", "t=,v1=,=", "sha256=", []byte(nil))
	f.Add("a.b", "99999999999999999999", strings.Repeat("v1,= ", 20), "t=1,t=1", "Bearer s1 ", []byte("\x00"))
	var all []verifier
	for _, auth := range []string{"bearer", "hmac", "standard-webhooks", "github", "stripe"} {
		v := testVerifier(f, auth)
		v.now = func() time.Time { return time.Unix(1_700_000_000, 0) }
		all = append(all, v)
	}
	f.Fuzz(func(t *testing.T, id, timestamp, signature, stripe, plain string, body []byte) {
		h := http.Header{
			"Webhook-Id": {id}, "Webhook-Timestamp": {timestamp}, "Webhook-Signature": {signature}, "Stripe-Signature": {stripe},
			"X-Hub-Signature-256": {plain}, "X-Webhook-Signature": {plain}, "Authorization": {plain},
		}
		for _, v := range all {
			if token := strings.TrimSpace(plain[strings.IndexByte(plain, ' ')+1:]); v.auth == "bearer" && (token == "s1" || token == "s2" || plain == "s1" || plain == "s2") {
				continue
			}
			if v.before(h) && v.after(h, body) {
				t.Errorf("auth %s passes %v with %q", v.auth, h, body)
			}
		}
	})
}

// Whatever the body, its events have distinct ids and their bodies are JSON
// parts of it, or the request is refused.
func FuzzMessages(f *testing.F) {
	for _, body := range []string{`{"dedup_key":"a"}`, `[{"dedup_key":"a"},1]`, `[`, ``, `[[]]`, "\x00", `{"specversion":1,"id":"x"}`, `[{"a":[1,2],"b":"]\",["}, [3,4] ,"\\\\"]`} {
		f.Add("b", "application/json", body)
		f.Add("", "", body)
	}
	s := &source{cfg: sourceDefaults()}
	f.Fuzz(func(t *testing.T, id, mediaType, body string) {
		got, err := s.messages(http.Header{"Idempotency-Key": {id}}, mediaType, []byte(body))
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, m := range got {
			if m.ID == "" || seen[m.ID] {
				t.Fatalf("ids of %q are not distinct: %q", body, m.ID)
			}
			seen[m.ID] = true
			if len(got) > 1 && !json.Valid(m.Body) {
				t.Fatalf("event %q of %q is not JSON", m.Body, body)
			}
		}
		if n := s.count([]byte(body)); len(got) == 0 || len(got) != n {
			t.Fatalf("%d events in %q, counted %d, and no error", len(got), body, n)
		}
	})
}
