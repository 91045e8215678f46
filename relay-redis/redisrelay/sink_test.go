package redisrelay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

func messages(from, count int) []relay.Message {
	batch := make([]relay.Message, count)
	for i := range batch {
		batch[i] = relaytest.Message(from+i, fmt.Sprint("k", (from+i)%5))
	}
	return batch
}

func ids(t testing.TB, raw redis.Cmdable, stream string) (got []string) {
	t.Helper()
	entries, err := raw.XRange(context.Background(), stream, "-", "+").Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range entries {
		id, _ := x.Values["dedup_key"].(string)
		got = append(got, id)
	}
	return got
}

func TestSinkWritesEverything(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw, name := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), name+":eu") })
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q}`, url, name+":{row.region}"))
	m := relaytest.Message(7, "k")
	m.Subject, m.Row, m.FullRefresh = "pgtrickle.orders.insert", []byte(`{"region":"eu"}`), true
	m.Headers = []relay.Header{{Name: "traceparent", Value: "00-1-2-01"}, {Name: "Payload", Value: "mine"}}
	if err := s.Publish(t.Context(), []relay.Message{m}); err != nil {
		t.Fatal(err)
	}
	entries := raw.XRange(t.Context(), name+":eu", "-", "+").Val()
	want := map[string]any{
		"dedup_key": m.ID, "pgtrickle-pipeline-id": relaytest.Identity, "subject": m.Subject, "op": "insert", "payload": string(m.Body), "pgtrickle-outbox-id": "7", "pgtrickle-full-refresh": "true",
		"pgtrickle-key": "k", "content-type": "application/json", "traceparent": "00-1-2-01", "header:payload": "mine",
	}
	if len(entries) != 1 || fmt.Sprint(entries[0].Values) != fmt.Sprint(want) {
		t.Errorf("stream holds %v, want %v", entries, want)
	}
	m.Row = []byte(`{}`)
	if err := s.Publish(t.Context(), []relay.Message{m}); err == nil || !strings.Contains(err.Error(), "region") {
		t.Errorf("Publish of a row without the template's field = %v", err)
	}
}

func TestSinkTrims(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw := rawClient(t, url)
	old := fmt.Sprintf("%d-0", time.Now().Add(-2*time.Hour).UnixMilli())
	for name, tc := range map[string]struct {
		config string
		kept   func(entries int64) bool
	}{
		"nothing":   {`"resume":true`, func(n int64) bool { return n == 5000 }},
		"maxlen":    {`"maxlen":500`, func(n int64) bool { return n >= 500 && n < 1000 }},
		"minid age": {`"minid":"1h"`, func(n int64) bool { return n >= 3000 && n < 3500 }},
		"minid":     {fmt.Sprintf(`"minid":"%d"`, time.Now().Add(-time.Hour).UnixMilli()), func(n int64) bool { return n >= 3000 && n < 3500 }},
	} {
		t.Run(name, func(t *testing.T) {
			stream := uniqueName(t)
			t.Cleanup(func() { raw.Del(context.Background(), stream) })
			pipe := raw.Pipeline()
			for i := range 2000 {
				pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: stream, ID: strings.TrimSuffix(old, "0") + fmt.Sprint(i+1), Values: []string{"a", "b"}})
			}
			if _, err := pipe.Exec(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q,%s}`, url, stream, tc.config))
			if err := s.Publish(t.Context(), messages(1, 3000)); err != nil {
				t.Fatal(err)
			}
			if n := raw.XLen(t.Context(), stream).Val(); !tc.kept(n) {
				t.Errorf("stream has %d entries", n)
			}
		})
	}
}

