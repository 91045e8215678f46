package natsrelay

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func feed(t testing.TB, js jetstream.JetStream, subject string, from, count int) {
	t.Helper()
	for n := from; n < from+count; n++ {
		if _, err := js.Publish(testContext(t), subject, fmt.Appendf(nil, `{"n":%d}`, n)); err != nil {
			t.Fatal(err)
		}
	}
}

func receive(t testing.TB, s *source, n int) (got []relay.Message) {
	t.Helper()
	for len(got) < n {
		batch, err := s.Receive(testContext(t), n-len(got))
		if err != nil {
			t.Fatalf("Receive = %v after %d of %d", err, len(got), n)
		}
		got = append(got, batch...)
	}
	return got
}

func ack(t testing.TB, s *source, batch []relay.Message) {
	t.Helper()
	if err := s.Ack(testContext(t), batch); err != nil {
		t.Fatalf("Ack = %v", err)
	}
}

// What a reader that died had received comes first, in order and without
// waiting for ack_wait, before anything new.
func TestRewindAfterCrash(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	config := fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":"c","ack_wait":"60s"}`, url, stream)
	feed(t, js, prefix+".a", 1, 100)
	dead := openSource(t, config)
	got := receive(t, dead, 50)
	ack(t, dead, got[:20])
	dead.conn.dialer.Cut() // as a crash would
	feed(t, js, prefix+".a", 101, 10)
	began := time.Now()
	got = receive(t, openSource(t, config), 90)
	for i := range got {
		if want := fmt.Sprintf("nats:%s:%d", stream, 21+i); got[i].ID != want {
			t.Fatalf("message %d after the crash is %s, want %s", i, got[i].ID, want)
		}
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// A connection is lost while the engine has messages. They are acknowledged on the next
// one, and not delivered twice when that is in time.
func TestAckAfterReconnect(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":"c"}`, url, stream))
	feed(t, js, prefix+".a", 1, 10)
	got := receive(t, s, 10)
	s.conn.dialer.Cut()
	<-s.conn.closed
	if err := s.Ping(testContext(t)); err != nil { // connects again, and with it the consumer begins again
		t.Fatal(err)
	}
	ack(t, s, got)
	feed(t, js, prefix+".a", 11, 1)
	if next := receive(t, s, 1); next[0].ID != fmt.Sprintf("nats:%s:11", stream) {
		t.Errorf("received %s, want the eleventh message", next[0].ID)
	} else {
		ack(t, s, next)
	}
	c, err := js.Consumer(testContext(t), stream, "c")
	if err != nil || c.CachedInfo().NumAckPending != 0 || c.CachedInfo().AckFloor.Stream != 11 {
		t.Errorf("consumer = %+v, %v; want everything acknowledged", c.CachedInfo(), err)
	}
}

// A slow inbox does not make messages come again.
func TestSlowInbox(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":"c","ack_wait":"600ms"}`, url, stream))
	feed(t, js, prefix+".a", 1, 20)
	got := receive(t, s, 10) // the other ten wait inside the source
	time.Sleep(2 * time.Second)
	ack(t, s, got)
	ack(t, s, receive(t, s, 10))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if again, err := s.Receive(ctx, 10); err == nil {
		t.Errorf("received %d messages again, the first %s", len(again), again[0].ID)
	}
	c, err := js.Consumer(testContext(t), stream, "c")
	if err != nil || c.CachedInfo().NumRedelivered != 0 || c.CachedInfo().NumAckPending != 0 {
		t.Errorf("consumer = %+v, %v; want nothing redelivered or pending", c.CachedInfo(), err)
	}
}

func TestConsumerOptions(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	feed(t, js, prefix+".a", 1, 3)
	middle := time.Now()
	time.Sleep(20 * time.Millisecond)
	feed(t, js, prefix+".b", 4, 3)
	for name, tc := range map[string]struct {
		keys  string
		first string // of what is received once a seventh message has come; "" for that one
		check func(jetstream.ConsumerConfig) bool
	}{
		"all":           {keys: `"deliver_policy":"all"`, first: "1"},
		"last":          {keys: `"deliver_policy":"last"`, first: "6"},
		"new":           {keys: `"deliver_policy":"new"`, first: ""},
		"by start time": {keys: fmt.Sprintf(`"deliver_policy":"by_start_time","start_time":%q`, middle.Format(time.RFC3339Nano)), first: "4"},
		"one subject":   {keys: `"subject":"` + prefix + `.b"`, first: "4", check: func(c jetstream.ConsumerConfig) bool { return c.FilterSubject == prefix+".b" }},
		"two subjects":  {keys: `"subject":["` + prefix + `.b","` + prefix + `.c"]`, first: "4", check: func(c jetstream.ConsumerConfig) bool { return len(c.FilterSubjects) == 2 }},
		"times and limits": {
			keys: `"ack_wait":"7s","max_deliver":3,"max_ack_pending":77`, first: "1",
			check: func(c jetstream.ConsumerConfig) bool {
				return c.AckWait == 7*time.Second && c.MaxDeliver == 3 && c.MaxAckPending == 77
			},
		},
		"acks": {keys: `"ack_policy":"explicit"`, first: "1", check: func(c jetstream.ConsumerConfig) bool { return c.AckPolicy == jetstream.AckExplicitPolicy }},
		"defaults": {keys: `"domain":""`, first: "1", check: func(c jetstream.ConsumerConfig) bool {
			return c.AckWait == 30*time.Second && c.MaxDeliver == -1 && c.AckPolicy == jetstream.AckAllPolicy && c.Durable != ""
		}},
	} {
		t.Run(name, func(t *testing.T) {
			consumer := strings.ReplaceAll(name, " ", "-")
			s := openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":%q,%s}`, url, stream, consumer, tc.keys))
			c, err := js.Consumer(testContext(t), stream, consumer)
			if err != nil {
				t.Fatal(err)
			}
			if cc := c.CachedInfo().Config; tc.check != nil && !tc.check(cc) {
				t.Errorf("created consumer with %+v", cc)
			}
			ackd, err := js.Publish(testContext(t), prefix+".b", []byte(`{}`))
			if err != nil {
				t.Fatal(err)
			}
			want := tc.first
			if name == "last" {
				want = fmt.Sprint(ackd.Sequence - 1)
			}
			if want == "" {
				want = fmt.Sprint(ackd.Sequence)
			}
			if got := receive(t, s, 1)[0]; got.ID != "nats:"+stream+":"+want {
				t.Errorf("the first message is %s, want sequence %s", got.ID, want)
			}
		})
	}
}

func TestForeignMessage(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSource(t, fmt.Sprintf(`{"url":%q,"subject":%q}`, url, prefix+".>")) // found by subject
	m := nats.NewMsg(prefix + ".new")
	m.Data = []byte(`{}`)
	m.Header.Set("X-Trace", "7")
	if _, err := js.PublishMsg(testContext(t), m); err != nil {
		t.Fatal(err)
	}
	got := receive(t, s, 1)[0]
	if got.ID != "nats:"+stream+":1" || got.Origin != "nats:"+stream || got.Subject != prefix+".new" || got.Op != relay.OpEvent || time.Since(got.Time) > time.Minute {
		t.Errorf("received %+v", got)
	}
	if v, _ := got.Header("x-trace"); v != "7" {
		t.Errorf("header x-trace = %q, want 7", v)
	}
	if s.cfg.Consumer != "pgtrickle-relay-orders" {
		t.Errorf("default consumer = %q", s.cfg.Consumer)
	}
}

func TestSourceErrors(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	ctx := testContext(t)
	for name, cc := range map[string]jetstream.ConsumerConfig{
		"noack": {Durable: "noack", AckPolicy: jetstream.AckNonePolicy},
		"other": {Durable: "other", AckPolicy: jetstream.AckExplicitPolicy, FilterSubject: prefix + ".x"},
	} {
		if _, err := js.CreateConsumer(ctx, stream, cc); err != nil {
			t.Fatal(err)
		}
		_, err := trySource(ctx, fmt.Appendf(nil, `{"url":%q,"stream":%q,"consumer":%q,"subject":"%s.y"}`, url, stream, name, prefix))
		if !relay.IsFatal(err) {
			t.Errorf("consumer %s = %v, want a fatal error", name, err)
		}
		t.Log(err)
	}
	_, err := trySource(ctx, fmt.Appendf(nil, `{"url":%q,"stream":"missing"}`, url))
	if !relay.IsFatal(err) || !strings.Contains(err.Error(), "nats_create_if_missing") {
		t.Errorf("a missing stream = %v, want a fatal error that says what to do", err)
	}
	name := fmt.Sprintf("MADE%d", time.Now().UnixNano())
	openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q,"create_stream":true,"subject":"%s.>"}`, url, name, name))
	if err := js.DeleteStream(ctx, name); err != nil {
		t.Errorf("create_stream created nothing: %v", err)
	}
}

// A consumer that is deleted is created again where it was. A stream that is deleted
// stops the pipeline.
func TestDeletedUnderOurHands(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	s := openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q,"consumer":"c"}`, url, stream))
	feed(t, js, prefix+".a", 1, 10)
	ack(t, s, receive(t, s, 10))
	retry := func() (batch []relay.Message, err error) {
		for range 5 {
			if batch, err = s.Receive(testContext(t), 10); err == nil || relay.IsFatal(err) {
				return batch, err
			}
			t.Logf("Receive: %v", err)
		}
		return nil, err
	}
	deleted := make(chan error, 1)
	go func() {
		time.Sleep(100 * time.Millisecond) // while Receive waits
		deleted <- js.DeleteConsumer(context.Background(), stream, "c")
		_, err := js.Publish(context.Background(), prefix+".a", []byte("{}"))
		deleted <- err
	}()
	batch, err := retry()
	if err != nil || len(batch) != 1 || batch[0].ID != fmt.Sprintf("nats:%s:11", stream) {
		t.Fatalf("after the consumer was deleted: %v, %v; want the eleventh message alone", batch, err)
	}
	if a, b := <-deleted, <-deleted; a != nil || b != nil {
		t.Fatal(a, b)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		deleted <- js.DeleteStream(context.Background(), stream)
	}()
	if _, err := retry(); !relay.IsFatal(err) {
		t.Errorf("after the stream was deleted: %v, want a fatal error", err)
	}
	<-deleted
}

