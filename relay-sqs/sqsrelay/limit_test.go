package sqsrelay

import (
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// A limit that was raised holds for the next message. The test's server has a fixed
// limit, so the test lowers the one that the sink remembers.
func TestLimitIsAskedAgain(t *testing.T) {
	url := newQueue(t, relaytest.Endpoint(t, "RELAY_TEST_SQS_ENDPOINT"), "")
	s := openSink(t, url, nil).(*sink)
	batch := []relay.Message{relaytest.Message(1, "k")}
	s.queue.limit, s.queue.asked = 10, time.Now()
	if err := s.Publish(t.Context(), batch); err == nil {
		t.Fatal("a message above the known limit was published")
	}
	s.queue.asked = time.Time{} // a second later
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Errorf("Publish after the limit was raised = %v", err)
	}
}
