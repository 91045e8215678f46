package natsrelay

import (
	"context"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRecreated(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	relaytest.TestRecreated(t, func(t testing.TB) relaytest.RecreatedCase {
		stream, prefix := addStream(t, js, nil)
		return relaytest.RecreatedCase{
			Env: testEnv(),
			Open: func(ctx context.Context, env relay.Env, onRecreated string) (relay.Source, error) {
				return Backend().Source.New(ctx, env, fmt.Appendf(nil, `{"url":%q,"stream":%q,"deliver_policy":"new","on_recreated":%q}`,
					url, stream, onRecreated))
			},
			Feed: func(t testing.TB, from, count int) { feed(t, js, prefix+".a", from, count) },
			Recreate: func(t testing.TB) {
				if err := js.DeleteStream(testContext(t), stream); err != nil {
					t.Fatal(err)
				}
				if _, err := js.CreateStream(testContext(t), jetstream.StreamConfig{Name: stream, Subjects: []string{prefix + ".>"}}); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// A stream that ends before the position has lost its last messages: what it stores
// next has the sequences of these.
func TestStreamLostItsEnd(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	var cursor relaytest.Cursor
	open := func(policy string) (*source, error) {
		s, err := Backend().Source.New(testContext(t), cursor.Env(testEnv()), fmt.Appendf(nil, `{"url":%q,"stream":%q,"on_recreated":%q}`, url, stream, policy))
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { _ = s.Close() })
		return s.(*source), nil
	}
	s, err := open(relay.OnRecreatedRestart)
	if err != nil {
		t.Fatal(err)
	}
	feed(t, js, prefix+".a", 1, 10)
	ack(t, s, receive(t, s, 10))
	s.conn.dialer.Cut()
	<-s.conn.closed
	s.floor = 15 // as if five more had been acknowledged before the server lost them
	got := receive(t, s, 10)
	if want := "nats:" + stream + "@"; len(got[0].ID) < len(want) || got[0].ID[:len(want)] != want {
		t.Errorf("received %s, want an id with another scope", got[0].ID)
	}
	ack(t, s, got)
}
