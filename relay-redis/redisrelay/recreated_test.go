package redisrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
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

// Entries that were trimmed unread are counted once. Redis 7.0 counts what a group has
// read, and 7.2 the number of the entry that it has reached.
func TestTrimmedIsCountedOnce(t *testing.T) {
	for name, url := range map[string]string{"own": startServer(t).url(), "shared": relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")} {
		t.Run(name, func(t *testing.T) {
			raw, stream := rawClient(t, url), uniqueName(t)
			env, log := logged(t)
			var losses int
			env.CountLoss = func() { losses++ }
			var cursor relaytest.Cursor
			open := func() relay.Source {
				return mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,"stream":%q,"block":"10ms"}`, url, stream))
			}
			src := open()
			for i, lost := range []int{8, 18, 28} {
				add(t, raw, stream, 1, lost+2)
				raw.XTrimMaxLen(t.Context(), stream, 2)
				if err := src.Ack(t.Context(), receive(t, src, 2)); err != nil {
					t.Fatal(err)
				}
				nothing(t, src)
				_ = src.Close()
				src = open()
				nothing(t, src)
				if n := strings.Count(log(), "unread entries are lost"); !strings.Contains(log(), fmt.Sprintf("entries=%d ", lost)) || n != i+1 {
					t.Errorf("want %d lines, the last with entries=%d:\n%s", i+1, lost, log())
				}
			}
			var known map[string]relay.FarEnd
			if err := json.Unmarshal([]byte(cursor.Env(env).FarEnds), &known); err != nil || known[src.(*source).farEnd()].Missed != 8+18+28 {
				t.Errorf("the cursor has %s, %v; want 54 missed", cursor.Env(env).FarEnds, err)
			}
			if losses != 3 {
				t.Errorf("%d reports were counted, want 3", losses)
			}
		})
	}
}

// A loss is logged and counted once, although the cursor cannot store it at first: of unread
// entries, of pending ones, and without scripts.
func TestLossIsStored(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	if err := raw.Do(t.Context(), "ACL", "SETUSER", "plain", "on", ">secret", "~*", "+@all", "-@scripting").Err(); err != nil {
		t.Fatal(err)
	}
	plain := strings.Replace(srv.url(), "redis://", "redis://plain:secret@", 1)
	for name, tc := range map[string]struct {
		url, alarm string
		received   int // and not acknowledged, before the trim
	}{
		"unread":          {srv.url(), "unread entries are lost", 0},
		"pending":         {srv.url(), "pending entries are lost", 8},
		"without scripts": {plain, "unread entries are lost", 0},
	} {
		t.Run(name, func(t *testing.T) {
			stream := uniqueName(t)
			var log relaytest.Log
			var cursor relaytest.Cursor
			open := func() *source {
				env := testEnv(t)
				env.Logger = log.Logger()
				return mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,"stream":%q,"block":"10ms","claim_idle":"0s"}`, tc.url, stream)).(*source)
			}
			src := open()
			add(t, raw, stream, 1, 3)
			if err := src.Ack(t.Context(), receive(t, src, 3)); err != nil {
				t.Fatal(err)
			}
			add(t, raw, stream, 4, 10)
			if tc.received > 0 {
				receive(t, src, tc.received)
			}
			_ = src.Close()
			raw.XTrimMaxLen(t.Context(), stream, 2)
			src = open()
			got := cursor.LossOnce(t, src, 2, &log, tc.alarm, src.farEnd(), 8)
			if got[0].ID != "12" {
				t.Errorf("received %s first, want 12", got[0].ID)
			}
		})
	}
}