// A message larger than a request's limit of bytes is asked for by itself.
func TestLargerThanPrefetch(t *testing.T) {
	srv := startServer(t, "max_payload: 32MB")
	_, js := connect(t, srv.url)
	stream, prefix := addStream(t, js, nil)
	for _, size := range []int{10, 12 << 20, 10, 9 << 20, 9 << 20, 10} {
		if _, err := js.Publish(testContext(t), prefix+".a", make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	s := openSource(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, srv.url, stream))
	began := time.Now()
	got := receive(t, s, 6)
	if len(got[1].Body) != 12<<20 || len(got[5].Body) != 10 {
		t.Errorf("received bodies of %d and %d bytes", len(got[1].Body), len(got[5].Body))
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
}

func BenchmarkSource(b *testing.B) {
	url := relaytest.Endpoint(b, "RELAY_TEST_NATS_URL")
	_, js := connect(b, url)
	stream, prefix := addStream(b, js, nil)
	publishOurs(b, openSink(b, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream)), prefix+".a", 0, b.N)
	s := openSource(b, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; {
		batch, err := s.Receive(context.Background(), 1000)
		if err == nil {
			err = s.Ack(context.Background(), batch)
		}
		if err != nil {
			b.Fatal(err)
		}
		n += len(batch)
	}
}

// BenchmarkRawSource is the client's own iterator, with an Ack for each message.
func BenchmarkRawSource(b *testing.B) {
	url := relaytest.Endpoint(b, "RELAY_TEST_NATS_URL")
	_, js := connect(b, url)
	stream, prefix := addStream(b, js, nil)
	publishOurs(b, openSink(b, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream)), prefix+".a", 0, b.N)
	ctx := context.Background()
	c, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: "raw", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 20_000})
	if err != nil {
		b.Fatal(err)
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(2000))
	if err != nil {
		b.Fatal(err)
	}
	defer messages.Stop()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		m, err := messages.Next()
		if err == nil {
			err = m.Ack()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
