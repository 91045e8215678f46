package kafkarelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// TestServer needs a broker that it may configure and kill.
func TestServer(t *testing.T) {
	b := startBroker(t)
	t.Run("Login", func(t *testing.T) { testLogin(t, b) })
	t.Run("DeniedTopics", func(t *testing.T) { testDeniedTopics(t, b) })
	t.Run("TombstonesDenied", func(t *testing.T) { testTombstonesDenied(t, b) })
	t.Run("ReadCommitted", func(t *testing.T) { testReadCommitted(t, b) })
	t.Run("FrozenClose", func(t *testing.T) { testFrozenClose(t, b) })
	t.Run("Restart", func(t *testing.T) { testRestart(t, b) })
	t.Run("SourceRestart", func(t *testing.T) { testSourceRestart(t, b) })
}

func testLogin(t *testing.T, b *broker) {
	topic := newTopic(t, b.plain, 1)
	secure := func(more map[string]any) map[string]any {
		return with(`{}`, merge(map[string]any{"brokers": b.sasl, "topic": topic, "tls_ca": b.ca, "sasl_username": "alice", "sasl_password": "alice-secret"}, more))
	}
	for name, tc := range map[string]struct {
		config    map[string]any
		wantErr   string // "": it works
		transient bool
	}{
		"PLAIN":               {config: secure(map[string]any{"sasl_mechanism": "PLAIN"})},
		"SCRAM-SHA-256":       {config: secure(map[string]any{"sasl_mechanism": "SCRAM-SHA-256"})},
		"SCRAM-SHA-512":       {config: secure(map[string]any{"sasl_mechanism": "SCRAM-SHA-512"})},
		"wrong password":      {config: secure(map[string]any{"sasl_mechanism": "SCRAM-SHA-512", "sasl_password": "no"}), wantErr: "SASL Authentication Failed"},
		"unknown authority":   {config: merge(secure(map[string]any{"sasl_mechanism": "PLAIN", "tls": true}), map[string]any{"tls_ca": nil}), wantErr: "unknown authority"},
		"wrong server name":   {config: secure(map[string]any{"sasl_mechanism": "PLAIN", "tls_server_name": "kafka.example.org"}), wantErr: "certificate is valid for localhost"},
		"not authorised":      {config: secure(map[string]any{"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": "bob", "sasl_password": "bob-secret"}), wantErr: "Authorization Failed"},
		"client certificate":  {config: map[string]any{"brokers": b.mutual, "topic": topic, "tls_ca": b.ca, "tls_cert": b.cert, "tls_key": b.key}, wantErr: "Authorization Failed"}, // connects as CN=alice, a user without rights
		"without certificate": {config: map[string]any{"brokers": b.mutual, "topic": topic, "tls_ca": b.ca}, wantErr: "", transient: true},
	} {
		t.Run(name, func(t *testing.T) {
			raw, _ := json.Marshal(tc.config)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			s, err := Backend().Sink.New(ctx, testEnv(), raw)
			if err == nil {
				defer func() { _ = s.Close() }()
				err = s.Publish(ctx, []relay.Message{relaytest.Message(1, "k")})
			}
			if tc.transient {
				if err == nil {
					t.Fatal("open and publish = nil, want an error")
				}
				return
			}
			if tc.wantErr == "" {
				if err != nil {
					t.Fatalf("open and publish = %v, want nil", err)
				}
				src, err := Backend().Source.New(ctx, testEnv(), mustJSON(merge(tc.config, map[string]any{"group_id": strings.ReplaceAll(name, " ", "-")})))
				if err != nil {
					t.Fatalf("open source = %v", err)
				}
				defer func() { _ = src.Close() }()
				got, err := src.Receive(ctx, 1)
				for err != nil && ctx.Err() == nil { // the group's topic is being made
					got, err = src.Receive(ctx, 1)
				}
				if err != nil || got[0].ID != "outbox_orders:1:0" {
					t.Fatalf("Receive = %v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.wantErr) || !relay.IsFatal(err) {
				t.Fatalf("open and publish = %v (fatal %t), want a fatal error with %q", err, relay.IsFatal(err), tc.wantErr)
			}
		})
	}
}

// testDeniedTopics publishes as a user with rights on one topic only. A row that names
// another one, or one that the user may not create, is refused alone.
func testDeniedTopics(t *testing.T, b *broker) {
	allowed, denied := newTopic(t, b.plain, 1), newTopic(t, b.plain, 1)
	acls := make([]kafka.ACLEntry, 0, 2)
	for _, op := range []kafka.ACLOperationType{kafka.ACLOperationTypeWrite, kafka.ACLOperationTypeDescribe} {
		acls = append(acls, kafka.ACLEntry{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: allowed, ResourcePatternType: kafka.PatternTypeLiteral,
			Principal: "User:bob", Host: "*", Operation: op, PermissionType: kafka.ACLPermissionTypeAllow,
		})
	}
	if res, err := rawClient(b.plain).CreateACLs(t.Context(), &kafka.CreateACLsRequest{ACLs: acls}); err != nil || errors.Join(res.Errors...) != nil {
		t.Fatalf("CreateACLs = %+v, %v", res, err)
	}
	for _, create := range []bool{false, true} {
		s := openSink(t, map[string]any{
			"brokers": b.sasl, "topic": "{row.topic}", "tls_ca": b.ca, "create_if_missing": create,
			"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": "bob", "sasl_password": "bob-secret",
		})
		batch := make([]relay.Message, 6)
		for i := range batch {
			batch[i] = relaytest.Message(i+1, strconv.Itoa(i))
			batch[i].Row = fmt.Appendf(nil, `{"topic":%q}`, allowed)
		}
		batch[1].Row, batch[4].Row = fmt.Appendf(nil, `{"topic":%q}`, denied), []byte(`{"topic":"not-to-be-created"}`)
		dead := relaytest.Settle(t, s, batch)
		if slices.Sort(dead); !slices.Equal(dead, []string{batch[1].ID, batch[4].ID}) {
			t.Errorf("create_if_missing %t: dead letters %v, want the second and the fifth message", create, dead)
		}
	}
	readRaw(t, b.plain, allowed, 8)
}

func mustJSON(v any) json.RawMessage {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}

func merge(parts ...map[string]any) map[string]any {
	out := make(map[string]any)
	for _, m := range parts {
		maps.Copy(out, m)
	}
	return out
}

// testFrozenClose stops a source whose broker does not answer, not even to a
// member that leaves.
func testFrozenClose(t *testing.T, b *broker) {
	topic := newTopic(t, b.plain, 1)
	m := relaytest.Message(1, "k")
	writeRaw(t, b.plain, topic, rawRecord(&m))
	src := openSource(t, map[string]any{"brokers": b.plain, "topic": topic, "group_id": topic})
	insist(t, "receive", func(ctx context.Context) error {
		_, err := src.Receive(ctx, 1)
		return err
	})
	_ = b.cmd.Process.Signal(syscall.SIGSTOP)
	defer func() { _ = b.cmd.Process.Signal(syscall.SIGCONT) }()
	began := time.Now()
	if err := src.Close(); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("Close = %v after %s, want nil within 3s", err, time.Since(began))
	}
}

// testRestart kills the broker again and again while a sink publishes. Every message
// arrives once and in order, although the fate of some batches is unknown.
func testRestart(t *testing.T, b *broker) {
	topic := newTopic(t, b.plain, 3)
	s := openSink(t, map[string]any{"brokers": b.plain, "topic": topic})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	const batches, size = 300, 200
	published := make(chan int, batches)
	go func() {
		for n := range batches {
			batch := make([]relay.Message, size)
			for i := range batch {
				batch[i] = relaytest.Message(n*size+i+1, fmt.Sprintf("k%d", i%20))
			}
			if err := publishAll(ctx, s, batch); err != nil {
				done <- err
				return
			}
			published <- n
		}
		done <- nil
	}()
	for kill := range 2 {
		for range 80 {
			select {
			case <-published:
			case err := <-done:
				t.Fatalf("publishing ended before kill %d: %v", kill, err)
			}
		}
		b.stop()
		b.start(t)
	}
	if err := <-done; err != nil {
		t.Fatalf("publish across restarts: %v", err)
	}
	checkOnce(t, readRaw(t, b.plain, topic, batches*size), batches*size)
}

// testSourceRestart kills the broker under a source that waits for messages.
func testSourceRestart(t *testing.T, b *broker) {
	topic := newTopic(t, b.plain, 2)
	src := openSource(t, map[string]any{"brokers": b.plain, "topic": topic, "group_id": topic})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	seen := make(map[string]int)
	receive := func(until int) {
		for len(seen) < until {
			batch, err := src.Receive(ctx, 10)
			if ctx.Err() != nil {
				t.Fatalf("%d of %d messages received: %v", len(seen), until, err)
			}
			for i := range batch {
				seen[batch[i].ID]++
			}
			for len(batch) > 0 && src.Ack(ctx, batch) != nil && ctx.Err() == nil {
				_ = backoff.Sleep(ctx, 50*time.Millisecond)
			}
		}
	}
	feed := func(from int) {
		for i := range 20 {
			m := relaytest.Message(from+i, fmt.Sprintf("k%d", i))
			writeRaw(t, b.plain, topic, rawRecord(&m))
		}
	}
	feed(1)
	receive(20)
	b.stop()
	b.start(t)
	feed(21)
	receive(40)
}

// publishAll does as the engine does: it publishes again what is not confirmed.
func publishAll(ctx context.Context, s relay.Sink, batch []relay.Message) error {
	for len(batch) > 0 {
		err := s.Publish(ctx, batch)
		if ctx.Err() != nil {
			return err
		}
		batch = remaining(ctx, s, err, batch)
		if err != nil {
			_ = backoff.Sleep(ctx, 20*time.Millisecond)
		}
	}
	return nil
}

// checkOnce checks that messages 1 to n of relaytest arrived once each, and each
// key's in order.
func checkOnce(t *testing.T, got []relay.Message, n int) {
	t.Helper()
	seen := make(map[string]int)
	last := make(map[string]int)
	for i := range got {
		seen[got[i].ID]++
		var number int
		if _, err := fmt.Sscanf(got[i].ID, "outbox_orders:%d:0", &number); err != nil {
			t.Fatalf("read ID %q", got[i].ID)
		}
		if number < last[got[i].Key] {
			t.Errorf("key %s: message %d arrived after %d", got[i].Key, number, last[got[i].Key])
		}
		last[got[i].Key] = number
	}
	lost, twice := 0, 0
	for i := range n {
		switch c := seen[fmt.Sprintf("outbox_orders:%d:0", i+1)]; {
		case c == 0:
			lost++
		case c > 1:
			twice++
		}
	}
	if lost > 0 || twice > 0 {
		t.Errorf("of %d messages %d are lost and %d arrived more than once", n, lost, twice)
	}
}
