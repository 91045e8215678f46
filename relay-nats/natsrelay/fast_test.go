package natsrelay

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func allowFast(c *jetstream.StreamConfig) { c.AllowBatchPublish = true }

// A batch ends in front of what the stream refuses: nothing behind it is stored,
// of no key, so that all of it can follow in order.
func TestFastBatchEndsAtRefusal(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	const n = 40
	for _, at := range []int{0, 1, 17, n - 1} {
		t.Run(fmt.Sprintf("message %d", at), func(t *testing.T) {
			stream, prefix := addStream(t, js, allowFast)
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
			batch := messages(prefix+".a", 1, n, 5)
			batch[at].Headers = append(batch[at].Headers, relay.Header{Name: "Nats-Expected-Last-Sequence", Value: "999"})
			err := s.Publish(testContext(t), batch)
			partial, ok := errors.AsType[*relay.BatchError](err)
			if !ok || len(partial.Failed) != n-at || !relay.IsPermanent(partial.Failed[at]) {
				t.Fatalf("Publish = %v, want message %d refused for good and all behind it not sent", err, at)
			}
			for i := at + 1; i < n; i++ {
				// A refusal that comes while the batch is still being sent ends the sending.
				if err := partial.Failed[i]; !errors.Is(err, relay.ErrHeldBack) && !errors.Is(err, errNotSent) {
					t.Fatalf("message %d: %v, want it held back", i, err)
				}
			}
			if rest := batch[at+1:]; len(rest) > 0 {
				if err := s.Publish(testContext(t), rest); err != nil {
					t.Fatalf("Publish of the rest = %v", err)
				}
			}
			want := slices.Delete(slices.Clone(batch), at, at+1)
			got := readRaw(t, js, stream, n-1)
			if !slices.EqualFunc(got, want, func(a, b relay.Message) bool { return a.ID == b.ID }) {
				t.Errorf("the stream holds %d messages that are not the others in order", len(got))
			}
			if n := s.TakeDuplicates(); n != 0 {
				t.Errorf("TakeDuplicates() = %d, want none: nothing was sent twice", n)
			}
		})
	}
}

// A full stream refuses in the middle of a batch, and takes the rest, in order,
// once there is room.
func TestFastBatchIntoFullStream(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, func(c *jetstream.StreamConfig) {
		allowFast(c)
		c.MaxMsgs, c.Discard = 700, jetstream.DiscardNew
	})
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	batch := messages(prefix+".a", 1, 1000, 3)
	err := s.Publish(testContext(t), batch)
	partial, ok := errors.AsType[*relay.BatchError](err)
	if !ok || len(partial.Failed) != 300 || relay.IsPermanent(partial.Failed[700]) || relay.IsFatal(partial.Failed[700]) {
		t.Fatalf("Publish = %v, want the last 300 failed, transiently", err)
	}
	changeStream(t, js, stream, func(c *jetstream.StreamConfig) { c.MaxMsgs = -1 })
	if err := s.Publish(testContext(t), batch[700:]); err != nil {
		t.Fatal(err)
	}
	if got := readRaw(t, js, stream, 1000); !slices.EqualFunc(got, batch, func(a, b relay.Message) bool { return a.ID == b.ID }) {
		t.Errorf("the stream holds %d messages that are not the batch in order", len(got))
	}
}

// A header name that cannot be sent costs its own message alone, and what is
// behind it in its key.
func TestFastBatchHeaderNames(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	const n, keys, at = 12, 4, 3
	for _, name := range []string{"user id", "a:b", "naïve", "", "a/b"} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			stream, prefix := addStream(t, js, allowFast)
			s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
			batch := messages(prefix+".a", 1, n, keys)
			batch[at].Headers = append(batch[at].Headers, relay.Header{Name: name, Value: "x"})
			err := s.Publish(testContext(t), batch)
			partial, ok := errors.AsType[*relay.BatchError](err)
			if !ok || !relay.IsPermanent(partial.Failed[at]) {
				t.Fatalf("Publish = %v, want message %d refused for good", err, at)
			}
			for i := range batch {
				behind := i > at && batch[i].Key == batch[at].Key
				if i != at && behind != errors.Is(partial.Failed[i], relay.ErrHeldBack) {
					t.Errorf("message %d: %v, held back %t", i, partial.Failed[i], behind)
				}
			}
			if got := readRaw(t, js, stream, n-n/keys); len(got) != n-n/keys {
				t.Errorf("the stream holds %d messages, want %d", len(got), n-n/keys)
			}
		})
	}
}

