package redisrelay

import (
	"fmt"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// A limit that was raised holds for the next message.
func TestLimitIsAskedAgain(t *testing.T) {
	srv := startServer(t, "--proto-max-bulk-len", "1mb")
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":"s"}`, srv.url())).(*sink)
	large := relaytest.Message(1, "k")
	large.Body = make([]byte, 3<<19)
	if err := s.Publish(t.Context(), []relay.Message{large}); err == nil {
		t.Fatal("a body above proto-max-bulk-len was published")
	}
	if err := srv.client(t).ConfigSet(t.Context(), "proto-max-bulk-len", "2097152").Err(); err != nil {
		t.Fatal(err)
	}
	s.asked = time.Time{} // a second later
	if err := s.Publish(t.Context(), []relay.Message{large}); err != nil {
		t.Errorf("Publish after the limit was raised = %v", err)
	}
}
