package sqsrelay

import (
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// endless returns zeros for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// answering returns the URL of a server that answers each connection with what answer
// has, and hangs up.
func answering(t *testing.T, answer func() io.Reader) string {
	t.Helper()
	return "http://" + relaytest.Serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 8<<10))
		time.Sleep(50 * time.Millisecond) // the client has written all, and an error of that hides no other
		_, _ = io.Copy(conn, answer())
	})
}

// TestWrongPeers: an endpoint that is no SQS ends in an error, in bounded memory.
func TestWrongPeers(t *testing.T) {
	t.Parallel()
	text := func(s string) func() io.Reader { return func() io.Reader { return strings.NewReader(s) } }
	for name, tc := range map[string]struct {
		answer func() io.Reader
		want   string
		fatal  bool
	}{
		"Redis":        {text("-ERR unknown command\r\n"), "the server at sqs_endpoint is no HTTP server: this looks like Redis", true},
		"NATS":         {text("INFO {\"server_id\":\"x\"}\r\n"), "this looks like a NATS server", true},
		"AMQP":         {text("AMQP\x00\x00\x09\x01"), "this looks like an AMQP server", true},
		"PostgreSQL":   {text("E\x00\x00\x00\x8aSFATAL\x00"), "this looks like PostgreSQL", true},
		"TLS":          {text("\x15\x03\x01\x00\x02\x02\x28"), "this looks like TLS; set https:// in sqs_endpoint", true},
		"random bytes": {text("\xd1\x00\x8c"), "bytes that are no answer", true},
		"an endless head": {
			func() io.Reader { return io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nx: "), endless{}) }, "server response headers exceeded", false,
		},
		"an endless body": {
			func() io.Reader { return io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n\r\n"), endless{}) }, "too large", false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			endpoint := answering(t, tc.answer)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Backend().Sink.New(t.Context(), testEnv(), queueConfig(endpoint+"/q.fifo", map[string]any{
				"endpoint": endpoint, "region": "eu-west-1", "access_key_id": "x", "secret_access_key": "y",
			}))
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.want) || relay.IsFatal(err) != tc.fatal {
				t.Errorf("New = %v, want an error with %q", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 256<<20 {
				t.Errorf("%d MiB were allocated", n>>20)
			}
		})
	}
}