// The rule by which header names are refused ahead is the client's own.
func TestHeaderNamesAsTheClient(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, _ := connect(t, url)
	names := []string{"", "ab", "naïve", "a b"}
	for c := range 256 {
		names = append(names, "a"+string([]byte{byte(c)}))
	}
	for _, name := range names {
		err := nc.PublishMsg(&nats.Msg{Subject: "header.names", Header: nats.Header{name: {"x"}}})
		if refused := errors.Is(err, nats.ErrBadHeaderMsg); refused == validHeaderName(name) {
			t.Errorf("validHeaderName(%q) = %t; the client says %v", name, !refused, err)
		}
	}
}

// Copies are dropped by the stream, and counted.
func TestFastBatchDuplicates(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, allowFast)
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"max_in_flight":64}`, url, stream))
	batch := messages(prefix+".a", 1, 1200, 3)
	for _, part := range [][]relay.Message{batch[:1000], batch[:1000], batch[500:]} {
		if err := s.Publish(testContext(t), part); err != nil {
			t.Fatal(err)
		}
		if s.win.fast == nil || s.win.fast.acked != len(part) {
			t.Fatal("this was no fast batch")
		}
	}
	if n := s.TakeDuplicates(); n != 1500 {
		t.Errorf("TakeDuplicates() = %d, want 1500", n)
	}
	if got := readRaw(t, js, stream, 1200); len(got) != 1200 {
		t.Errorf("the stream holds %d messages, want 1200", len(got))
	}
}

// A stream that takes fast batches no more gets single messages.
func TestFastBatchesForbidden(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	_, js := connect(t, url)
	stream, prefix := addStream(t, js, allowFast)
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q}`, url, stream))
	changeStream(t, js, stream, func(c *jetstream.StreamConfig) { c.AllowBatchPublish = false })
	batch := messages(prefix+".a", 1, 100, 3)
	if err := s.Publish(testContext(t), batch); err == nil || relay.IsPermanent(err) || relay.IsFatal(err) {
		t.Fatalf("Publish = %v, want a transient error", err)
	}
	if err := s.Publish(testContext(t), batch); err != nil {
		t.Fatalf("Publish again = %v", err)
	}
	if got := readRaw(t, js, stream, 100); len(got) != 100 {
		t.Errorf("the stream holds %d messages, want 100", len(got))
	}
}

// A stream that the sink creates takes fast batches, where the server knows them.
func TestCreatedStreamTakesFastBatches(t *testing.T) {
	url := relaytest.Endpoint(t, "RELAY_TEST_NATS_URL")
	nc, js := connect(t, url)
	name := fmt.Sprintf("FAST%p", t)
	s := openSink(t, fmt.Sprintf(`{"url":%q,"stream":%q,"create_stream":true,"subject":"%s.{op}"}`, url, name, name))
	t.Cleanup(func() { _ = js.DeleteStream(testContext(t), name) })
	if want := takesFast(nc.ConnectedServerVersion()); (s.win.fast != nil) != want {
		t.Errorf("fast batches: %t, want %t with server %s", !want, want, nc.ConnectedServerVersion())
	}
	for version, want := range map[string]bool{"2.14.0": true, "2.15.2-beta": true, "3.0.0": true, "2.13.9": false, "1.99.0": false, "": false} {
		if takesFast(version) != want {
			t.Errorf("takesFast(%q) = %t", version, !want)
		}
	}
}
