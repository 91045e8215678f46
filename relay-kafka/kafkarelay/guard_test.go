package kafkarelay

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
	"github.com/segmentio/kafka-go/protocol/joingroup"
	"github.com/segmentio/kafka-go/protocol/metadata"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// replay is a connection to a peer that answers each request with the same bytes.
type replay struct {
	net.Conn // nil: only what is defined here is used
	answer   *bytes.Reader
}

func (r *replay) Read(p []byte) (int, error)  { return r.answer.Read(p) }
func (r *replay) Write(p []byte) (int, error) { return len(p), nil }
func (r *replay) Close() error                { return nil }

// frame is a response with a size and a correlation id in front of body.
func frame(correlation uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(4+len(body)))
	return append(binary.BigEndian.AppendUint32(b, correlation), body...)
}

// ask sends a request through a guard to a peer that answers with answer, and decodes
// what passes the guard as kafka-go does.
func ask(t testing.TB, version int16, request protocol.Message, answer []byte) (protocol.Message, error) {
	t.Helper()
	conn := newGuard(&replay{answer: bytes.NewReader(answer)}, 0)
	if err := protocol.WriteRequest(conn, version, 7, "test", request); err != nil {
		t.Fatal(err)
	}
	_, message, err := protocol.ReadResponse(conn, request.ApiKey(), version)
	return message, err
}