// What a batch meets in the server is met by all of it: nothing is added.
func TestSinkErrorClasses(t *testing.T) {
	for name, tc := range map[string]struct {
		args  []string
		spoil func(t *testing.T, c *redis.Client)
		cure  func(c *redis.Client)
		code  string
		fatal bool
	}{
		"OOM": {
			spoil: func(_ *testing.T, c *redis.Client) { c.ConfigSet(context.Background(), "maxmemory", "1") },
			cure:  func(c *redis.Client) { c.ConfigSet(context.Background(), "maxmemory", "0") },
			code:  "OOM",
		},
		"READONLY": {
			spoil: func(_ *testing.T, c *redis.Client) { c.ReplicaOf(context.Background(), "127.0.0.1", "1") },
			cure:  func(c *redis.Client) { c.ReplicaOf(context.Background(), "no", "one") },
			code:  "READONLY",
		},
		"NOREPLICAS": {
			spoil: func(_ *testing.T, c *redis.Client) { c.ConfigSet(context.Background(), "min-replicas-to-write", "1") },
			cure:  func(c *redis.Client) { c.ConfigSet(context.Background(), "min-replicas-to-write", "0") },
			code:  "NOREPLICAS",
		},
		"NOPERM": {
			spoil: func(t *testing.T, c *redis.Client) {
				if err := c.Do(context.Background(), "acl", "setuser", "default", "-xadd").Err(); err != nil {
					t.Fatal(err)
				}
			},
			cure: func(c *redis.Client) { c.Do(context.Background(), "acl", "setuser", "default", "+xadd") },
			code: "NOPERM", fatal: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := startServer(t, tc.args...)
			raw := srv.client(t)
			s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q}`, srv.url()))
			if err := s.Publish(t.Context(), messages(1, 10)); err != nil {
				t.Fatal(err)
			}
			tc.spoil(t, raw)
			err := s.Publish(t.Context(), messages(11, 10))
			for i, err := range failedAll(t, err, 10) {
				if !strings.Contains(err.Error(), tc.code) {
					t.Errorf("message %d = %v, want %s", i, err, tc.code)
				}
				if relay.IsFatal(err) != tc.fatal || relay.IsPermanent(err) {
					t.Errorf("message %d = %v (fatal %t), want fatal %t", i, err, relay.IsFatal(err), tc.fatal)
				}
			}
			tc.cure(raw)
			if err := s.Publish(t.Context(), messages(11, 10)); err != nil {
				t.Fatalf("Publish once it is cured = %v", err)
			}
			if got := ids(t, raw, "pgtrickle:orders"); len(got) != 20 {
				t.Errorf("stream has %d entries, want 20", len(got))
			}
		})
	}
}

func TestSinkWrongType(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw, name := rawClient(t, url), uniqueName(t)
	t.Cleanup(func() { raw.Del(context.Background(), name+":insert", name+":update") })
	raw.Set(t.Context(), name+":update", "a string", 0)
	for _, resume := range []bool{true, false} {
		s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q,"resume":%t}`, url, name+":{op}", resume))
		batch := messages(1, 10)
		batch[4].Op = relay.OpUpdate
		err := s.Publish(t.Context(), batch)
		if err == nil || !strings.Contains(err.Error(), "WRONGTYPE") || relay.IsPermanent(err) {
			t.Fatalf("Publish to a key that is no stream = %v", err)
		}
		var partial *relay.BatchError
		switch {
		case resume && (!relay.IsFatal(err) || raw.Exists(t.Context(), name+":insert").Val() != 0):
			t.Errorf("Publish = %v and has added entries; want a fatal error before anything is added", err)
		case !resume && (!errors.As(err, &partial) || !relay.IsFatal(partial.Failed[4]) || partial.Failed[9] == nil || partial.Failed[3] != nil):
			t.Errorf("Publish = %v, want a fatal error for the fifth message and the key held back", err)
		}
	}
}

