package natsrelay

import (
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// A relay that is frozen past its lease has asked for messages, and the server sends them
// to it. The next owner must not take them for deleted: an acknowledgement with policy all
// would stand for them, too. It reads nothing before it has them, in order.
func TestFrozenOwnerHasMessages(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	for _, policy := range []string{"all", "explicit"} {
		for name, before := range map[string]int{"delivered before": 2, "delivered since": 0} {
			t.Run(policy+"/"+name, func(t *testing.T) {
				stream, prefix := addStream(t, js, nil)
				config := fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":"c","ack_policy":%q}`, url, stream, policy)
				s := openSource(t, config)
				feed(t, js, prefix+".a", 1, 3)
				ack(t, s, receive(t, s, 3))
				_ = s.Close()
				frozen, err := js.Consumer(t.Context(), stream, "c")
				if err != nil {
					t.Fatal(err)
				}
				feed(t, js, prefix+".a", 4, before)
				if _, err := frozen.Fetch(5, jetstream.FetchMaxWait(30*time.Second)); err != nil {
					t.Fatal(err)
				}
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the request has arrived
					info, err := frozen.Info(t.Context())
					if err != nil || time.Now().After(deadline) {
						t.Fatal(info, err)
					}
					if info.NumWaiting > 0 && info.NumAckPending == before {
						break
					}
				}
				var next uint64 = 4
				feed(t, js, prefix+".a", 4+before, 20-before)
				s = nil
				for ctx := testContext(t); next <= 23; {
					if s == nil {
						src, err := Backend().Source.New(ctx, testEnv(), []byte(config))
						if err != nil && ctx.Err() != nil {
							t.Fatal(err)
						}
						if err == nil {
							t.Cleanup(func() { _ = src.Close() })
							s = src.(*source)
						}
						continue
					}
					batch, err := s.Receive(ctx, 100)
					if err != nil && ctx.Err() != nil {
						t.Fatal(err)
					}
					for _, m := range batch {
						if seq := m.Token.(*delivery).seq; seq > next {
							t.Fatalf("received sequence %d, want %d", seq, next)
						} else if seq == next {
							next++
						}
					}
					ack(t, s, batch)
				}
			})
		}
	}
}