func TestGuardPassesResponses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		version  int16
		request  protocol.Message
		response protocol.Message
	}{
		"metadata": {8, &metadata.Request{}, &metadata.Response{
			Brokers: []metadata.ResponseBroker{{NodeID: 1, Host: "h", Port: 9092}}, ClusterID: "c",
			Topics: []metadata.ResponseTopic{{Name: "t", Partitions: []metadata.ResponsePartition{{ReplicaNodes: []int32{1, 2}, IsrNodes: []int32{1}}}}},
		}},
		"metadata of old": {1, &metadata.Request{}, &metadata.Response{Brokers: []metadata.ResponseBroker{{NodeID: 1, Host: "h", Port: 9092}}}},
		"flexible": {7, &joingroup.Request{}, &joingroup.Response{
			MemberID: "m", ProtocolName: "p", LeaderID: "l", Members: []joingroup.ResponseMember{{MemberID: "m", Metadata: []byte("x")}},
		}},
		"fetch": {11, &fetch.Request{}, &fetch.Response{Topics: []fetch.ResponseTopic{{Topic: "t", Partitions: []fetch.ResponsePartition{{
			HighWatermark: 4, RecordSet: protocol.RecordSet{Version: 2, Records: protocol.NewRecordReader(protocol.Record{Value: protocol.NewBytes([]byte("v"))})},
		}}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var wire bytes.Buffer
			if err := protocol.WriteResponse(&wire, tc.version, 7, tc.response); err != nil {
				t.Fatal(err)
			}
			if _, err := ask(t, tc.version, tc.request, wire.Bytes()); err != nil {
				t.Errorf("the guard refuses a response: %v", err)
			}
			short := wire.Bytes()[:wire.Len()-1]
			if _, err := ask(t, tc.version, tc.request, short); err == nil && name != "fetch" {
				t.Error("the guard passes a response whose end is missing")
			}
		})
	}
}

// wrongAnswers are what peers that are no broker answer.
var wrongAnswers = map[string]struct{ answer, want string }{
	"HTTP":                  {"HTTP/1.1 400 Bad Request\r\n\r\n", "this looks like an HTTP server"},
	"NATS":                  {"INFO {\"server_id\":\"x\"}\r\n", "this looks like a NATS server"},
	"AMQP":                  {"AMQP\x00\x00\x09\x01", "this looks like an AMQP server"},
	"Redis":                 {"-ERR unknown command\r\n", "this looks like Redis"},
	"PostgreSQL":            {"E\x00\x00\x00\x8aSFATAL\x00", "this looks like PostgreSQL"},
	"TLS":                   {"\x15\x03\x01\x00\x02\x02\x28", "this looks like TLS; set kafka_tls"},
	"a negative size":       {"\xff\xff\xff\xff\x00\x00\x00\x07", "no Kafka broker"},
	"a huge size":           {"\x7f\xff\xff\xff\x00\x00\x00\x07", "no Kafka broker"},
	"another correlation":   {string(frame(8, make([]byte, 64))), "no Kafka broker"},
	"a huge count":          {string(frame(7, []byte("\x00\x00\x00\x00\x7f\xff\xff\xff"))), "a count of 2147483647"},
	"a count that does not": {string(frame(7, append([]byte("\x00\x00\x00\x00\x00\x10\x00\x00"), make([]byte, 1<<20)...))), "a count of 1048576"},
	"a long string":         {string(frame(7, []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x7f\xffhost\x00\x00\x00\x00\x00\x00"))), "a length of 32767"},
}

func TestGuardRefusesWrongPeers(t *testing.T) {
	for name, tc := range wrongAnswers {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := ask(t, 8, &metadata.Request{}, []byte(tc.answer))
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
}

// TestClientAtWrongPeers lets kafka-go's client and the guard ask peers that are no
// broker: each call ends with the guard's error, in bounded memory.
func TestClientAtWrongPeers(t *testing.T) {
	random := make([]byte, 4096)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(random)
	answers := map[string]string{"random bytes": string(random)}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, tc := range wrongAnswers {
		answers[name] = tc.answer
	}
	for name, answer := range answers {
		t.Run(name, func(t *testing.T) {
			address := relaytest.Serve(t, func(conn net.Conn) {
				_, _ = conn.Read(make([]byte, 1024))
				_, _ = io.WriteString(conn, answer)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			transport := &kafka.Transport{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
				conn, err := new(net.Dialer).DialContext(ctx, network, address)
				if err != nil {
					return nil, err
				}
				return newGuard(conn, 0), nil
			}}
			defer transport.CloseIdleConnections()
			_, err := (&kafka.Client{Addr: kafka.TCP(address), Transport: transport}).Metadata(ctx, &kafka.MetadataRequest{})
			var wrong *relaynet.WrongPeerError
			if !errors.As(err, &wrong) {
				t.Errorf("error %v, want the guard's", err)
			}
		})
	}
	runtime.ReadMemStats(&after)
	if took := after.Sys - before.Sys; took > 256<<20 {
		t.Errorf("the process has taken %d MiB", took>>20)
	}
}

// FuzzGuard answers requests with any bytes: kafka-go's decoder does not panic, and does
// not allocate more than a response may hold.
func FuzzGuard(f *testing.F) {
	for _, tc := range wrongAnswers {
		f.Add(int16(8), []byte(tc.answer))
	}
	f.Add(int16(1), frame(7, []byte("\x00\x00\x00\x00\x00\x00\x00\x00")))
	f.Fuzz(func(t *testing.T, version int16, answer []byte) {
		defer time.AfterFunc(30*time.Second, func() { panic(fmt.Sprintf("no end: %d %q", version, answer)) }).Stop()
		for _, request := range []protocol.Message{&metadata.Request{}, &joingroup.Request{}, &fetch.Request{}} {
			conn := newGuard(&replay{answer: bytes.NewReader(answer)}, 0)
			v := max(0, version%8)
			if protocol.WriteRequest(conn, v, 7, "test", request) != nil {
				continue
			}
			_, message, err := protocol.ReadResponse(conn, request.ApiKey(), v)
			if res, ok := message.(*fetch.Response); ok && err == nil {
				for _, topic := range res.Topics {
					for i := range topic.Partitions {
						if records := topic.Partitions[i].RecordSet.Records; records != nil {
							_, _ = records.ReadRecord()
						}
					}
				}
			}
		}
	})
}

// TestWrongPeerStopsThePipeline: a sink at a server that is no broker fails for good, and
// its error names the key that is wrong.
func TestWrongPeerStopsThePipeline(t *testing.T) {
	t.Parallel()
	address := relaytest.Serve(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1024))
		_, _ = io.WriteString(conn, wrongAnswers["PostgreSQL"].answer)
	})
	cfg := sinkDefaults()
	cfg.Brokers = []string{address}
	_, err := newSink(t.Context(), relay.Env{Pipeline: "p", Logger: slog.New(slog.DiscardHandler)}, cfg)
	if !relay.IsFatal(err) || !strings.Contains(err.Error(), "the server at kafka_brokers is no Kafka broker: this looks like PostgreSQL") {
		t.Errorf("newSink = %v, want a fatal error that names the key and the server", err)
	}
}
