package natsrelay

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

const greeting = "INFO {\"server_id\":\"x\",\"max_payload\":1048576,\"headers\":true} \r\n"

// wrongAnswers are what peers that are no NATS server answer, and what a hostile one
// could.
var wrongAnswers = map[string]relaytest.Answer{
	"HTTP":                 {"HTTP/1.1 400 Bad Request\r\n\r\n", "this looks like an HTTP server; check host and port"},
	"Redis":                {"-DENIED Redis is running in protected mode\r\n", "this looks like Redis"},
	"AMQP":                 {"AMQP\x00\x00\x09\x01", "this looks like an AMQP server"},
	"TLS":                  {"\x15\x03\x01\x00\x02\x02\x28", "this looks like TLS; set nats_tls_ca"},
	"PostgreSQL":           {"E\x00\x00\x00\x8aSFATAL\x00", "this looks like PostgreSQL"},
	"random bytes":         {"\xd1\x00\x8c", "bytes that are no answer"},
	"silence":              {"", "closed the connection without an answer"},
	"no INFO":              {"PING\r\n", "bytes that are no answer"},
	"INFO without an end":  {"INFO " + strings.Repeat("x", 300<<10), "a line of more than 256 KiB"},
	"INFO that is no JSON": {"INFO x\r\n", "no NATS server"},
	"a huge message":       {greeting + "PONG\r\nMSG a 1 999999999999\r\n", "more than 64 MiB"},
	"a huge header":        {greeting + "PONG\r\nHMSG a 1 5 100000000\r\n", "more than 64 MiB"},
	"garbage":              {greeting + "PONG\r\nMSG a 1 5\r\nhello world\r\n", "another length than it announced"},
	"another line break":   {greeting + "PONG\r\nMSG a 1 5\r5\n", "bytes that are no answer"},
}

// replay is a connection to a peer that sends the same bytes, and then nothing.
type replay struct {
	net.Conn // the near end of a pipe
	answer   io.Reader
}

func newReplay(t testing.TB, answer string) *replay {
	near, far := net.Pipe()
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return &replay{Conn: near, answer: bytes.NewReader([]byte(answer))}
}

func (r *replay) Read(p []byte) (int, error)  { return r.answer.Read(p) }
func (r *replay) Write(p []byte) (int, error) { return len(p), nil }

// SkipTLSHandshake and Dial make a replay a dialer of the client.
func (r *replay) SkipTLSHandshake() bool { return true }

func (r *replay) Dial(string, string) (net.Conn, error) {
	return (&dialer{}).greet(r, "localhost:4222")
}

// talk lets the client connect to a peer that sends answer, and returns the error that
// ends the connection.
func talk(t testing.TB, answer string) error {
	ended := make(chan struct{})
	nc, err := nats.Connect("nats://localhost:4222", nats.SetCustomDialer(newReplay(t, answer)), nats.NoReconnect(), nats.SkipHostLookup(),
		nats.ClosedHandler(func(*nats.Conn) { close(ended) }))
	if err != nil {
		return err
	}
	defer nc.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatalf("the client does not end after %.100q", answer)
	}
	return nc.LastError()
}

func TestGuardRefusesWrongPeers(t *testing.T) {
	relaytest.RefuseAnswers(t, wrongAnswers, talk, classify)
}

func TestGuardPassesMessages(t *testing.T) {
	t.Parallel()
	text := greeting + "PONG\r\nMSG a.b 1 5\r\nhello\r\nMSG a 1 _INBOX.x 0\r\n\r\n+OK\r\nHMSG a 1 r 12 14\r\nNATS/1.0\r\n\r\nMS\r\nPING\r\n-ERR 'x'\r\n" + greeting
	for _, size := range []int{1, 3, len(text)} {
		lines := (&dialer{}).lines()
		for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
			if err := lines.Check([]byte(rest[:min(size, len(rest))])); err != nil {
				t.Fatalf("%d bytes at a time: %v at %.20q", size, err, rest)
			}
		}
		if !lines.Between() {
			t.Errorf("%d bytes at a time: a message has not ended: %+v", size, lines)
		}
	}
}

// TestServersThatWait: a server of another kind waits for the client, and is asked.
func TestServersThatWait(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ answer, want string }{
		"HTTP":    {"HTTP/1.1 400 Bad Request\r\n\r\n", "this looks like an HTTP server"},
		"Redis":   {"-ERR unknown command\r\n", "this looks like Redis"},
		"silence": {"", "the server sent no INFO; check host, port and tls:// of nats_url"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := net.Pipe()
			defer near.Close()
			go func() {
				if _, err := far.Read(make([]byte, 64)); err == nil && tc.answer != "" {
					_, _ = io.WriteString(far, tc.answer)
				}
			}()
			_, err := (&dialer{}).greet(near, "localhost:4222")
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("greet = %v, want an error with %q", err, tc.want)
			}
		})
	}
}

// FuzzGuard sends any bytes, also after a right greeting: the client does not panic, and
// allocates no more than a message may have.
func FuzzGuard(f *testing.F) {
	for _, tc := range wrongAnswers {
		f.Add([]byte(tc.Sends))
	}
	f.Add([]byte(greeting + "PONG\r\nHMSG a 1 r 12 14\r\nNATS/1.0\r\n\r\nMS\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) { _ = talk(t, string(answer)) })
}