// A stream's name that comes from a row stops the messages with that name, no others.
func TestSinkRefusesStreamOfRow(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw := rawClient(t, url)
	for cause, spoil := range map[string]func(name, user string){
		"WRONGTYPE": func(name, _ string) { raw.Set(t.Context(), name+":bad", "a string", 0) },
		"NOPERM": func(name, user string) {
			raw.Do(t.Context(), "ACL", "SETUSER", user, "resetkeys", "~"+name+":good")
		},
	} {
		for _, resume := range []bool{true, false} {
			name := uniqueName(t)
			user := strings.ReplaceAll(name, ":", "-")
			t.Cleanup(func() {
				raw.Del(context.Background(), name+":good", name+":bad")
				raw.Do(context.Background(), "ACL", "DELUSER", user)
			})
			if err := raw.Do(t.Context(), "ACL", "SETUSER", user, "on", ">secret", "+@all", "~*").Err(); err != nil {
				t.Fatal(err)
			}
			spoil(name, user)
			s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"username":%q,"password":"secret","stream":%q,"resume":%t}`,
				url, user, name+":{row.tenant}", resume))
			if _, err := s.(relay.Resumer).Position(t.Context()); err != nil {
				t.Fatal(err)
			}
			for from := range 2 {
				batch := messages(10*from+1, 6)
				for i := range batch {
					batch[i].Row, batch[i].Key = []byte(`{"tenant":"good"}`), strconv.Itoa(i)
				}
				batch[2].Row = []byte(`{"tenant":"bad"}`)
				if dead := relaytest.Settle(t, s, batch); !slices.Equal(dead, []string{batch[2].ID}) {
					t.Errorf("%s, resume %t: dead letters %v, want the third message", cause, resume, dead)
				}
			}
			if got := ids(t, raw, name+":good"); len(got) != 10 {
				t.Errorf("%s, resume %t: stream has %d entries, want 10", cause, resume, len(got))
			}
			if _, err := s.(relay.Resumer).Position(t.Context()); err != nil {
				t.Errorf("%s, resume %t: Position = %v", cause, resume, err)
			}
		}
	}
}

func TestSinkStartErrors(t *testing.T) {
	srv := newServer(t, "--requirepass", "secret")
	srv.opaque = true
	srv.start(t)
	for name, tc := range map[string]struct {
		config string
		fatal  bool
		text   string
	}{
		"no password":    {fmt.Sprintf(`{"url":%q}`, srv.url()), true, "NOAUTH"},
		"wrong password": {fmt.Sprintf(`{"url":%q,"password":"wrong"}`, srv.url()), true, "WRONGPASS"},
		"right password": {fmt.Sprintf(`{"url":%q,"username":"default","password":"secret"}`, srv.url()), false, ""},
		"nobody there":   {`{"url":"redis://127.0.0.1:1"}`, false, "connection refused"},
		"no such file":   {fmt.Sprintf(`{"url":%q,"tls_ca":"/no/such/file"}`, srv.url()), true, "tls_ca"},
		"no such db":     {fmt.Sprintf(`{"url":"redis://:secret@%s/99"}`, srv.addr), true, "DB index"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Backend().Sink.New(t.Context(), testEnv(t), []byte(tc.config))
			if err == nil {
				_ = s.Close()
			}
			if (tc.text == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), tc.text) || relay.IsFatal(err) != tc.fatal) {
				t.Fatalf("NewSink = %v (fatal %t), want %q (fatal %t)", err, relay.IsFatal(err), tc.text, tc.fatal)
			}
		})
	}
}

func TestSinkTimeout(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // accepts in silence
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	began := time.Now()
	_, err = Backend().Sink.New(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":"redis://%s","timeout":"200ms"}`, listener.Addr()))
	if err == nil || relay.IsFatal(err) || time.Since(began) > 5*time.Second {
		t.Errorf("NewSink at a silent server = %v after %s, want a transient error after 200ms", err, time.Since(began))
	}
}

