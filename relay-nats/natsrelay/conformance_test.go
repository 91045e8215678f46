package natsrelay

import (
	"cmp"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestSink(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	t.Run("single", func(t *testing.T) { relaytest.TestSink(t, sinkHarness(t, url, nil)) })
	t.Run("allow_batched", func(t *testing.T) { relaytest.TestSink(t, sinkHarness(t, url, allowBatched)) })
}

func TestSinkServerRestart(t *testing.T) {
	s := startServer(t, "")
	for name, stream := range map[string]func(*jetstream.StreamConfig){"single": nil, "allow_batched": allowBatched} {
		t.Run(name, func(t *testing.T) {
			h := sinkHarness(t, s.url, stream)
			h.Restart = s.restart
			relaytest.TestSink(t, h)
		})
	}
}

func allowBatched(c *jetstream.StreamConfig) { c.AllowBatchPublish = true }

func sinkHarness(t *testing.T, url string, change func(*jetstream.StreamConfig)) relaytest.SinkHarness {
	nc, js := connect(t, url)
	return relaytest.SinkHarness{
		Copies:  Backend().Copies,
		Dedup:   true,
		MaxBody: int(nc.MaxPayload()) - 4096, // headers count as well
		Refuse: func(t testing.TB, m *relay.Message) {
			m.Body = make([]byte, nc.MaxPayload()+1)
		},
		New: func(t testing.TB) relaytest.SinkCase {
			stream, prefix := addStream(t, js, change)
			return relaytest.SinkCase{
				Subject: prefix + ".orders.insert",
				Open: func(t testing.TB) relay.Sink {
					return openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
				},
				Read: func(t testing.TB, n int) []relay.Message { return readRaw(t, js, stream, n) },
				Foreign: func(t testing.TB) {
					if _, err := js.Publish(testContext(t), prefix+".foreign", []byte("x"), jetstream.WithMsgID("foreign")); err != nil {
						t.Fatal(err)
					}
				},
			}
		},
	}
}

func trySink(ctx context.Context, raw []byte) (*sink, error) {
	s, err := Backend().Sink.New(ctx, testEnv(), raw)
	if err != nil {
		return nil, err
	}
	return s.(*sink), nil
}

func trySource(ctx context.Context, raw []byte) (*source, error) {
	s, err := Backend().Source.New(ctx, testEnv(), raw)
	if err != nil {
		return nil, err
	}
	return s.(*source), nil
}

func openSink(t testing.TB, config string) *sink {
	t.Helper()
	s, err := trySink(testContext(t), []byte(config))
	if err != nil {
		t.Fatalf("NewSink(%s) = %v", config, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// readRaw reads a stream from its beginning with the plain client, until it has
// n messages and comes to its end.
func readRaw(t testing.TB, js jetstream.JetStream, stream string, n int) (got []relay.Message) {
	t.Helper()
	ctx := testContext(t)
	s, err := js.Stream(ctx, stream)
	if err != nil {
		t.Fatal(err)
	}
	for s.CachedInfo().State.Msgs < uint64(n) {
		if ctx.Err() != nil {
			t.Fatalf("stream %s holds %d messages, want %d", stream, s.CachedInfo().State.Msgs, n)
		}
		time.Sleep(10 * time.Millisecond)
		if _, err := s.Info(ctx); err != nil {
			t.Logf("stream info: %v", err)
		}
	}
	state := s.CachedInfo().State
	if state.Msgs == 0 {
		return nil
	}
	consumer, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer messages.Stop()
	for {
		m, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			t.Fatalf("read stream %s: %v after %d messages", stream, err, len(got))
		}
		meta, err := m.Metadata()
		if err != nil {
			t.Fatal(err)
		}
		out := relay.Message{ID: cmp.Or(m.Headers().Get(relay.HeaderDedupKey), m.Headers().Get(nats.MsgIdHdr)), Subject: m.Subject(), Body: m.Data()}
		out.Key, out.Op = m.Headers().Get("Pgtrickle-Key"), m.Headers().Get("Pgtrickle-Op")
		out.BeforeKey = m.Headers().Get(relay.HeaderBeforeKey)
		for name, values := range m.Headers() {
			for _, v := range values {
				out.Headers = append(out.Headers, relay.Header{Name: name, Value: v})
			}
		}
		if out.ID != "foreign" {
			got = append(got, out)
		}
		if meta.NumPending == 0 {
			return got
		}
	}
}

func TestSource(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	for _, acks := range []string{"all", "explicit"} {
		t.Run(acks, func(t *testing.T) { relaytest.TestSource(t, sourceHarness(t, url, acks)) })
	}
}

func TestSourceServerRestart(t *testing.T) {
	s := startServer(t, "")
	h := sourceHarness(t, s.url, "all")
	h.Restart = s.restart
	relaytest.TestSource(t, h)
}

func sourceHarness(t *testing.T, url, acks string) relaytest.SourceHarness {
	nc, js := connect(t, url)
	return relaytest.SourceHarness{
		MaxBody: int(nc.MaxPayload()) - 4096,
		New: func(t testing.TB) relaytest.SourceCase {
			stream, prefix := addStream(t, js, nil)
			publish := func(t testing.TB, m *nats.Msg) {
				t.Helper()
				ctx := testContext(t)
				for {
					if _, err := js.PublishMsg(ctx, m); err == nil {
						return
					} else if ctx.Err() != nil {
						t.Fatalf("publish: %v", err)
					}
					time.Sleep(20 * time.Millisecond) // a restarted server takes its time
				}
			}
			return relaytest.SourceCase{
				Subject: prefix + ".orders.insert",
				Open: func(t testing.TB, _ relay.Checkpoint) relay.Source {
					return openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":"c","ack_policy":%q}`, url, stream, acks))
				},
				OpenBounded: func(t testing.TB, maxAnswer int64) relay.Source {
					env := testEnv()
					env.MaxAnswer = maxAnswer
					s, err := Backend().Source.New(testContext(t), env, fmt.Appendf(nil, `{"url":%q,"stream":%q,"consumer":"c","ack_policy":%q}`, url, stream, acks))
					if err != nil {
						t.Fatal(err)
					}
					return s
				},
				Feed: func(t testing.TB, batch []relay.Message) {
					for i := range batch {
						m := nats.NewMsg(batch[i].Subject)
						m.Data = batch[i].Body
						m.Header.Set(nats.MsgIdHdr, batch[i].ID)
						m.Header.Set("Pgtrickle-Key", batch[i].Key)
						m.Header.Set("Pgtrickle-Op", batch[i].Op)
						m.Header.Set("Content-Type", batch[i].ContentType)
						for _, h := range batch[i].Headers {
							m.Header.Set(h.Name, h.Value)
						}
						publish(t, m)
					}
				},
				FeedForeign: func(t testing.TB, body []byte) {
					publish(t, &nats.Msg{Subject: prefix + ".foreign", Data: body})
				},
			}
		},
	}
}

func openSource(t testing.TB, config string) *source {
	t.Helper()
	s, err := trySource(testContext(t), []byte(config))
	if err != nil {
		t.Fatalf("NewSource(%s) = %v", config, err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}
