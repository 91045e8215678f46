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
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestHostileRequests: while requests without a valid signature stall and flood, signed
// events are accepted within 100 ms, also those from the same address. RELAY_TEST_HOSTILE
// is the number of hostile requests, 300 by default.
func TestHostileRequests(t *testing.T) {
	r := start(t, map[string]any{"auth": "hmac", "secret": "s", "on_missing_id": "hash"})
	attacker := exec.Command(os.Args[0]) // a process of its own, with its own memory and scheduler
	attacker.Env = append(os.Environ(), attackEnv+"="+strings.TrimSuffix(strings.TrimPrefix(r.url, "http://"), "/events"))
	out, err := attacker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := attacker.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var answers []byte
	go func() {
		defer close(ended)
		answers, _ = io.ReadAll(out)
	}()
	defer func() { _ = attacker.Process.Kill(); <-ended; _ = attacker.Wait() }()
	time.Sleep(300 * time.Millisecond) // the first stall

	var took, late []time.Duration
	for i := 0; i < 900; i++ { // the harness keeps 1,000
		body := fmt.Sprintf(`{"n":%d}`, i)
		began := time.Now()
		status, answer, _ := send(t, http.MethodPost, r.url, map[string]string{"X-Webhook-Signature": macHex("s", body)}, body)
		if status != http.StatusOK {
			t.Fatalf("signed event %d is answered with %d %s", i, status, answer)
		}
		took = append(took, time.Since(began))
		began = time.Now()
		time.Sleep(20 * time.Millisecond)
		late = append(late, time.Since(began)-20*time.Millisecond)
		select {
		case <-ended:
			i = 900
		default:
		}
	}
	<-ended
	slices.Sort(took)
	slices.Sort(late)
	t.Logf("%d signed events took %s, 99 of 100 %s, at most %s; a sleeper woke %s late, at most %s; attack: %s", len(took),
		took[len(took)/2], took[len(took)*99/100], took[len(took)-1], late[len(late)/2], late[len(late)-1], answers)
	// A busy machine delays whatever runs on it: a sleeper knows by how much.
	if limit := 100*time.Millisecond + late[len(late)-1]; took[len(took)*99/100] > limit {
		t.Errorf("99 of 100 signed events took up to %s, want %s", took[len(took)*99/100], limit)
	}
}

const attackEnv = "RELAY_TEST_ATTACK"

// attack sends hostile requests to addr, 200 at a time, half of which stall. It prints
// how the complete ones were answered.
func attack(addr string) {
	n := 300
	if text := os.Getenv("RELAY_TEST_HOSTILE"); text != "" {
		n, _ = strconv.Atoi(text)
	}
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 19) // on other machines it would take none of our time
	part := make([]byte, 986_860)
	var mu sync.Mutex
	answers := make(map[string]int)
	var each sync.WaitGroup
	attackers := make(chan struct{}, 200)
	for i := range n {
		attackers <- struct{}{}
		each.Go(func() {
			answer := hostile(addr, part, i%2 == 0)
			mu.Lock()
			answers[answer]++
			mu.Unlock()
			<-attackers
		})
	}
	each.Wait()
	fmt.Println(answers)
}

// hostile sends a request without a valid signature, and returns the status line's
// beginning. The request is complete, or its last byte is missing.
func hostile(addr string, body []byte, complete bool) string {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return "no connection"
	}
	defer conn.Close()
	length := len(body) + 1
	if complete {
		body, length = []byte(`{}`), 2
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = fmt.Fprintf(conn, "POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Webhook-Signature: 00\r\nContent-Length: %d\r\n\r\n", length)
	_, _ = conn.Write(body)
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return "no answer"
	}
	return string(answer[9:])
}

// A body that stalls is given up within seconds, however much of it has arrived.
func TestStalledBody(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, 900_000} {
		t.Run(strconv.Itoa(size), func(t *testing.T) {
			t.Parallel()
			r := start(t, nil)
			conn := request(t, strings.TrimSuffix(strings.TrimPrefix(r.url, "http://"), "/events"), "127.0.0.1", size+1, "00")
			began := time.Now()
			_, _ = io.WriteString(conn, strings.Repeat("1", size))
			answer := make([]byte, 12)
			if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "HTTP/1.1 408" {
				t.Errorf("the answer is %q, %v; want 408", answer, err)
			}
			if took := time.Since(began); took > 3*stallTime {
				t.Errorf("a stalled body was given up after %s, want %s", took, stallTime)
			}
		})
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