// A transaction whose answer was lost is not carried out twice.
func TestSinkLostReply(t *testing.T) {
	srv := startServer(t)
	raw, p := srv.client(t), newProxy(t, srv.addr)
	for _, resume := range []bool{true, false} {
		stream := uniqueName(t)
		s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"redis://%s","stream":%q,"resume":%t}`, p.Addr(), stream, resume))
		if err := s.Publish(t.Context(), messages(1, 5)); err != nil {
			t.Fatal(err)
		}
		p.loseAfter(0)
		err := s.Publish(t.Context(), messages(6, 5))
		if !relay.IsUnknown(err) || relay.IsFatal(err) {
			t.Fatalf("Publish without an answer = %v, want a transient error after which it is unknown what arrived", err)
		}
		p.pass()
		eventually(t, "the batch without an answer is added", func() bool { return len(ids(t, raw, stream)) == 10 })
		republish(t, s, err, messages(6, 10))
		want := 15
		if !resume {
			want = 20 // without looking it cannot know
		}
		if got := ids(t, raw, stream); len(got) != want {
			t.Errorf("resume=%t: the stream has %d entries, want %d", resume, len(got), want)
		}
	}
}

// EXEC is all or nothing, so an answer that ends in its middle is worth as little as one
// that is lost.
func TestSinkTornReply(t *testing.T) {
	srv := startServer(t)
	raw, p := srv.client(t), newProxy(t, srv.addr)
	stream := uniqueName(t)
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"redis://%s","stream":%q}`, p.Addr(), stream))
	if err := s.Publish(t.Context(), messages(1, 5)); err != nil {
		t.Fatal(err)
	}
	before := len("+OK\r\n") + 5*len("+QUEUED\r\n") + len("*5\r\n")
	entry := len("$15\r\n1526569495631-0\r\n")
	p.loseAfter(before + 2*entry + entry/2)
	err := s.Publish(t.Context(), messages(6, 5))
	failedAll(t, err, 5)
	if !relay.IsUnknown(err) || relay.IsFatal(err) {
		t.Fatalf("Publish with half an answer = %v, want a transient error after which it is unknown what arrived", err)
	}
	p.pass()
	republish(t, s, err, messages(6, 10))
	if got := ids(t, raw, stream); len(got) != 15 {
		t.Errorf("the stream has %d entries, want 15", len(got))
	}
}

// A connection that breaks is not used again.
func TestSinkLostConnection(t *testing.T) {
	for name, config := range map[string]string{"plain": "", "wait_replicas": `,"wait_replicas":1`} {
		t.Run(name, func(t *testing.T) {
			srv := startServer(t, "--repl-diskless-sync-delay", "0")
			startServer(t, "--replicaof", "127.0.0.1 "+srv.port())
			raw := srv.client(t)
			s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q%s}`, srv.url(), config))
			eventually(t, "the replica follows", func() bool { return s.Publish(context.Background(), messages(1, 5)) == nil })
			before := len(ids(t, raw, "pgtrickle:orders"))
			if err := raw.ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err(); err != nil {
				t.Fatal(err)
			}
			if err := s.Publish(t.Context(), messages(6, 5)); err == nil || relay.IsFatal(err) {
				t.Fatalf("Publish on a connection that was killed = %v, want a transient error", err)
			}
			if err := s.Publish(t.Context(), messages(6, 5)); err != nil {
				t.Fatalf("the next Publish = %v", err)
			}
			if got := len(ids(t, raw, "pgtrickle:orders")); got != before+5 {
				t.Errorf("the stream has %d entries, want %d", got, before+5)
			}
		})
	}
}

// A name under which there is another master now is resolved again, although
// the old one is still there, as a replica.
func TestSinkMasterMoves(t *testing.T) {
	for name, config := range map[string]string{"plain": "", "wait_replicas": `,"wait_replicas":1`} {
		t.Run(name, func(t *testing.T) {
			old, next := startServer(t, "--repl-diskless-sync-delay", "0"), startServer(t, "--repl-diskless-sync-delay", "0")
			p := newProxy(t, old.addr)
			s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"redis://%s"%s}`, p.Addr(), config))
			if err := next.client(t).ReplicaOf(t.Context(), "127.0.0.1", old.port()).Err(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the first master has a replica", func() bool { return s.Publish(context.Background(), messages(1, 5)) == nil })
			next.client(t).ReplicaOf(t.Context(), "no", "one")
			old.client(t).ReplicaOf(t.Context(), "127.0.0.1", next.port())
			p.point(next.addr)
			if err := s.Publish(t.Context(), messages(6, 5)); err == nil || !strings.Contains(err.Error(), "READONLY") {
				t.Fatalf("Publish to the old master = %v, want READONLY", err)
			}
			eventually(t, "the next Publish finds the new master", func() bool { return s.Publish(context.Background(), messages(6, 5)) == nil })
		})
	}
}

