package redisrelay

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func rawClient(t testing.TB, url string) *redis.Client {
	t.Helper()
	opts, err := redis.ParseURL(url)
	if err != nil {
		t.Fatalf("RELAY_TEST_REDIS_URL: %v", err)
	}
	c := redis.NewClient(opts)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// sinkCase reads with go-redis alone.
func sinkCase(t testing.TB, url string) relaytest.SinkCase {
	raw, prefix := rawClient(t, url), uniqueName(t)
	key := prefix + ":orders"
	t.Cleanup(func() { raw.Del(context.Background(), key) })
	return relaytest.SinkCase{
		Open: func(t testing.TB) relay.Sink {
			return mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q}`, url, prefix+":{stream_table}"))
		},
		Read: func(t testing.TB, n int) []relay.Message { return readStream(t, raw, key, n) },
		Foreign: func(t testing.TB) {
			if err := raw.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []string{"a", "b"}}).Err(); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func readStream(t testing.TB, raw *redis.Client, key string, n int) (got []relay.Message) {
	t.Helper()
	deadline := time.Now().Add(relaytest.Patience())
	for {
		entries, err := raw.XRange(context.Background(), key, "-", "+").Result()
		if err != nil {
			t.Fatal(err)
		}
		got = got[:0]
		for _, x := range entries {
			if _, ours := x.Values["dedup_key"]; !ours {
				continue
			}
			m := relay.Message{ID: x.Values["dedup_key"].(string), Op: x.Values["op"].(string), Body: []byte(x.Values["payload"].(string))}
			for field, value := range x.Values {
				switch field {
				case "pgtrickle-key":
					m.Key = value.(string)
				case "pgtrickle-before-key":
					m.BeforeKey = value.(string)
				case "dedup_key", "op", "payload", "subject":
				default:
					m.Headers = append(m.Headers, relay.Header{Name: field, Value: value.(string)})
				}
			}
			got = append(got, m)
		}
		if len(got) >= n {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("stream %s has %d of %d messages", key, len(got), n)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestSink(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	relaytest.TestSink(t, relaytest.SinkHarness{
		Copies: Backend().Copies,
		New:    func(t testing.TB) relaytest.SinkCase { return sinkCase(t, url) },
	})
}

// TestSinkOwnServer runs the suite where a server may be restarted and reconfigured.
func TestSinkOwnServer(t *testing.T) {
	srv := startServer(t, "--proto-max-bulk-len", "2mb")
	relaytest.TestSink(t, relaytest.SinkHarness{
		Copies:  Backend().Copies,
		New:     func(t testing.TB) relaytest.SinkCase { return sinkCase(t, srv.url()) },
		Refuse:  func(_ testing.TB, m *relay.Message) { m.Body = []byte(`"` + strings.Repeat("x", 2<<20) + `"`) },
		Restart: func(t testing.TB) { srv.restart(t) },
	})
}

func sourceCase(t testing.TB, url string) relaytest.SourceCase {
	raw, key := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), key) })
	env := testEnv(t)
	return relaytest.SourceCase{
		Open: func(t testing.TB, _ relay.Checkpoint) relay.Source {
			return mustSource(t, env, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, key))
		},
		OpenBounded: func(t testing.TB, maxAnswer int64) relay.Source {
			bounded := env
			bounded.MaxAnswer = maxAnswer
			return mustSource(t, bounded, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, key))
		},
		Feed: func(t testing.TB, batch []relay.Message) {
			pipe := raw.Pipeline()
			for _, m := range batch {
				values := []any{"dedup_key", m.ID, "subject", m.Subject, "op", m.Op, "payload", m.Body, "pgtrickle-key", m.Key}
				for _, h := range m.Headers {
					values = append(values, h.Name, h.Value)
				}
				pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: values})
			}
			if _, err := pipe.Exec(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		FeedForeign: func(t testing.TB, body []byte) {
			if err := raw.XAdd(t.Context(), &redis.XAddArgs{Stream: key, Values: []any{"payload", body}}).Err(); err != nil {
				t.Fatal(err)
			}
		},
	}
}

func TestSource(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	relaytest.TestSource(t, relaytest.SourceHarness{
		New: func(t testing.TB) relaytest.SourceCase { return sourceCase(t, url) },
	})
}

func TestSourceOwnServer(t *testing.T) {
	srv := startServer(t)
	relaytest.TestSource(t, relaytest.SourceHarness{
		New:     func(t testing.TB) relaytest.SourceCase { return sourceCase(t, srv.url()) },
		Restart: func(t testing.TB) { srv.restart(t) },
	})
}
