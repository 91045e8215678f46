package kafkarelay

import (
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// With on_tombstone skip, a record without a value is no message.
func TestSourceTombstones(t *testing.T) {
	brokers := relaytest.Endpoint(t, "RELAY_TEST_KAFKA_BROKERS")
	for policy, want := range map[string][]string{"delete": {"event", "delete", "event"}, "skip": {"event", "event"}} {
		topic := newTopic(t, brokers, 1)
		writeRaw(t, brokers, topic, kafka.Message{Key: []byte("7"), Value: []byte("1")}, kafka.Message{Key: []byte("7")},
			kafka.Message{Key: []byte("7"), Value: []byte("2")})
		s := openSource(t, map[string]any{"brokers": brokers, "topic": topic, "group_id": topic, "on_tombstone": policy})
		var got []relay.Message
		for len(got) < len(want) {
			batch, err := s.Receive(t.Context(), 10)
			if relay.IsFatal(err) || t.Context().Err() != nil {
				t.Fatal(err)
			}
			got = append(got, batch...)
		}
		for i, m := range got {
			if m.Op != want[i] || (m.Op == relay.OpDelete && string(m.Row) != "7") {
				t.Errorf("%s: message %d = op %q, row %q; want op %q", policy, i, m.Op, m.Row, want[i])
			}
		}
	}
}
