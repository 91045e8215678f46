package redisrelay

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func receive(t testing.TB, src relay.Source, n int) (got []relay.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), relaytest.Patience())
	defer cancel()
	for len(got) < n {
		batch, err := src.Receive(ctx, n-len(got))
		if err != nil {
			t.Fatalf("Receive = %v after %d of %d messages", err, len(got), n)
		}
		got = append(got, batch...)
	}
	return got
}

func nothing(t testing.TB, src relay.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if batch, err := src.Receive(ctx, 10); err == nil {
		t.Fatalf("received %s, want nothing", batch[0].ID)
	}
}

// add writes entries {"payload":"{}","dedup_key":N}.
func add(t testing.TB, raw *redis.Client, stream string, from, count int) {
	t.Helper()
	pipe := raw.Pipeline()
	for i := range count {
		pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"payload", "{}", "dedup_key", fmt.Sprint(from + i)}})
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// logged is an Env whose log can be read.
func logged(t testing.TB) (relay.Env, func() string) {
	log := new(relaytest.Log)
	env := testEnv(t)
	env.Logger = log.Logger()
	return env, log.String
}

func TestSourceTranslates(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw, stream := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), stream) })
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	raw.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, ID: "1700000000000-5", Values: []string{"payload", `{"a":1}`, "op", "delete", "content-type", "text/x", "header:payload", "p", "pgtrickle-key", "k", "n", "v"}})
	raw.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"b", "2", "a", "1"}})
	raw.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, Values: []string{"b", "\xff"}})
	got := receive(t, src, 3)
	m := got[0]
	if m.ID != "redis:"+stream+":1700000000000-5" || m.Op != "delete" || m.Key != "k" || m.ContentType != "text/x" || m.Subject != stream ||
		m.Origin != "redis:"+stream || m.Time.UnixMilli() != 1700000000000 || string(m.Body) != `{"a":1}` {
		t.Errorf("received %+v", m)
	}
	for name, want := range map[string]string{"payload": "p", "n": "v"} {
		if v, _ := m.Header(name); v != want {
			t.Errorf("header %s received as %q, want %q", name, v, want)
		}
	}
	if string(got[1].Body) != `{"a":"1","b":"2"}` || got[1].Err != nil || got[1].Op != relay.OpEvent {
		t.Errorf("an entry without payload received as %s (%v)", got[1].Body, got[1].Err)
	}
	if got[2].Err == nil {
		t.Error("an entry without payload that is not text was taken")
	}
}

func TestSourceStartID(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw, stream := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), stream) })
	add(t, raw, stream, 1, 3)
	second := raw.XRange(t.Context(), stream, "-", "+").Val()[1].ID
	for start, want := range map[string]string{"0": "1", "$": "4", second: "3"} {
		src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q,"group":%q,"start_id":%q,"block":"10ms"}`, url, stream, "g"+start, start))
		if start == "$" {
			nothing(t, src)
			add(t, raw, stream, 4, 1)
		}
		if got := receive(t, src, 1); got[0].ID != want {
			t.Errorf("start_id %s: received %s first, want %s", start, got[0].ID, want)
		}
	}
	for _, group := range raw.XInfoGroups(t.Context(), stream).Val() {
		if !strings.HasPrefix(group.Name, "g") {
			t.Errorf("group %q was created", group.Name)
		}
	}
}

// What a dead consumer of the group has left is taken over after claim_idle, and
// what lives is left alone.
func TestSourceClaims(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw, stream := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), stream) })
	add(t, raw, stream, 1, 5)
	config := fmt.Sprintf(`"url":%q,"stream":%q,"group":"g"`, url, stream)
	dead := mustSource(t, testEnv(t), fmt.Sprintf(`{%s,"consumer":"dead"}`, config))
	first := receive(t, dead, 5)
	if err := dead.Ack(t.Context(), first[:2]); err != nil {
		t.Fatal(err)
	}
	never := mustSource(t, testEnv(t), fmt.Sprintf(`{%s,"consumer":"never","claim_idle":"0s"}`, config))
	nothing(t, never)
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{%s,"consumer":"heir","claim_idle":"300ms"}`, config))
	got := receive(t, src, 3)
	if got[0].ID != "3" || got[2].ID != "5" {
		t.Errorf("took over %s to %s, want 3 to 5", got[0].ID, got[2].ID)
	}
	// Its own, unacknowledged for longer than that, do not come twice.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if again, err := src.Receive(ctx, 10); err == nil {
		t.Errorf("received %s a second time", again[0].ID)
	}
}