// A Publish that is cancelled while it dials returns soon, and sends nothing.
func TestSinkCancelledDialling(t *testing.T) {
	srv, ca := startServer(t), tlstest.New(t)
	raw, p := srv.client(t), newProxy(t, ca.Terminate(t, srv.addr))
	cert, key := ca.Issue(t, "relay")
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"rediss://%s","resume":false,"tls_ca":%q,"tls_cert":%q,"tls_key":%q}`, p.Addr(), ca.File, cert, key))
	p.point("") // a dial waits for the handshake
	p.cut()
	if err := s.Publish(t.Context(), messages(1, 5)); err == nil {
		t.Fatal("Publish on a connection that was cut = nil")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := s.Publish(ctx, messages(1, 5)); err == nil || time.Since(began) > 3*time.Second {
		t.Errorf("Publish = %v after %s, want an error within a second or two of its being cancelled", err, time.Since(began))
	}
	p.point(ca.Terminate(t, srv.addr))
	if err := s.Publish(t.Context(), messages(6, 1)); err != nil {
		t.Errorf("the next Publish = %v", err)
	}
	if got := ids(t, raw, "pgtrickle:orders"); len(got) != 1 {
		t.Errorf("the stream has %d entries, want the last batch's only one", len(got))
	}
}

// Of a batch that makes several transactions, a cancelled Publish begins no more.
func TestSinkCancelledBetweenTransactions(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q}`, srv.url()))
	if err := s.Publish(t.Context(), messages(1, 1)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := raw.ClientPause(t.Context(), 400*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	err := s.Publish(ctx, messages(2, 3*transactionMessages))
	var partial *relay.BatchError
	if !errors.As(err, &partial) || len(partial.Failed) != 2*transactionMessages || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Publish = %v, want the second and third transaction cancelled", err)
	}
	if got := ids(t, raw, "pgtrickle:orders"); len(got) != 1+transactionMessages {
		t.Errorf("the stream has %d entries, want %d", len(got), 1+transactionMessages)
	}
}

