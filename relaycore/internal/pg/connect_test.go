package pg_test

import (
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// answer returns the address of a server that answers everything with text, and hangs up.
func answer(t *testing.T, text string) string {
	t.Helper()
	return relaytest.Serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1024))
		_, _ = io.WriteString(conn, text)
	})
}

// TestCauseOfARefusedLogin: the true cause comes first, on one line. The server has no
// TLS, for which sslmode=prefer asks first, and refuses the password.
func TestCauseOfARefusedLogin(t *testing.T) {
	address := relaytest.Serve(t, func(conn net.Conn) {
		request := make([]byte, 1024)
		if n, _ := conn.Read(request); n == 8 {
			_, _ = io.WriteString(conn, "N")
		} else {
			_, _ = io.WriteString(conn, "E\x00\x00\x00\x29SFATAL\x00C28P01\x00Mwrong password for u\x00\x00")
		}
	})
	config, err := pg.PoolConfig("postgres://u:p@"+address+"/d?sslmode=prefer", "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pgx.ConnectConfig(t.Context(), config.ConnConfig)
	text := pg.ExplainConnect(err).Error()
	if !strings.HasPrefix(text, "connect to PostgreSQL: user=u database=d: 127.0.0.1:") || !strings.Contains(text, "wrong password for u") ||
		strings.ContainsAny(text, "\n\t") || strings.Contains(text, "TLS") || !strings.HasSuffix(text, "pg_hba.conf") {
		t.Errorf("error %q, want one line with the cause alone", text)
	}
}

func TestConnectToWrongPeers(t *testing.T) {
	for name, tc := range map[string]struct{ answer, want string }{
		"HTTP":           {"HTTP/1.1 400 Bad Request\r\n\r\n", "the server at --postgres-url is no PostgreSQL server: this looks like an HTTP server"},
		"NATS":           {"INFO {\"server_id\":\"x\"}\r\n", "this looks like a NATS server"},
		"AMQP":           {"AMQP\x00\x00\x09\x01", "this looks like an AMQP server"},
		"Redis":          {"-ERR unknown command\r\n", "this looks like Redis"},
		"random bytes":   {"\xd1\x00\x8c", "bytes that are no answer"},
		"silence":        {"", "closed the connection without an answer; check host, port and sslmode"},
		"a huge message": {"R\x3f\xff\xff\xff\x00\x00\x00\x00", "1048576"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := pg.PoolConfig("postgres://u:p@"+answer(t, tc.answer)+"/d?sslmode=disable", "test", 2)
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = pgx.ConnectConfig(t.Context(), config.ConnConfig)
			runtime.ReadMemStats(&after)
			if err = pg.ExplainConnect(err); !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}
