package redisrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// wrongAnswers are what peers that are no Redis answer, and what a hostile one could.
var wrongAnswers = map[string]relaytest.Answer{
	"HTTP":                {"HTTP/1.1 400 Bad Request\r\n\r\n", "this looks like an HTTP server; check host and port"},
	"NATS":                {"INFO {\"server_id\":\"x\"}\r\n", "this looks like a NATS server"},
	"AMQP":                {"AMQP\x00\x00\x09\x01", "this looks like an AMQP server"},
	"TLS":                 {"\x15\x03\x01\x00\x02\x02\x28", "this looks like TLS; set redis_tls"},
	"random bytes":        {"\xd1\x00\x8c", "bytes that are no answer"},
	"silence":             {"", "closed the connection without an answer"},
	"a huge value":        {"$999999999999\r\n", "more than 512 MiB"},
	"a count of overflow": {"*9223372036854775807\r\n", "more than 512 MiB"},
	"a huge map":          {"%9223372036854775807\r\n", "more than 512 MiB"},
	"a huge list":         {"*16777216\r\n", "more than 512 MiB"},
	"huge lists in lists": {strings.Repeat("*1048576\r\n", 12), "more than 512 MiB"},
	"deep lists":          {strings.Repeat("*1\r\n", 17), "16 deep"},
	"no number":           {"$x\r\n", "bytes that are no answer"},
	"a long line":         {"+" + strings.Repeat("x", 70<<10), "a line of more than 64 KiB"},
	"a long number":       {"$" + strings.Repeat("0", 40) + "1\r\n", "bytes that are no answer"},
}

// replay is a connection to a peer that answers with the same bytes for ever.
type replay struct {
	net.Conn // nil: only what is defined here is used
	answer   *bytes.Reader
}

func (r *replay) Read(p []byte) (int, error)       { return r.answer.Read(p) }
func (r *replay) Write(p []byte) (int, error)      { return len(p), nil }
func (r *replay) Close() error                     { return nil }
func (r *replay) SetDeadline(time.Time) error      { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }
func (r *replay) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// hello is the reply to the first command of a connection.
const hello = "*0\r\n"

// ask lets go-redis decode answer, which begins with the reply to its HELLO, as the
// reply to a read of a stream.
func ask(t testing.TB, answer string, bare bool) error {
	client := redis.NewClient(&redis.Options{
		Protocol: 2, DisableIdentity: true, MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		MaxRetries: -1, PoolSize: 1, DialerRetries: 1,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			conn := net.Conn(&replay{answer: bytes.NewReader([]byte(answer))})
			if bare {
				return conn, nil
			}
			return newGuard(conn, 0), nil
		},
	})
	defer client.Close()
	_, err := client.XReadGroup(t.Context(), &redis.XReadGroupArgs{Group: "g", Consumer: "c", Streams: []string{"s", ">"}}).Result()
	return err
}

func TestGuardRefusesWrongPeers(t *testing.T) {
	relaytest.RefuseAnswers(t, wrongAnswers, func(t testing.TB, sends string) error { return ask(t, sends, false) }, classify)
}

func TestGuardPassesReplies(t *testing.T) {
	t.Parallel()
	value := strings.Repeat("x\r\n*", 5000)
	stream := fmt.Sprintf("*1\r\n*2\r\n$1\r\ns\r\n*2\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$%d\r\n%s\r\n*2\r\n$3\r\n2-0\r\n*-1\r\n", len(value), value)
	for name, reply := range map[string]string{
		"a stream":           stream,
		"version 3":          "%1\r\n+s\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*0\r\n_\r\n,1.5\r\n#t\r\n(3492890328409238509324850943850943825024385\r\n=5\r\ntxt:x\r\n",
		"errors of commands": "-WRONGTYPE x\r\n*2\r\n$3\r\n1-0\r\n-ERR y\r\n:5\r\n$-1\r\n*-1\r\n",
	} {
		for _, size := range []int{1, 2, 7, len(reply)} {
			r := newReplies(0)
			for rest := reply; rest != ""; rest = rest[min(size, len(rest)):] {
				if err := r.Check([]byte(rest[:min(size, len(rest))])); err != nil {
					t.Fatalf("%s, %d bytes at a time: %v", name, size, err)
				}
			}
			if r.size != 0 || len(r.open) != 0 || !r.Between() {
				t.Errorf("%s, %d bytes at a time: the reply has not ended: %+v", name, size, r)
			}
		}
	}
	if err := ask(t, hello+stream, false); err != nil {
		t.Errorf("XREADGROUP through the guard: %v", err)
	}
}

// TestGuardEndsHalfReplies: go-redis keeps a connection after an error in a reply. What
// is left of the reply must not become the next one.
func TestGuardEndsHalfReplies(t *testing.T) {
	t.Parallel()
	conn := newGuard(&replay{answer: bytes.NewReader([]byte("*2\r\n-ERR x\r\n$15\r\n$999999999999\r\n\r\n"))}, 0)
	if _, err := io.ReadFull(conn, make([]byte, 12)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("*1\r\n$4\r\nPING\r\n")); err == nil {
		t.Error("Write = nil in the middle of a reply, want an error")
	}
}

// FuzzGuard answers with any bytes: go-redis does not panic, and does not allocate what
// the answer only announces.
func FuzzGuard(f *testing.F) {
	for _, tc := range wrongAnswers {
		f.Add([]byte(tc.Sends))
		f.Add([]byte(hello + tc.Sends))
	}
	f.Add([]byte(hello + "*1\r\n*2\r\n$1\r\ns\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		err := ask(t, string(answer), false)
		if _, wrong := errors.AsType[*relaynet.WrongPeerError](err); wrong {
			return
		}
		if plain := ask(t, string(answer), true); (err == nil) != (plain == nil) {
			t.Errorf("%q: error %v with the guard and %v without", answer, err, plain)
		}
	})
}
