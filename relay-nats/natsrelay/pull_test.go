package natsrelay

import (
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestPosition(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{
		"$JS.ACK.orders.relay.1.17.18.1763850000123456789.5",
		"$JS.ACK._.hash.orders.relay.2.17.18.1763850000123456789.5",
		"$JS.ACK.hub.hash.orders.relay.2.17.18.1763850000123456789.5.token",
		"$JS.ACK.hub.hash.orders.relay.2.17.18.1763850000123456789.5.token.more",
	} {
		want, err := (&nats.Msg{Reply: reply, Sub: &nats.Subscription{}}).Metadata()
		if err != nil {
			t.Fatal(err)
		}
		if seq, at, ok := position(reply); !ok || seq != want.Sequence.Stream || !at.Equal(want.Timestamp) {
			t.Errorf("position(%q) = %d, %v, %t; the client says %d, %v", reply, seq, at, ok, want.Sequence.Stream, want.Timestamp)
		}
	}
	for _, reply := range []string{"", "_INBOX.a.1", "$JS.ACK.", "$JS.ACK.orders.relay.1.17.18.1763850000123456789", "$JS.ACK.a.orders.relay.1.17.18.1763850000123456789.5", "$JS.ACK.orders.relay.1.x.18.1763850000123456789.5", "$JS.FC.orders.relay.1.17.18.1763850000123456789.5"} {
		if seq, at, ok := position(reply); ok {
			t.Errorf("position(%q) = %d, %v, true; want false", reply, seq, at)
		}
	}
}

// BenchmarkTake is what the source does with a message that the client has
// parsed, from its arrival to its acknowledgement.
func BenchmarkTake(b *testing.B) {
	const batch = 1000
	msgs := make([]*nats.Msg, batch)
	for i := range msgs {
		msgs[i] = &nats.Msg{
			Sub: &nats.Subscription{}, Subject: "bench.insert", Reply: fmt.Sprintf("$JS.ACK.bench.relay.1.%d.%d.1763850000000000000.%d", i+1, i+1, batch-i), Data: make([]byte, 400),
			Header: nats.Header{
				nats.MsgIdHdr: {fmt.Sprintf("outbox_bench:%d:0", i)}, relay.HeaderOp: {"insert"}, relay.HeaderOutboxID: {"123456"},
				relay.HeaderKey: {"123456"}, relay.HeaderContentType: {"application/json"},
			},
		}
	}
	p := &pull{
		info: &jetstream.ConsumerInfo{Stream: "bench"}, origin: "nats:bench", arrived: make(chan struct{}, 1),
		held: make(map[uint64]*delivery), ackAll: true, maxBytes: prefetchBytes, wanted: 1 << 62,
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, m := range msgs {
			p.take(m)
		}
		got, err := p.dequeue(batch)
		if err != nil || len(got) != batch {
			b.Fatalf("dequeue = %d messages, %v", len(got), err)
		}
		out := make([]relay.Message, batch)
		for i, d := range got {
			p.translate(d, &out[i])
			p.settle(d)
		}
		p.dueAck()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/msg")
}
