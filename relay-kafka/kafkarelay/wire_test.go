package kafkarelay

import (
	"testing"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// A record without a value is the delete of its key; an empty value is none.
func TestTombstone(t *testing.T) {
	t.Parallel()
	for key, want := range map[string]string{`{"id": 1}`: `{"id": 1}`, "7": "7", "a-1": `"a-1"`, "": `""`} {
		m, err := message(&spot{place: place{topic: "t"}}, &protocol.Record{Key: protocol.NewBytes([]byte(key))})
		if err != nil || m.Op != relay.OpDelete || m.Body != nil || string(m.Row) != want {
			t.Errorf("tombstone of key %q = %+v (%v), want a delete of row %s", key, m, err, want)
		}
	}
	m, err := message(&spot{place: place{topic: "t"}}, &protocol.Record{})
	if err != nil || string(m.Row) != "null" {
		t.Errorf("tombstone without a key = %+v (%v), want the row null", m, err)
	}
	m, err = message(&spot{place: place{topic: "t"}}, &protocol.Record{Value: protocol.NewBytes([]byte{})})
	if err != nil || m.Op != relay.OpEvent || m.Row != nil {
		t.Errorf("an empty value = %+v (%v), want an event", m, err)
	}
}
