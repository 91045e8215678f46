package sqsrelay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// FuzzAnswer lets an endpoint answer a request for messages with any bytes, or with any
// JSON in a right answer. The source does not panic, ends, and allocates little.
func FuzzAnswer(f *testing.F) {
	const maxAllocated = 8 << 20
	for _, body := range []string{
		`{}`, `{"Messages":[{"MessageId":"a","ReceiptHandle":"r","Body":"x","MD5OfBody":"9dd4e461268c8034f5c8564e155c67a6"}]}`,
		`{"Messages":[{"Attributes":{"SentTimestamp":"1","MessageGroupId":"g","MessageDeduplicationId":"d"}}]}`,
		`{"Messages":[{"MessageAttributes":{"headers":{"DataType":"String","StringValue":"[[\"a\",\"b\"]]"}}}]}`,
		`{"Messages":[null,{"MessageAttributes":{"dedup_key":{"DataType":"Binary","BinaryValue":"AA=="}}}]}`,
		`{"Messages":[{"MessageAttributes":null,"Attributes":null,"Body":null}]}`, `[`, `{"__type":"com.amazonaws.sqs#QueueDoesNotExist"}`,
	} {
		f.Add(false, []byte(body))
	}
	for _, answer := range []string{
		"", "HTTP/1.1 200 OK\r\n\r\n{}", "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", "HTTP/1.1 307 x\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "-ERR x\r\n", "\x15\x03\x01",
	} {
		f.Add(true, []byte(answer))
	}
	var current atomic.Pointer[string]
	address := relaytest.Serve(f, func(conn net.Conn) {
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(conn, *current.Load())
	})
	config := sourceDefaults()
	config.Endpoint, config.QueueURL, config.Region = "http://"+address, "http://"+address+"/000000000000/q", "eu-west-1"
	config.AccessKeyID, config.SecretAccessKey = "x", "y"
	right := func(body string) *string {
		text := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		return &text
	}
	current.Store(right("{}"))
	queue, err := openQueue(f.Context(), testEnv(), &config.connConfig)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw bool, answer []byte) {
		text := string(answer)
		current.Store(&text)
		if !raw {
			current.Store(right(text))
		}
		s := &source{cfg: config, env: testEnv(), queue: queue, origin: "sqs:q", held: make(map[*receipt]struct{})}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := s.receive(t.Context())
		runtime.ReadMemStats(&after)
		if len(got) != len(s.held) || err != nil && len(got) > 0 {
			t.Errorf("%d messages, and %d are kept hidden; error %v", len(got), len(s.held), err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > maxAllocated {
			t.Errorf("%d bytes were allocated for %d", n, len(answer))
		}
	})
}