// A user that may not run scripts reads, too, and the log warns of what it misses.
func TestSourceWithoutScripts(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	for user, denied := range map[string]string{"a": "-@scripting", "b": "-xinfo", "c": "-xread"} {
		t.Run(denied, func(t *testing.T) {
			if err := raw.Do(t.Context(), "ACL", "SETUSER", user, "on", ">secret", "~*", "+@all", denied).Err(); err != nil {
				t.Fatal(err)
			}
			env, log := logged(t)
			var cursor relaytest.Cursor
			src := mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,"username":%q,"password":"secret","stream":%q,"block":"10ms"}`, srv.url(), user, user))
			nothing(t, src)
			add(t, raw, user, 1, 3)
			if got := receive(t, src, 3); got[2].ID != "3" || !strings.Contains(log(), "trimmed entries may go unnoticed") {
				t.Errorf("received %d messages; the log: %s", len(got), log())
			}
			time.Sleep(trimCheck)
			add(t, raw, user, 4, 10)
			raw.XTrimMaxLen(t.Context(), user, 2)
			receive(t, src, 2)
			if denied != "-xinfo" && !strings.Contains(log(), "entries=8 ") {
				t.Errorf("the log does not name 8 lost entries: %s", log())
			}
		})
	}
}

// A read moves the group past entries that were trimmed, and then nothing at the server
// shows that they were there. So the loss is named before, whatever becomes of the
// reader: the process killed after the read, or its connection lost.
func TestTrimmedBeforeTheReaderEnds(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, p *proxy, src relay.Source){
		"killed after the read": func(t *testing.T, _ *proxy, src relay.Source) {
			if err := src.Ack(t.Context(), receive(t, src, 2)); err != nil {
				t.Fatal(err)
			}
			_ = src.Close()
		},
		"answer lost": func(t *testing.T, p *proxy, src relay.Source) {
			p.loseAfter(0)
			if _, err := src.Receive(t.Context(), 2); err == nil {
				t.Fatal("Receive without an answer returned no error")
			}
			p.pass()
			receive(t, src, 2)
		},
		"answer lost, then killed": func(t *testing.T, p *proxy, src relay.Source) {
			p.loseAfter(0)
			if _, err := src.Receive(t.Context(), 2); err == nil {
				t.Fatal("Receive without an answer returned no error")
			}
			_ = src.Close()
			p.pass()
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := startServer(t)
			raw, p := srv.client(t), newProxy(t, srv.addr)
			env, log := logged(t)
			var cursor relaytest.Cursor
			config := fmt.Sprintf(`{"url":"redis://%s","stream":"s","block":"10ms"}`, p.Addr())
			src := mustSource(t, cursor.Env(env), config)
			add(t, raw, "s", 1, 3)
			if err := src.Ack(t.Context(), receive(t, src, 3)); err != nil {
				t.Fatal(err)
			}
			add(t, raw, "s", 4, 10)
			raw.XTrimMaxLen(t.Context(), "s", 2)
			end(t, p, src)
			src = mustSource(t, cursor.Env(env), config)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
			defer cancel()
			for ctx.Err() == nil {
				_, _ = src.Receive(ctx, 10)
			}
			if !strings.Contains(log(), "unread entries are lost") || !strings.Contains(log(), "entries=8 ") {
				t.Errorf("the log does not name 8 lost entries:\n%s", log())
			}
		})
	}
}

// Redis forgets pending entries whose data is gone with the claim that meets them. The
// answer is the only trace.
func TestTrimmedBeforeAClaimIsAnswered(t *testing.T) {
	srv := startServer(t)
	raw, p := srv.client(t), newProxy(t, srv.addr)
	env, log := logged(t)
	const config = `"stream":"s","group":"g","block":"10ms","claim_idle":"100ms"`
	dead := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"consumer":"dead",%s}`, srv.url(), config))
	add(t, raw, "s", 1, 5)
	receive(t, dead, 5)
	_ = dead.Close()
	var cursor relaytest.Cursor
	src := mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":"redis://%s",%s}`, p.Addr(), config))
	add(t, raw, "s", 6, 1)
	if err := src.Ack(t.Context(), receive(t, src, 1)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(150 * time.Millisecond)
	raw.XTrimMaxLen(t.Context(), "s", 0)
	p.loseAfter(0)
	if _, err := src.Receive(t.Context(), 10); err == nil {
		t.Fatal("Receive without an answer returned no error")
	}
	_ = src.Close()
	p.pass()
	src = mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,%s}`, srv.url(), config))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, _ = src.Receive(ctx, 10)
	if !strings.Contains(log(), "pending entries are lost") || !strings.Contains(log(), "entries=5 ") {
		t.Errorf("the log does not name 5 lost entries:\n%s", log())
	}
}

// A stream that is deleted after the source has seen its group, and before it would
// create one.
func TestDeletedWhileTheSourceConnects(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	env, _ := logged(t)
	var cursor relaytest.Cursor
	src := mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,"stream":"s","block":"10ms"}`, srv.url()))
	add(t, raw, "s", 1, 3)
	if err := src.Ack(t.Context(), receive(t, src, 3)); err != nil {
		t.Fatal(err)
	}
	inner := src.(*source)
	inner.ready = false
	once := sync.OnceFunc(func() { raw.Del(t.Context(), "s"); add(t, raw, "s", 4, 1) })
	inner.reader.AddHook(afterRead(once))
	eventually(t, "the source reports the missing group", func() bool {
		got, err := src.Receive(t.Context(), 10)
		if err == nil {
			t.Fatalf("received %s from a stream that was made again", got[0].ID)
		}
		return relay.IsFatal(err) && strings.Contains(err.Error(), "group is gone")
	})
}

// afterRead calls itself after each XREADGROUP.
type afterRead func()

func (f afterRead) DialHook(next redis.DialHook) redis.DialHook { return next }
func (f afterRead) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (f afterRead) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "xreadgroup" {
			f()
		}
		return err
	}
}

// A new group begins at the oldest entry that there is. What was trimmed before is not
// lost to it.
func TestTrimmedBeforeTheFirstStart(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	env, log := logged(t)
	add(t, raw, "s", 1, 10)
	raw.XTrimMaxLen(t.Context(), "s", 2)
	var cursor relaytest.Cursor
	src := mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,"stream":"s","block":"10ms"}`, srv.url()))
	if receive(t, src, 2); strings.Contains(log(), "are lost") {
		t.Errorf("entries older than the pipeline are reported:\n%s", log())
	}
	_ = src.Close()
	raw.XGroupDestroy(t.Context(), "s", "pgtrickle:test:"+testEnv(t).Pipeline)
	src = mustSource(t, cursor.Env(env), fmt.Sprintf(`{"url":%q,"stream":"s","block":"10ms","on_recreated":"restart"}`, srv.url()))
	add(t, raw, "s", 11, 2)
	raw.XTrimMaxLen(t.Context(), "s", 1) // three that the new group has not read
	if got := receive(t, src, 1); got[0].ID != "12" || !strings.Contains(log(), "entries=3 ") {
		t.Errorf("received %s, and the log does not name 3 lost entries:\n%s", got[0].ID, log())
	}
}
