package rabbitmqrelay

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// The same message-id in two queues, and twice in a stream, are different messages
// unless a relay made the id or the operator knows better.
func TestIDsOfOtherProducers(t *testing.T) {
	stream := amqp.Table{headerStreamOffset: int64(7)}
	ours := amqp.Table{relay.HeaderSubject: "s"}
	for _, tc := range []struct {
		scope   bool
		queue   string
		headers amqp.Table
		want    string
	}{
		{true, "a", nil, "rabbitmq:a:ord-1"},
		{true, "b", nil, "rabbitmq:b:ord-1"},
		{true, "a", stream, "rabbitmq:a:7"},
		{true, "a", ours, "ord-1"},
		{false, "a", nil, "ord-1"},
		{false, "a", stream, "ord-1"},
	} {
		s := &source{env: relay.Env{ScopeIDs: tc.scope}}
		s.cfg.Queue = tc.queue
		m := s.message(&amqp.Delivery{MessageId: "ord-1", Headers: tc.headers}, "")
		if m.ID != tc.want {
			t.Errorf("scope %t, queue %s, headers %v: id %q, want %q", tc.scope, tc.queue, tc.headers, m.ID, tc.want)
		}
		if given, _ := m.Header("message-id"); tc.want != "ord-1" && given != "ord-1" {
			t.Errorf("header message-id = %q, want the producer's id for event_id_from", given)
		}
	}
}