// A read whose answer is lost leaves pending entries that no consumer has seen. They
// come with the next read, before newer ones. Those in flight do not.
func TestSourceLostReply(t *testing.T) {
	srv := startServer(t)
	raw, p := srv.client(t), newProxy(t, srv.addr)
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":"redis://%s","stream":"s","block":"50ms"}`, p.Addr()))
	add(t, raw, "s", 1, 3)
	first := receive(t, src, 3)
	nothing(t, src)
	add(t, raw, "s", 4, 3)
	p.loseAfter(0)
	if _, err := src.Receive(t.Context(), 10); err == nil || relay.IsFatal(err) {
		t.Fatalf("Receive without an answer = %v, want a transient error", err)
	}
	p.pass()
	add(t, raw, "s", 7, 1)
	got := receive(t, src, 4)
	if got[0].ID != "4" || got[3].ID != "7" {
		t.Errorf("received %s to %s after the lost answer, want 4 to 7", got[0].ID, got[3].ID)
	}
	if err := src.Ack(t.Context(), append(first, got...)); err != nil {
		t.Fatal(err)
	}
	if n := raw.XPending(t.Context(), "s", "pgtrickle:test:"+t.Name()).Val().Count; n != 0 {
		t.Errorf("%d entries are pending after their Ack", n)
	}
}

// Without its group the source does not know its position, and does not guess.
func TestSourceGroupIsDestroyed(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":"s","group":"g","block":"50ms"}`, srv.url()))
	add(t, raw, "s", 1, 3)
	if err := src.Ack(t.Context(), receive(t, src, 3)); err != nil {
		t.Fatal(err)
	}
	raw.XGroupDestroy(t.Context(), "s", "g")
	add(t, raw, "s", 4, 1)
	eventually(t, "the source reports the missing group", func() bool {
		got, err := src.Receive(t.Context(), 10)
		if err == nil {
			t.Fatalf("received %s without a group", got[0].ID)
		}
		return relay.IsFatal(err) && strings.Contains(err.Error(), "group is gone")
	})
	raw.XGroupCreate(t.Context(), "s", "g", "0") // the operator's choice
	if got := receive(t, src, 4); got[3].ID != "4" {
		t.Errorf("received %s, want 4", got[3].ID)
	}
}

func TestSourceSaysWhatWasTrimmed(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	env, log := logged(t)
	config := fmt.Sprintf(`{"url":%q,"stream":"s","claim_idle":"0s"}`, srv.url())
	src := mustSource(t, env, config)
	add(t, raw, "s", 1, 10)
	receive(t, src, 4) // never acknowledged
	if err := src.Close(); err != nil {
		t.Fatal(err)
	}
	raw.XTrimMaxLen(t.Context(), "s", 2) // four pending ones and four that are unread
	src = mustSource(t, env, config)
	if got := receive(t, src, 2); got[0].ID != "9" {
		t.Errorf("received %s, want 9", got[0].ID)
	}
	for _, want := range []string{"unread entries are lost", "entries=4", "pending entries are lost"} {
		if !strings.Contains(log(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log())
		}
	}
	if rows, _, err := src.(relay.Lagger).Lag(t.Context()); rows != 0 || err != nil {
		t.Errorf("Lag() = %d, %v; want 0", rows, err)
	}
	add(t, raw, "s", 11, 3)
	if rows, seconds, err := src.(relay.Lagger).Lag(t.Context()); rows < 3 || seconds < 0 || err != nil {
		t.Errorf("Lag() = %d, %f, %v; want 3", rows, seconds, err)
	}
}

func TestSourceErrorClasses(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw, key := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), key) })
	raw.Set(t.Context(), key, "a string", 0)
	if _, err := Backend().Source.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":%q,"stream":%q}`, url, key)); !relay.IsFatal(err) {
		t.Errorf("NewSource of a key that is no stream = %v, want a fatal error", err)
	}
}
