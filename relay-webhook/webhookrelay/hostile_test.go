package webhookrelay

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestHostileRequests: while requests without a valid signature stall and flood, signed
// events are accepted at once, also those from the same address. RELAY_TEST_HOSTILE is
// the number of hostile requests, 300 by default.
func TestHostileRequests(t *testing.T) {
	t.Parallel()
	n := 300
	if text := os.Getenv("RELAY_TEST_HOSTILE"); text != "" {
		n, _ = strconv.Atoi(text)
	}
	r := start(t, map[string]any{"auth": "hmac", "secret": "s", "on_missing_id": "hash"})
	addr := strings.TrimSuffix(strings.TrimPrefix(r.url, "http://"), "/events")

	const bodySize = 986_860
	var attack sync.WaitGroup
	stop := make(chan struct{})
	stalled := make(chan struct{}, n)
	attackers := make(chan struct{}, 200) // at a time
	part := make([]byte, bodySize)
	attack.Go(func() {
		var each sync.WaitGroup
		defer each.Wait()
		for i := range n {
			select {
			case attackers <- struct{}{}:
			case <-stop:
				return
			}
			each.Go(func() {
				defer func() { <-attackers; stalled <- struct{}{} }()
				hostile(addr, part, i%2 == 0, stop)
			})
		}
	})
	defer attack.Wait()
	defer close(stop)
	time.Sleep(300 * time.Millisecond) // the first stall

	var took []time.Duration
	for i := range min(n/6, 900) { // the harness keeps 1,000
		body := fmt.Sprintf(`{"n":%d}`, i)
		began := time.Now()
		status, answer, _ := send(t, http.MethodPost, r.url,
			map[string]string{"X-Webhook-Signature": macHex("s", body)}, body)
		if status != http.StatusOK {
			t.Fatalf("signed event %d is answered with %d %s after %d hostile requests", i, status, answer, len(stalled))
		}
		took = append(took, time.Since(began))
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(took)
	t.Logf("signed events took %s, at most %s", took[len(took)/2], took[len(took)-1])
	if took[len(took)/2] > 100*time.Millisecond {
		t.Errorf("half of the signed events took more than %s, want 100ms", took[len(took)/2])
	}
}

// hostile sends a request without a valid signature. It is complete, or its last byte
// is missing.
func hostile(addr string, body []byte, complete bool, stop <-chan struct{}) {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	length := len(body) + 1
	if complete {
		body, length = []byte(`{}`), 2
	}
	_, _ = fmt.Fprintf(conn, "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Webhook-Signature: 00\r\nContent-Length: %d\r\n\r\n", length)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = conn.Write(body)
		_, _ = io.ReadFull(conn, make([]byte, 12))
	}()
	select {
	case <-done:
	case <-stop:
		_ = conn.Close()
		<-done
	}
}

// A body that stalls is given up within seconds.
func TestStalledBody(t *testing.T) {
	t.Parallel()
	r := start(t, nil)
	conn, err := net.Dial("tcp", strings.TrimSuffix(strings.TrimPrefix(r.url, "http://"), "/events"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	_, _ = io.WriteString(conn, "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{")
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 408" {
		t.Errorf("the answer is %q, %v; want 408", answer, err)
	}
	if took := time.Since(began); took > 3*stallTime {
		t.Errorf("a stalled body was given up after %s, want %s", took, stallTime)
	}
}

// evicted is a body whose room another one takes when it has just arrived.
type evicted struct {
	io.ReadCloser
	u *unverified
}

func (e evicted) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	e.u.mu.Lock()
	e.u.evict()
	e.u.mu.Unlock()
	time.Sleep(20 * time.Millisecond) // net/http reads on in the background, and meets the deadline
	return n, err
}

// A connection whose body lost its room serves later requests, or none.
func TestConnectionAfterAnEviction(t *testing.T) {
	t.Parallel()
	r := start(t, map[string]any{"on_missing_id": "hash"})
	src := r.Source.(*source)
	first := true
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if first {
			first = false
			req.Body = evicted{req.Body, &src.unverified}
		}
		src.serve(w, req)
	}))
	defer server.Close()
	for i, want := range []int{429, 200, 200} {
		if status, answer, _ := send(t, http.MethodPost, server.URL, nil, strconv.Itoa(i)); status != want {
			t.Errorf("request %d is answered with %d %s, want %d", i, status, answer, want)
		}
	}
}

// A small body loses its room to none that is larger, however old it is.
func TestSmallBodiesAreKept(t *testing.T) {
	t.Parallel()
	u := unverified{max: 10_000, byRemote: make(map[string]int64)}
	body := func(size int64, age time.Duration) *bodyReader {
		r := &bodyReader{remote: "a", conn: http.NewResponseController(httptest.NewRecorder()), started: time.Now().Add(-age)}
		if err := u.grow(r, size); err != nil {
			t.Fatal(err)
		}
		return r
	}
	small := body(10, time.Minute)
	old, older := body(4000, 2*young), body(4500, 2*young)
	fresh := body(4000, 0)
	if small.evicted || !old.evicted || older.evicted || fresh.evicted {
		t.Errorf("evicted: small %t, old %t, older %t, fresh %t; want the old one", small.evicted, old.evicted, older.evicted, fresh.evicted)
	}
}

func macHex(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write([]byte(body))
	return hex.EncodeToString(mac.Sum(nil))
}
