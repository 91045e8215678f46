package natsrelay

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// Producers that are no relay number their messages from 1 in each stream, and again
// after the duplicate window. With scoped ids all are different messages.
func TestIDsOfOtherProducers(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	ids := make(map[string]bool)
	for range 2 {
		stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) { c.Duplicates = 100 * time.Millisecond })
		send := func(id string, headers ...string) {
			m := nats.NewMsg(prefix + ".a")
			m.Header.Set(nats.MsgIdHdr, id)
			for _, name := range headers {
				m.Header.Set(name, "x")
			}
			if _, err := js.PublishMsg(testContext(t), m); err != nil {
				t.Fatal(err)
			}
		}
		send("1")
		time.Sleep(300 * time.Millisecond)
		send("1")
		send("of a relay", relay.HeaderOp)
		open := func(consumer string, scope bool) []relay.Message {
			env := testEnv()
			env.ScopeIDs = scope
			s, err := Backend().Source.New(testContext(t), env, fmt.Appendf(nil, `{"url":%q,"stream":%q,"consumer":%q}`, url, stream, consumer))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return receive(t, s.(*source), 3)
		}
		got := open("scoped", true)
		for _, m := range got[:2] {
			if given, _ := m.Header(nats.MsgIdHdr); ids[m.ID] || !strings.HasPrefix(m.ID, "nats:"+stream+"@") || given != "1" {
				t.Errorf("received id %q, header %q; want an id by stream and position, and the producer's", m.ID, given)
			}
			ids[m.ID] = true
		}
		if got[2].ID != "of a relay" {
			t.Errorf("received %q, want the relay's id", got[2].ID)
		}
		if got := open("global", false); got[0].ID != "1" || got[1].ID != "1" {
			t.Errorf("with id_scope global received %q and %q, want the producer's ids", got[0].ID, got[1].ID)
		}
	}
}
