package natsrelay

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

const benchBatch = 1000

// BenchmarkSink measures one message published and confirmed, in batches as the
// engine gives them.
func BenchmarkSink(b *testing.B) {
	url := relaytest.Endpoint(b, "RELAY_TEST_NATS_URL")
	_, js := connect(b, url)
	for _, window := range []int{256, 1024, 4096} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			stream, prefix := addStream(b, js, nil)
			s := openSink(b, fmt.Sprintf(`{"url":%q,"stream":%q,"max_in_flight":%d}`, url, stream, window))
			b.ReportAllocs()
			b.ResetTimer()
			publishOurs(b, s, prefix+".a", 0, b.N)
		})
	}
}

// BenchmarkRaw is the client's own PublishMsgAsync with Nats-Msg-Id.
func BenchmarkRaw(b *testing.B) {
	url := relaytest.Endpoint(b, "RELAY_TEST_NATS_URL")
	_, js := connect(b, url)
	for _, window := range []int{256, 1024, 4096} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			_, prefix := addStream(b, js, nil)
			b.ReportAllocs()
			b.ResetTimer()
			publishRaw(b, url, prefix+".a", window, 0, b.N)
		})
	}
}

// TestThroughput compares the two in one run, turn by turn.
func TestThroughput(t *testing.T) {
	if os.Getenv("RELAY_TEST_BENCH") == "" {
		t.Skip("a measurement, which wants a quiet machine: set RELAY_TEST_BENCH")
	}
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	const n, rounds = 50_000, 5
	windows := []int{256, 1024, 4096}
	raw := make(map[int][]float64)
	var ours []float64
	for range rounds {
		measure := func(publish func(stream, subject string)) float64 {
			stream, prefix := addStream(t, js, nil)
			began := time.Now()
			publish(stream, prefix+".a")
			rate := n / time.Since(began).Seconds()
			_ = js.DeleteStream(testContext(t), stream)
			return rate
		}
		for _, w := range windows {
			raw[w] = append(raw[w], measure(func(_, subject string) { publishRaw(t, url, subject, w, 0, n) }))
		}
		ours = append(ours, measure(func(stream, subject string) {
			publishOurs(t, openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream)), subject, 0, n)
		}))
	}
	best := windows[0]
	for _, w := range windows {
		t.Logf("raw PublishMsgAsync window %4d: %7.0f/s (median of %.0f)", w, median(raw[w]), raw[w])
		if median(raw[w]) > median(raw[best]) {
			best = w
		}
	}
	ratios := make([]float64, rounds) // each to its neighbour in time
	for i := range ratios {
		ratios[i] = ours[i] / raw[best][i]
	}
	t.Logf("our Publish, ordered:        %7.0f/s (median of %.0f), %.2f of window %d (median of %.2f)", median(ours), ours, median(ratios), best, ratios)
	if median(ratios) < 0.95 {
		t.Errorf("our Publish reaches %.2f of the client's own, want 0.95", median(ratios))
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

var benchBody = []byte(`{"id": 123456, "note": "a note of some length to fill the row as a real one would", "total": 1234.56, "status": "shipped", "customer": "Ærøskøbing Handel", "created_at": "2026-11-22T18:00:00.123456+00:00", "updated_at": "2026-11-22T18:00:00.123456+00:00", "quantity": 42}`)

func publishOurs(t testing.TB, s *sink, subject string, base, n int) {
	t.Helper()
	ctx := testContext(t)
	batch := make([]relay.Message, min(benchBatch, n))
	for i := range batch {
		batch[i] = relay.Message{Subject: subject, Op: relay.OpInsert, Body: benchBody, ContentType: "application/json", StreamTable: "orders"}
	}
	var ids []byte // the outbox source renders ids into one buffer as well
	for done := 0; done < n; done += len(batch) {
		batch = batch[:min(len(batch), n-done)]
		ids = ids[:0]
		ends := make([]int, len(batch))
		for i := range batch {
			ids = append(ids, "outbox_orders:"...)
			ids = strconv.AppendInt(ids, int64(base+done+i), 10)
			ids = append(ids, ":0"...)
			ends[i] = len(ids)
		}
		all, from := string(ids), 0
		for i := range batch {
			batch[i].ID, batch[i].OutboxID, batch[i].Key = all[from:ends[i]], int64(base+done+i), "k"
			from = ends[i]
		}
		if err := s.Publish(ctx, batch); err != nil {
			t.Fatalf("Publish = %v", err)
		}
	}
}

func publishRaw(t testing.TB, url, subject string, window, base, n int) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(window))
	if err != nil {
		t.Fatal(err)
	}
	futures := make([]jetstream.PubAckFuture, 0, n)
	for i := range n {
		m := &nats.Msg{Subject: subject, Data: benchBody, Header: nats.Header{nats.MsgIdHdr: {strconv.Itoa(base + i)}}}
		f, err := js.PublishMsgAsync(m, jetstream.WithStallWait(20*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		futures = append(futures, f)
	}
	<-js.PublishAsyncComplete()
	for _, f := range futures {
		select {
		case err := <-f.Err():
			t.Fatal(err)
		case <-f.Ok():
		}
	}
}
