package natsrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

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

// Messages that leave the stream unread are counted in the log: under a running source,
// and by the stream's limits also while none runs. Deleted single messages are not.
func TestUnreadMessagesLost(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	var log bytes.Buffer
	env := testEnv()
	env.Logger = slog.New(slog.NewTextHandler(&log, nil))
	var cursor relaytest.Cursor
	env = cursor.Env(env)
	open := func() *source {
		s, err := Backend().Source.New(testContext(t), env, fmt.Appendf(nil, `{"url":%q,"stream":%q}`, url, stream))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s.(*source)
	}
	raw, err := js.Stream(testContext(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	logged := func(want string) {
		t.Helper()
		if !strings.Contains(log.String(), want) || (want == "") != (log.Len() == 0) {
			t.Errorf("logged %q, want %q", log.String(), want)
		}
		log.Reset()
	}

	s := open()
	feed(t, js, prefix+".a", 1, 3)
	ack(t, s, receive(t, s, 3))
	s.conn.dialer.Cut()
	<-s.conn.closed
	feed(t, js, prefix+".a", 4, 4)
	if err := raw.DeleteMsg(testContext(t), 5); err != nil {
		t.Fatal(err)
	}
	ack(t, s, receive(t, s, 3)) // 4, 6, 7
	logged("")

	s.conn.dialer.Cut()
	<-s.conn.closed
	feed(t, js, prefix+".a", 8, 4)
	if err := raw.Purge(testContext(t), jetstream.WithPurgeSequence(11)); err != nil {
		t.Fatal(err)
	}
	ack(t, s, receive(t, s, 1))
	logged("messages=3 first_sequence=8 last_sequence=10")

	_ = s.Close()
	log.Reset()
	feed(t, js, prefix+".a", 12, 6)
	cfg := raw.CachedInfo().Config
	cfg.MaxMsgs = 2
	if _, err := js.UpdateStream(testContext(t), cfg); err != nil {
		t.Fatal(err)
	}
	s = open()
	ack(t, s, receive(t, s, 2))
	logged("messages=4 first_sequence=12 last_sequence=15")
}

// A server that removes messages moves a consumer's floor past them, those too that a
// killed relay had received and not stored. The next relay reports them: by the floor in the
// cursor, where some may count that were stored in the last second. Without a kill, or when
// nothing was removed, it reports nothing.
func TestTrimmedBehindAKilledReader(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	for name, tc := range map[string]struct {
		remove    func(stream jetstream.Stream) error
		retention jetstream.RetentionPolicy
		missed    int64
		want      string
	}{
		"nothing": {want: ""},
		"limits": {missed: 5, want: "messages=5 first_sequence=4 last_sequence=8 perhaps_delivered=", remove: func(stream jetstream.Stream) error {
			cfg := stream.CachedInfo().Config
			cfg.MaxMsgs = 2
			_, err := js.UpdateStream(t.Context(), cfg)
			return err
		}},
		"purge": {missed: 5, want: "messages=5 first_sequence=4 last_sequence=8 perhaps_delivered=5", remove: func(stream jetstream.Stream) error {
			return stream.Purge(t.Context(), jetstream.WithPurgeKeep(2))
		}},
		"acknowledged": {retention: jetstream.WorkQueuePolicy, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			stream, prefix := addStream(t, js, func(cfg *jetstream.StreamConfig) { cfg.Retention = tc.retention })
			raw, err := js.Stream(t.Context(), stream)
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			var cursor relaytest.Cursor
			open := func() *source {
				env := testEnv()
				env.Logger = slog.New(slog.NewTextHandler(&log, nil))
				config := fmt.Appendf(nil, `{"url":%q,"stream":%q,"ack_policy":"explicit"}`, url, stream)
				s, err := Backend().Source.New(t.Context(), cursor.Env(env), config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
				return s.(*source)
			}
			missed := func() (n int64, floor uint64) {
				var known map[string]relay.FarEnd
				if err := json.Unmarshal([]byte(cursor.Env(relay.Env{}).FarEnds), &known); err != nil {
					t.Fatal(err)
				}
				return known[stream].Missed, *known[stream].Floor
			}
			s := open()
			feed(t, js, prefix+".a", 1, 10)
			batch := receive(t, s, 10)
			ack(t, s, batch[:3])
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if _, floor := missed(); floor == 3 {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("the cursor has floor %d, want 3", floor)
				}
			}
			if name == "acknowledged" {
				ack(t, s, batch[3:5]) // the stream has removed them by itself
			}
			s.conn.dialer.Cut() // killed: what it does later is not seen
			if tc.remove != nil {
				if err := tc.remove(raw); err != nil {
					t.Fatal(err)
				}
			}
			s = open()
			receive(t, s, 2)
			if got := log.String(); !strings.Contains(got, tc.want) || tc.want == "" && strings.Contains(got, "lost") {
				t.Errorf("logged %q, want %q", got, tc.want)
			}
			if n, _ := missed(); n != tc.missed {
				t.Errorf("the cursor has %d missed messages, want %d", n, tc.missed)
			}
		})
	}
}

// A loss is logged and counted once, although the cursor cannot store it at first, and the next
// source begins before anything is acknowledged. The messages behind it wait for that. Two
// gaps in one batch are one loss.
func TestLossIsCountedOnce(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, nil)
	raw, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	var log relaytest.Log
	var cursor relaytest.Cursor
	open := func() *source {
		env := testEnv()
		env.Logger = log.Logger()
		s, err := Backend().Source.New(t.Context(), cursor.Env(env), fmt.Appendf(nil, `{"url":%q,"stream":%q}`, url, stream))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s.(*source)
	}
	s := open()
	feed(t, js, prefix+".a", 1, 5)
	ack(t, s, receive(t, s, 5))
	_ = s.Close()
	feed(t, js, prefix+".a", 6, 10)
	if err := raw.Purge(t.Context(), jetstream.WithPurgeKeep(2)); err != nil {
		t.Fatal(err)
	}
	s = open()
	got := cursor.LossOnce(t, s, 2, &log, "unread messages are lost", stream, 8)
	if d := got[0].Token.(*delivery); d.seq != 14 {
		t.Errorf("received sequence %d first, want 14", d.seq)
	}
	s.conn.dialer.Cut()
	<-s.conn.closed
	s = open()
	ack(t, s, receive(t, s, 2))
	if n, missed := strings.Count(log.String(), "messages are lost"), cursor.FarEnd(t, stream).Missed; n != 1 || missed != 8 {
		t.Errorf("after another start %d alarms and %d missed, want one and 8:\n%s", n, missed, &log)
	}

	p, err := s.connect(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	feed(t, js, prefix+".a", 16, 10)
	if got := receive(t, s, 10); got[9].Token.(*delivery).seq != 25 {
		t.Fatalf("received %+v, want sequence 25 last", got[9])
	}
	if err := raw.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.read, p.held = 15, []*delivery{{pull: p, seq: 17}, {pull: p, seq: 25}} // as if the others had not arrived
	if err := s.findLost(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if want := "messages=8 first_sequence=16 last_sequence=24"; !strings.Contains(log.String(), want) {
		t.Errorf("logged %s, want %q", &log, want)
	}
}

// A source knows its position from the beginning, not only from the first acknowledgement. What
// leaves the stream after that is reported, whatever the server takes for acknowledged. What
// had left it before is not.
func TestTrimmedBeforeAnAcknowledgement(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	type world struct {
		stream, prefix string
		raw            jetstream.Stream
		cursor         relaytest.Cursor
		open           func() *source
	}
	keep := func(t testing.TB, w *world, n uint64) {
		t.Helper()
		if err := w.raw.Purge(t.Context(), jetstream.WithPurgeKeep(n)); err != nil {
			t.Fatal(err)
		}
	}
	// A killed relay received all ten, and stored none.
	killed := func(t testing.TB, w *world) {
		s := w.open()
		feed(t, js, w.prefix+".a", 1, 10)
		receive(t, s, 10)
		s.conn.dialer.Cut()
		keep(t, w, 2)
	}
	consumer := func(t testing.TB, w *world) jetstream.Consumer {
		c, err := w.raw.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// read lets another client acknowledge the first n of ten messages.
	read := func(t testing.TB, w *world, n int) {
		c := consumer(t, w)
		feed(t, js, w.prefix+".a", 1, 10)
		batch, err := c.Fetch(n)
		if err != nil {
			t.Fatal(err)
		}
		for m := range batch.Messages() {
			if err := m.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		config string // of the source
		change func(cfg *jetstream.StreamConfig)
		do     func(t testing.TB, w *world)
		want   string
	}{
		"stream is new": {do: killed, want: "messages=8 first_sequence=1 last_sequence=8 perhaps_delivered=8"},
		"stream begins later": {
			do: killed, want: "messages=8 first_sequence=1001 last_sequence=1008 perhaps_delivered=8",
			change: func(cfg *jetstream.StreamConfig) { cfg.FirstSeq = 1001 },
		},
		"stream was created again": {want: "messages=8 first_sequence=1 last_sequence=8", do: func(t testing.TB, w *world) {
			s := w.open()
			feed(t, js, w.prefix+".a", 1, 10)
			ack(t, s, receive(t, s, 10))
			_ = s.Close() // and stores its floor
			cfg := w.raw.CachedInfo().Config
			err := js.DeleteStream(t.Context(), w.stream)
			if err == nil {
				w.raw, err = js.CreateStream(t.Context(), cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			killed(t, w)
		}},
		"consumer was there": {want: "messages=8 first_sequence=1 last_sequence=8", do: func(t testing.TB, w *world) {
			consumer(t, w)
			killed(t, w)
		}},
		"deliver new": {
			config: `"deliver_policy":"new"`, want: "messages=8 first_sequence=6 last_sequence=13",
			do: func(t testing.TB, w *world) {
				feed(t, js, w.prefix+".a", 1, 5)
				killed(t, w)
			},
		},
		"connection lost before anything arrived": {want: "messages=10 first_sequence=1 last_sequence=10", do: func(t testing.TB, w *world) {
			killed(t, w)
			keep(t, w, 0)
			s := w.open()
			for range 2 {
				s.conn.dialer.Cut()
				<-s.conn.closed
				if err := s.Ping(testContext(t)); err != nil {
					t.Fatal(err)
				}
			}
			feed(t, js, w.prefix+".a", 11, 2)
			w.open = func() *source { return s }
		}},
		"consumer was deleted under the source": {want: "messages=5 first_sequence=4 last_sequence=8", do: func(t testing.TB, w *world) {
			s := w.open()
			feed(t, js, w.prefix+".a", 1, 10)
			ack(t, s, receive(t, s, 10)[:3])
			s.conn.dialer.Cut()
			<-s.conn.closed
			if err := w.raw.DeleteConsumer(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
			keep(t, w, 2)
			w.open = func() *source { return s }
		}},
		"trimmed before the pipeline": {do: func(t testing.TB, w *world) {
			feed(t, js, w.prefix+".a", 1, 10)
			keep(t, w, 2)
		}},
		"trimmed before the pipeline, consumer was there": {do: func(t testing.TB, w *world) {
			read(t, w, 3)
			keep(t, w, 2)
		}},
		"trimmed before a cursor had floors": {do: func(t testing.TB, w *world) {
			read(t, w, 3)
			keep(t, w, 2)
			state := fmt.Sprintf(`{%q:{"id":%q,"first":true}}`, w.stream, incarnation(w.raw.CachedInfo()))
			if err := w.cursor.Env(relay.Env{}).KeepFarEnds(t.Context(), state); err != nil {
				t.Fatal(err)
			}
		}},
		"single messages were deleted": {do: func(t testing.TB, w *world) {
			s := w.open()
			feed(t, js, w.prefix+".a", 1, 10)
			s.conn.dialer.Cut()
			for seq := range uint64(7) {
				if err := w.raw.DeleteMsg(t.Context(), seq+2); err != nil {
					t.Fatal(err)
				}
			}
		}},
		"acknowledged messages are removed": {
			change: func(cfg *jetstream.StreamConfig) { cfg.Retention = jetstream.WorkQueuePolicy },
			do: func(t testing.TB, w *world) {
				s := w.open()
				feed(t, js, w.prefix+".a", 1, 10)
				ack(t, s, receive(t, s, 10)[:8])
				s.conn.dialer.Cut() // killed within a second: the cursor has floor 0
				<-s.conn.closed
			},
		},
		"no acknowledged message has interest": {
			change: func(cfg *jetstream.StreamConfig) { cfg.Retention = jetstream.InterestPolicy },
			do: func(t testing.TB, w *world) {
				s := w.open()
				feed(t, js, w.prefix+".a", 1, 10)
				ack(t, s, receive(t, s, 10)[:8])
				s.conn.dialer.Cut()
				<-s.conn.closed
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var w world
			w.stream, w.prefix = addStream(t, js, tc.change)
			var err error
			if w.raw, err = js.Stream(t.Context(), w.stream); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			w.open = func() *source {
				env := testEnv()
				env.Logger = slog.New(slog.NewTextHandler(&log, nil))
				config := fmt.Appendf(nil, `{"url":%q,"stream":%q,"consumer":"c","ack_policy":"explicit","ack_wait":"2s","on_recreated":"restart"%s}`,
					url, w.stream, strings.Replace(tc.config, `"`, `,"`, 1))
				s, err := Backend().Source.New(t.Context(), w.cursor.Env(env), config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = s.Close() })
				return s.(*source)
			}
			tc.do(t, &w)
			receive(t, w.open(), 2)
			got := log.String()
			if !strings.Contains(got, tc.want) || strings.Count(got, "unread messages are lost") != min(1, len(tc.want)) {
				t.Errorf("logged %q, want %q", got, tc.want)
			}
		})
	}
}
