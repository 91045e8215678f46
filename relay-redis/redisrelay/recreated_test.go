package redisrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRecreated(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw := rawClient(t, url)
	relaytest.TestRecreated(t, func(t testing.TB) relaytest.RecreatedCase {
		stream := uniqueName(t)
		return relaytest.RecreatedCase{
			Env: testEnv(t),
			Open: func(ctx context.Context, env relay.Env, onRecreated string) (relay.Source, error) {
				return Backend().Source.New(ctx, env, fmt.Appendf(nil, `{"url":%q,"stream":%q,"block":"100ms","on_recreated":%q}`, url, stream, onRecreated))
			},
			// Ids of the producer's own, which begin again with the stream.
			Feed: func(t testing.TB, from, count int) {
				for n := range count {
					args := &redis.XAddArgs{Stream: stream, ID: fmt.Sprintf("1-%d", n+1), Values: []string{"payload", fmt.Sprintf(`{"n":%d}`, from+n)}}
					if err := raw.XAdd(t.Context(), args).Err(); err != nil {
						t.Fatal(err)
					}
				}
			},
			Recreate: func(t testing.TB) {
				if err := raw.Del(t.Context(), stream).Err(); err != nil {
					t.Fatal(err)
				}
			},
		}
	})
}

// A group's position that the stream has not reached: what the stream stores next would
// never be delivered.
func TestPositionBeyondTheEnd(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw := rawClient(t, url)
	stream := uniqueName(t)
	for n := 1; n <= 3; n++ {
		if err := raw.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, ID: fmt.Sprintf("1-%d", n), Values: []string{"payload", "{}"}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := raw.XGroupCreate(t.Context(), stream, "g", "9-0").Err(); err != nil {
		t.Fatal(err)
	}
	var cursor relaytest.Cursor
	open := func(policy string) relay.Source {
		config, _ := json.Marshal(map[string]string{"url": url, "stream": stream, "group": "g", "on_recreated": policy})
		s, err := Backend().Source.New(t.Context(), cursor.Env(testEnv(t)), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	for range 2 {
		if _, err := open(relay.OnRecreatedStop).Receive(t.Context(), 10); !relay.IsFatal(err) || !strings.Contains(err.Error(), "ends at 1-3, before the position 9-0") {
			t.Fatalf("Receive = %v, want a fatal error", err)
		}
	}
	if got := receive(t, open(relay.OnRecreatedRestart), 3); got[0].ID != "redis:"+stream+"@.1:1-1" {
		t.Errorf("received %s, want an id of another life", got[0].ID)
	}
}

// Entries that were trimmed, and passed by before the source looked, are counted once.
func TestTrimmedAndPassedBy(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	env, log := logged(t)
	src := mustSource(t, env, fmt.Sprintf(`{"url":%q,"stream":"s","block":"10ms"}`, srv.url()))
	look := func() {
		ctx, cancel := context.WithTimeout(t.Context(), trimCheck+200*time.Millisecond)
		defer cancel()
		if got, err := src.Receive(ctx, 1); len(got) > 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Receive = %v, %v; want nothing", got, err)
		}
	}
	look()
	for _, tc := range []struct {
		from, count int
		want        string
	}{{1, 10, "entries=8 "}, {11, 20, "entries=18 "}} {
		add(t, raw, "s", tc.from, tc.count)
		raw.XTrimMaxLen(t.Context(), "s", 2)
		if err := src.Ack(t.Context(), receive(t, src, 2)); err != nil {
			t.Fatal(err)
		}
		look()
		look()
		if n := strings.Count(log(), "unread entries are lost"); !strings.Contains(log(), tc.want) || n != 1+tc.from/10 {
			t.Errorf("want one line with %s:\n%s", tc.want, log())
		}
	}
}
