package hostile

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A peer talks to one client that has connected. It returns to hang up.
type peer struct {
	talk func(conn net.Conn, backend string)
	// known is what the error of a client names, "" if there is nothing to recognise.
	known string
	// own is the backend whose protocol it is, which is not refused by its name.
	own string
	// accepts is a pipeline that has no error: the peer takes its messages, or refuses
	// each by itself.
	accepts string
	// quiet peers make clients wait, longer than the test does.
	quiet bool
	// short peers are those of `make hostile-short`.
	short bool
}

// after waits for something from the client, and answers it.
func after(answer string) func(net.Conn, string) {
	return func(conn net.Conn, _ string) {
		if _, err := conn.Read(make([]byte, 64<<10)); err == nil {
			_, _ = io.WriteString(conn, answer)
			drain(conn)
		}
	}
}

// drain reads for a moment, so that what was written arrives before the reset.
func drain(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	_, _ = io.Copy(io.Discard, conn)
}

var peers = map[string]peer{
	"HTTP":       {talk: after("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), known: "this looks like an HTTP server", own: "http", accepts: "webhook_out", short: true},
	"TLS":        {talk: after("\x15\x03\x01\x00\x02\x02\x28"), known: "TLS"},
	"PostgreSQL": {talk: postgres, known: "this looks like PostgreSQL", own: "pg_inbox", short: true},
	"Redis":      {talk: after("-ERR unknown command\r\n"), known: "this looks like Redis", own: "redis"},
	"AMQP":       {talk: after("AMQP\x00\x00\x09\x01"), known: "this looks like an AMQP server", own: "rabbitmq"},
	"NATS": {talk: func(conn net.Conn, _ string) {
		_, _ = io.WriteString(conn, natsInfo)
		after("-ERR 'Unknown Protocol Operation'\r\n")(conn, "")
	}, known: "this looks like a NATS server", own: "nats"},
	"Kafka":    {talk: func(conn net.Conn, _ string) { _, _ = conn.Read(make([]byte, 4)) }, own: "kafka"}, // it hangs up
	"silence":  {talk: func(conn net.Conn, _ string) { _, _ = io.Copy(io.Discard, conn) }, quiet: true},
	"drip":     {talk: drip, quiet: true},
	"random":   {talk: random, short: true},
	"huge":     {talk: func(conn net.Conn, backend string) { after(huge[backend])(conn, backend) }, accepts: "webhook_out", short: true},
	"greeting": {talk: greet, short: true},
}

const natsInfo = "INFO {\"server_id\":\"x\",\"version\":\"2.15.0\",\"headers\":true,\"max_payload\":1048576,\"jetstream\":true} \r\n"

// postgres answers as PostgreSQL does: no to TLS, and with an error to all else.
func postgres(conn net.Conn, _ string) {
	request := make([]byte, 8)
	for {
		if _, err := io.ReadFull(conn, request); err != nil {
			return
		}
		if binary.BigEndian.Uint32(request[4:]) != 80877103 { // the request for TLS
			break
		}
		_, _ = io.WriteString(conn, "N")
	}
	_, _ = io.WriteString(conn, "E\x00\x00\x00\x2dSFATAL\x00C08P01\x00Mbad startup packet (test)\x00\x00")
	drain(conn)
}

func drip(conn net.Conn, backend string) {
	head := huge[backend][:min(16, len(huge[backend]))]
	for i := range 1000 {
		if _, err := conn.Write([]byte{head[i%len(head)]}); err != nil {
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
}

// random sends random bytes until the client hangs up, up to a gigabyte.
func random(conn net.Conn, _ string) {
	_, _ = io.CopyN(conn, rand.NewChaCha8([32]byte{1}), 1<<30)
}

// endless is a body of a gigabyte.
func endless(head string) string { return head + strings.Repeat("x", 1<<20) }

// huge announces more than any memory has, as the servers of each backend would.
var huge = map[string]string{
	"redis":    "$999999999999\r\n",
	"nats":     natsInfo + "PONG\r\nMSG a 1 999999999999\r\n",
	"kafka":    "\x7f\xff\xff\xff\x00\x00\x00\x01",
	"rabbitmq": "\x01\x00\x00\x00\x00\x00\x10\x00\x0a\x00\x0a\x00\x09\x7f\xff\xff\xff",
	"pg_inbox": "R\x3f\xff\xff\xff\x00\x00\x00\x00",
	"http":     endless("HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"),
}

// greetings are the first answers of the right servers.
var greetings = map[string]string{
	"redis":    "*0\r\n",
	"nats":     natsInfo + "PONG\r\n",
	"rabbitmq": "\x01\x00\x00\x00\x00\x00\x1c\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x05en_US\xce",
	"pg_inbox": "R\x00\x00\x00\x08\x00\x00\x00\x00",
	"http":     "HTTP/1.1 200 OK\r\n",
}

// greet begins well, and goes on with random bytes.
func greet(conn net.Conn, backend string) {
	var request [4 << 10]byte
	if backend != "nats" {
		n, err := conn.Read(request[:])
		if err != nil {
			return
		}
		if backend == "kafka" && n >= 12 { // a plausible size, and the request's correlation id
			_, _ = conn.Write(bytes.Join([][]byte{{0, 0, 0x10, 0}, request[8:12]}, nil))
		}
	}
	_, _ = io.WriteString(conn, greetings[backend])
	random(conn, backend)
}

// serve returns the address of a peer for the clients of backend.
func serve(t *testing.T, p peer, backend string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := make(map[net.Conn]bool)
	all.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			all.Go(func() {
				p.talk(conn, backend)
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return ln.Addr().String()
}
