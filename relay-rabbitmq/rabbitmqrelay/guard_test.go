package rabbitmqrelay

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// frame returns a frame of the wire.
func frame(kind byte, payload string) string {
	b := append([]byte{kind, 0, 0}, binary.BigEndian.AppendUint32(nil, uint32(len(payload)))...)
	return string(b) + payload + "\xce"
}

// start is what a broker sends first.
var start = frame(methodFrame, "\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US")

// wrongAnswers are what peers that are no broker answer, and what a hostile one could.
var wrongAnswers = map[string]relaytest.Answer{
	"HTTP":            {"HTTP/1.1 400 Bad Request\r\n\r\n", "this looks like an HTTP server; check host and port"},
	"NATS":            {"INFO {\"server_id\":\"x\"}\r\n", "this looks like a NATS server"},
	"Redis":           {"-ERR unknown command\r\n", "this looks like Redis"},
	"AMQP 1.0":        {"AMQP\x00\x01\x00\x00", "this looks like an AMQP server"},
	"TLS":             {"\x15\x03\x01\x00\x02\x02\x28", "this looks like TLS; set rabbitmq_tls"},
	"PostgreSQL":      {"E\x00\x00\x00\x8aSFATAL\x00", "this looks like PostgreSQL"},
	"random bytes":    {"\xd1\x00\x8c\x11\x11\x11\x11\x11", "bytes that are no answer"},
	"silence":         {"", "closed the connection without an answer"},
	"a huge frame":    {"\x01\x00\x00\x7f\xff\xff\xff", "a frame of 2147483647 bytes"},
	"a short method":  {frame(methodFrame, "\x00\x0a"), "a method of 2 bytes"},
	"a huge table":    {frame(methodFrame, "\x00\x0a\x00\x0a\x00\x09\x7f\xff\xff\xff"), "2147483647 bytes in a frame of 10"},
	"a huge string":   {frame(methodFrame, "\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x7f\xff\xff\xff"), "2147483647 bytes in a frame of 14"},
	"a huge secret":   {start + frame(methodFrame, "\x00\x0a\x00\x14\x7f\xff\xff\xff"), "2147483647 bytes in a frame of 8"},
	"a huge message":  {start + frame(headerFrame, "\x00\x3c\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00"), "more than 512 MiB"},
	"an unknown type": {start + "\x07\x00\x00\x00\x00\x00\x00\xce", "bytes that are no answer"},
}

// replay is a connection to a peer that sends the same bytes, and then nothing.
type replay struct {
	net.Conn // the near end of a pipe
	answer   io.Reader
}

func (r *replay) Read(p []byte) (int, error)  { return r.answer.Read(p) }
func (r *replay) Write(p []byte) (int, error) { return len(p), nil }

// talk lets the client connect to a peer that sends answer, and returns the guard's
// error, or the client's without one.
func talk(t testing.TB, answer string) error {
	near, far := net.Pipe()
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	conn := newGuard(&replay{near, bytes.NewReader([]byte(answer))}, 0)
	open, err := amqp.DialConfig("amqp://localhost", amqp.Config{Dial: func(string, string) (net.Conn, error) { return conn, nil }})
	if err == nil {
		_ = open.CloseDeadline(time.Now().Add(time.Second))
	}
	if refused := conn.Err(); refused != nil {
		return refused
	}
	return err
}

func TestGuardRefusesWrongPeers(t *testing.T) {
	relaytest.RefuseAnswers(t, wrongAnswers, talk, classify)
}

func TestGuardPassesFrames(t *testing.T) {
	t.Parallel()
	text := start + frame(heartbeatFrame, "") + frame(methodFrame, "\x00\x14\x00\x0b\x00\x00\x00\x00") +
		frame(methodFrame, "\x00\x3c\x00\x3c\x01c\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01e\x01r") +
		frame(headerFrame, "\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00") + frame(bodyFrame, "hello") + frame(heartbeatFrame, "")
	for _, size := range []int{1, 3, len(text)} {
		f := &frames{}
		for rest := text; rest != ""; rest = rest[min(size, len(rest)):] {
			if err := f.check([]byte(rest[:min(size, len(rest))])); err != nil {
				t.Fatalf("%d bytes at a time: %v at %.20q", size, err, rest)
			}
		}
		if len(f.head) != 0 || f.rest != 0 {
			t.Errorf("%d bytes at a time: a frame has not ended: %+v", size, f)
		}
	}
}

// FuzzGuard sends any bytes, also after a right greeting: the client does not panic, and
// allocates no more than a frame may have.
func FuzzGuard(f *testing.F) {
	for _, tc := range wrongAnswers {
		f.Add([]byte(tc.Sends))
	}
	tune := frame(methodFrame, "\x00\x0a\x00\x1e\x00\x00\x00\x02\x00\x00\x00\x00")
	f.Add([]byte(start + tune + frame(methodFrame, "\x00\x0a\x00\x29\x00") + frame(bodyFrame, "x")))
	f.Fuzz(func(t *testing.T, answer []byte) { _ = talk(t, string(answer)) })
}