// Streams that the last owner began after its last checkpoint are found too.
func TestSinkResumesUnlistedStreams(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	raw := rawClient(t, url)
	for _, template := range []string{":{op}", ":{row.n}"} {
		name := uniqueName(t)
		t.Cleanup(func() {
			for _, key := range raw.Keys(context.Background(), name+"*").Val() {
				raw.Del(context.Background(), key)
			}
		})
		open := func() *sink {
			return mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":%q}`, url, name+template)).(*sink)
		}
		s := open()
		batch := messages(1, 9)
		if err := s.Publish(t.Context(), batch[:3]); err != nil {
			t.Fatal(err)
		}
		position, err := s.Position(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := 3; i < 9; i++ {
			batch[i].Op = relay.OpDelete
		}
		if err := s.Publish(t.Context(), batch[3:]); err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		if err := open().Resume(t.Context(), position, func(id string) { seen[id] = true }); err != nil {
			t.Fatal(err)
		}
		for i := 3; i < 9; i++ {
			if !seen[batch[i].ID] {
				t.Errorf("template %s: %s was not found again", template, batch[i].ID)
			}
		}
	}
}

func TestSinkWaitsForReplicas(t *testing.T) {
	master := startServer(t, "--repl-diskless-sync-delay", "0")
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"wait_replicas":1,"wait_timeout":"100ms"}`, master.url()))
	if err := s.Publish(t.Context(), messages(1, 5)); err == nil || !strings.Contains(err.Error(), "0 of 1 replicas") || relay.IsFatal(err) {
		t.Fatalf("Publish without a replica = %v, want a transient error", err)
	}
	replica := startServer(t, "--replicaof", "127.0.0.1 "+master.port())
	eventually(t, "the replica follows", func() bool {
		return s.Publish(context.Background(), messages(1, 5)) == nil
	})
	rc := replica.client(t)
	if got := ids(t, rc, "pgtrickle:orders"); len(got) < 5 {
		t.Errorf("the replica has %d entries of a confirmed batch, want 5", len(got))
	}
}

func TestSinkOnCluster(t *testing.T) {
	srv := startServer(t, "--cluster-enabled", "yes", "--cluster-announce-ip", "127.0.0.1")
	raw := srv.client(t)
	if err := raw.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster is up", func() bool {
		return strings.Contains(raw.ClusterInfo(context.Background()).Val(), "cluster_state:ok")
	})
	url := "redis+cluster://" + srv.addr
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":"s:{op}"}`, url)).(*sink)
	first, err := s.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	batch := messages(1, 200)
	for i := range batch {
		batch[i].Op = []string{relay.OpInsert, relay.OpUpdate, relay.OpDelete}[i%3]
	}
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, op := range []string{"insert", "update", "delete"} {
		got := ids(t, raw, "s:"+op)
		total += len(got)
		for i := 1; i < len(got); i++ {
			if number(got[i]) < number(got[i-1]) {
				t.Errorf("stream s:%s: %s stands behind %s", op, got[i], got[i-1])
			}
		}
	}
	if total != 200 {
		t.Errorf("the streams have %d entries, want 200", total)
	}
	seen := 0
	again := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":"s:{op}"}`, url)).(*sink)
	if err := again.Resume(t.Context(), first, func(string) { seen++ }); err != nil || seen != 200 {
		t.Errorf("Resume found %d, %v; want 200", seen, err)
	}
	src := mustSource(t, testEnv(t), fmt.Sprintf(`{"url":%q,"stream":"s:insert"}`, url))
	if got := receive(t, src, 67); src.Ack(t.Context(), got) != nil {
		t.Error("cannot acknowledge on a cluster")
	}
	// A cluster that is down passes.
	raw.ClusterDelSlotsRange(t.Context(), 0, 16383)
	if err := s.Publish(t.Context(), messages(500, 5)); err == nil || relay.IsFatal(err) || relay.IsPermanent(err) {
		t.Errorf("Publish to a cluster that is down = %v, want a transient error", err)
	}
}

func number(id string) (n int) {
	_, _ = fmt.Sscanf(id, "outbox_orders:%d:0", &n)
	return n
}

func TestSinkBySentinel(t *testing.T) {
	master := startServer(t)
	watch := newServer(t)
	watch.opaque = true
	conf := watch.dir + "/sentinel.conf"
	writeFile(t, conf, fmt.Sprintf("port %s\nbind 127.0.0.1\ndir %s\nsentinel monitor mymaster 127.0.0.1 %s 1\n", watch.port(), watch.dir, master.port()))
	watch.run(t, conf, "--sentinel")
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"redis+sentinel://127.0.0.1:1,%s/mymaster/0"}`, watch.addr))
	if err := s.Publish(t.Context(), messages(1, 5)); err != nil {
		t.Fatal(err)
	}
	if got := ids(t, master.client(t), "pgtrickle:orders"); len(got) != 5 {
		t.Errorf("the master has %d entries, want 5", len(got))
	}
}

func TestSinkDestination(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_REDIS_URL")
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":%q}`, url)).(*sink)
	m := relaytest.Message(1, "")
	if got, err := s.Destination(&m); err != nil || got != "pgtrickle:orders" {
		t.Errorf("Destination() = %q, %v; want pgtrickle:orders", got, err)
	}
	if n, _ := s.Limits(); n != transactionMessages {
		t.Errorf("Limits() = %d", n)
	}
}
