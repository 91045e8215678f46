package webhookrelay

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// TestWrongPeers: an endpoint that is no HTTP server stops the pipeline, and what a
// server sends without an end is left.
func TestWrongPeers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		answer, want string
		fatal        bool
	}{
		"Redis":        {"-ERR unknown command\r\n", "the server at webhook_url is no HTTP server: this looks like Redis", true},
		"NATS":         {"INFO {\"server_id\":\"x\"}\r\n", "this looks like a NATS server", true},
		"AMQP":         {"AMQP\x00\x00\x09\x01", "this looks like an AMQP server", true},
		"PostgreSQL":   {"E\x00\x00\x00\x8aSFATAL\x00", "this looks like PostgreSQL", true},
		"TLS":          {"\x15\x03\x01\x00\x02\x02\x28", "this looks like TLS; set https:// in webhook_url", true},
		"random bytes": {"\xd1\x00\x8c", "bytes that are no answer", true},
		"a huge head":  {"HTTP/1.1 200 OK\r\nx: " + strings.Repeat("x", 1<<20), "server response headers exceeded", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, _, _ := raw(t, func(_ int64, conn net.Conn) bool { write(conn, tc.answer); return false })
			s := openSink(t, url, nil)
			err := s.Publish(context.Background(), one())
			if err == nil || !strings.Contains(err.Error(), tc.want) || relay.IsFatal(err) != tc.fatal {
				t.Errorf("Publish = %v, want an error with %q, fatal %v", err, tc.want, tc.fatal)
			}
		})
	}
}
