package webhookrelay

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// raw is an endpoint that answers with raw bytes. answer gets the number of the
// request over all connections, and returns whether to keep the connection.
func raw(t *testing.T, answer func(n int64, conn net.Conn) (keep bool)) (url string, requests, conns *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	requests, conns = new(atomic.Int64), new(atomic.Int64)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				for n := int64(1); ; n++ {
					req, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					if n == 1 {
						conns.Add(1) // not counting those that only look whether it is there
					}
					if _, err := io.Copy(io.Discard, req.Body); err != nil || !answer(requests.Add(1), conn) {
						return
					}
				}
			}()
		}
	}()
	return "http://" + ln.Addr().String(), requests, conns
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func write(conn net.Conn, answer string) bool {
	_, err := io.WriteString(conn, answer)
	return err == nil
}

func TestConnectionIsKept(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer string
		kept   bool
	}{
		"length":    {ok, true},
		"chunked":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true},
		"no body":   {"HTTP/1.1 204 No Content\r\n\r\n", true},
		"hints":     {"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok, true},
		"long":      {"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("x", 10000), true},
		"close":     {"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", false},
		"HTTP/1.0":  {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", false},
		"more":      {ok + ok, false},
		"very long": {"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, requests, conns := raw(t, func(_ int64, conn net.Conn) bool { return write(conn, tc.answer) })
			s := openSink(t, url, map[string]any{"concurrency": 1})
			for range 3 {
				if err := s.Publish(context.Background(), one()); err != nil {
					t.Fatalf("Publish = %v", err)
				}
			}
			if want := map[bool]int64{true: 1, false: 3}[tc.kept]; requests.Load() != 3 || conns.Load() != want {
				t.Errorf("%d requests over %d connections, want 3 over %d", requests.Load(), conns.Load(), want)
			}
		})
	}
}

// What comes unasked must not confirm the next event.
func TestAnswerNobodyAskedFor(t *testing.T) {
	t.Parallel()
	said := make(chan struct{})
	url, _, _ := raw(t, func(n int64, conn net.Conn) bool {
		if n > 1 {
			return write(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		}
		write(conn, ok)
		<-said
		write(conn, ok)
		_, _ = conn.Read(make([]byte, 1)) // until the sink closes the connection
		said <- struct{}{}
		return true
	})
	s := openSink(t, url, map[string]any{"concurrency": 1})
	if err := s.Publish(context.Background(), one()); err != nil {
		t.Fatalf("first Publish = %v", err)
	}
	said <- struct{}{}
	<-said
	if err := s.Publish(context.Background(), one()); classOf(err) != "permanent" {
		t.Errorf("second Publish = %v, want the 400 that answers it", err)
	}
}

// An endpoint that hangs up, in place of an answer, on a connection that was
// idle costs a connection and no error.
func TestIdleConnectionIsClosed(t *testing.T) {
	t.Parallel()
	url, requests, _ := raw(t, func(n int64, conn net.Conn) bool { return n%2 == 1 && write(conn, ok) })
	s := openSink(t, url, map[string]any{"concurrency": 1})
	batch := make([]relay.Message, 20)
	for i := range batch {
		batch[i] = relaytest.Message(i, "k")
	}
	if err := s.Publish(context.Background(), batch); err != nil || requests.Load() != 39 {
		t.Errorf("Publish = %v after %d requests, want all but the first repeated", err, requests.Load())
	}
}

// On a new connection it is an error: it would be the same for ever.
func TestFirstRequestBreaks(t *testing.T) {
	t.Parallel()
	url, requests, _ := raw(t, func(int64, net.Conn) bool { return false })
	err := openSink(t, url, nil).Publish(context.Background(), one())
	if classOf(err) != "transient" || requests.Load() != 1 {
		t.Errorf("Publish = %v after %d requests, want a transient error after one", err, requests.Load())
	}
}

func TestHeaderWithoutEnd(t *testing.T) {
	t.Parallel()
	url, _, _ := raw(t, func(_ int64, conn net.Conn) bool {
		write(conn, "HTTP/1.1 200 OK\r\nX: ")
		for write(conn, strings.Repeat("x", 10_000)) {
		}
		return false
	})
	if err := openSink(t, url, nil).Publish(context.Background(), one()); classOf(err) != "transient" {
		t.Errorf("Publish = %v, want a transient error", err)
	}
}

// A cancelled Publish returns at once, and the next one works.
func TestCancelledRequest(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{}, 16)
	url, _, _ := raw(t, func(n int64, conn net.Conn) bool {
		arrived <- struct{}{}
		if n > 2 {
			return write(conn, ok)
		}
		_, _ = conn.Read(make([]byte, 1)) // until the sink hangs up
		return false
	})
	s := openSink(t, url, map[string]any{"concurrency": 2})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-arrived
		<-arrived
		cancel()
	}()
	began := time.Now()
	err := s.Publish(ctx, []relay.Message{relaytest.Message(1, "a"), relaytest.Message(2, "b"), relaytest.Message(3, "c")})
	if !errors.Is(err, context.Canceled) || time.Since(began) > 5*time.Second {
		t.Errorf("cancelled Publish = %v after %s", err, time.Since(began))
	}
	if err := s.Publish(context.Background(), one()); err != nil {
		t.Errorf("next Publish = %v", err)
	}
}
