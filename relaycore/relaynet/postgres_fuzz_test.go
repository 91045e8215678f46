package relaynet_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// replay is a connection to a peer that sends the same bytes, and then nothing.
type replay struct {
	net.Conn // the near end of a pipe
	answer   io.Reader
}

func (r *replay) Read(p []byte) (int, error)  { return r.answer.Read(p) }
func (r *replay) Write(p []byte) (int, error) { return len(p), nil }

// FuzzPostgres sends any bytes, also after a right greeting. The client does not panic,
// ends, and allocates little. Its error is one line.
func FuzzPostgres(f *testing.F) {
	const maxMessage, maxAllocated = 1 << 20, 8 << 20
	greeting := "R\x00\x00\x00\x08\x00\x00\x00\x00" + "K\x00\x00\x00\x0c\x00\x00\x00\x01\x00\x00\x00\x02" + "Z\x00\x00\x00\x05I"
	for _, answer := range []string{
		"", "HTTP/1.1 400 Bad Request\r\n\r\n", "-ERR unknown command\r\n", "INFO {}\r\n", "AMQP\x00\x00\x09\x01", "\x15\x03\x01\x00\x02\x02\x28",
		"R\x7f\xff\xff\xff\x00\x00\x00\x00", "R\x00\x00\x00\x08\x00\x00\x00\x03", "R\x00\x00\x00\x0c\x00\x00\x00\x05salt",
		"R\x00\x00\x00\x17\x00\x00\x00\x0aSCRAM-SHA-256\x00\x00", "v\x00\x00\x00\x0c\x00\x03\x00\x00\x00\x00\x00\x00",
		"E\x00\x00\x00\x1cSFATAL\x00C28P01\x00Mtwo\nlines\x00\x00", "N\x00\x00\x00\x0bMnote\x00\x00",
		greeting, greeting + "T\x00\x00\x00\x06\x7f\xff", greeting + "T\x00\x00\x00\x1b\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x17\x00\x04\xff\xff\xff\xff\x00\x00" +
			"D\x00\x00\x00\x0b\x00\x01\x00\x00\x00\x011" + "C\x00\x00\x00\x0dSELECT 1\x00" + "Z\x00\x00\x00\x05I",
		greeting + "D\x00\x00\x00\x0a\x7f\xff\x7f\xff\xff\xff", greeting + "S\x00\x00\x00\x0aa\x00bc\x00", greeting + "A\x00\x00\x00\x0c\x00\x00\x00\x01ch\x00\x00",
	} {
		f.Add([]byte(answer))
	}
	config, err := pgconn.ParseConfig("host=127.0.0.1 user=u password=p sslmode=disable")
	if err != nil {
		f.Fatal(err)
	}
	config.MaxProtocolMessageBodyLen = maxMessage
	config.AfterNetConnect = relaynet.RecognisePostgres("url", "sslmode")
	f.Fuzz(func(t *testing.T, answer []byte) {
		near, far := net.Pipe()
		defer func() { _, _ = near.Close(), far.Close() }()
		to := *config
		to.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			return &replay{near, bytes.NewReader(answer)}, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		conn, err := pgconn.ConnectConfig(ctx, &to)
		if err == nil {
			_, _ = conn.Exec(ctx, "SELECT 1").ReadAll()
			_ = conn.Close(ctx)
		} else if text := relaynet.PostgresCause(err).Error(); strings.Contains(text, "\n") {
			t.Errorf("error %q has several lines", text)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > maxAllocated {
			t.Errorf("%d bytes were allocated for %d", n, len(answer))
		}
		if ctx.Err() != nil {
			t.Errorf("the client did not end: %v", err)
		}
	})
}
