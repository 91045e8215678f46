package kafkarelay

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// unconfirmed returns the messages of batch that err leaves unconfirmed.
func unconfirmed(err error, batch []relay.Message) []relay.Message {
	var partial *relay.BatchError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &partial):
		return batch
	}
	var rest []relay.Message
	for i := range batch {
		if partial.Failed[i] != nil {
			rest = append(rest, batch[i])
		}
	}
	return rest
}

// remaining returns the messages of batch to publish again after err. As the engine
// does, it drops those that the sink finds at the destination.
func remaining(ctx context.Context, s relay.Sink, err error, batch []relay.Message) []relay.Message {
	rest := unconfirmed(err, batch)
	if !relay.IsUnknown(err) {
		return rest
	}
	for {
		seen := make(map[string]bool)
		if s.(relay.Resumer).Resume(ctx, "unused", func(id string) { seen[id] = true }) == nil {
			return slices.DeleteFunc(slices.Clone(rest), func(m relay.Message) bool { return seen[m.ID] })
		}
		if backoff.Sleep(ctx, 20*time.Millisecond) != nil {
			return rest
		}
	}
}

// Keys go where the Java client puts them. The hashes are those of its own tests.
func TestPartitionOf(t *testing.T) {
	t.Parallel()
	for key, hash := range map[string]int32{
		"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536, "a-little-bit-longer-string": -1486304829,
		"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971, "abc": 479470107,
	} {
		for _, ids := range [][]int{{0}, {0, 1, 2}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}} {
			if got, want := partitionOf(key, ids), int(hash&0x7fffffff)%len(ids); got != want {
				t.Errorf("partitionOf(%q, %d) = %d, want %d", key, len(ids), got, want)
			}
		}
	}
}

// A batch is the same to the last byte as that of earlier versions.
func TestBatchGolden(t *testing.T) {
	t.Parallel()
	batch := []relay.Message{relaytest.Message(1, "k1"), relaytest.Message(2, ""), relaytest.Message(3, "k2"), relaytest.Message(4, "k1")}
	batch[0].FullRefresh = true
	batch[1].Subject, batch[1].Body = "orders", nil
	batch[2].Headers = []relay.Header{{Name: "X-Tenant", Value: "ä"}, {Name: "traceparent", Value: "00-1"}, {Name: "empty"}}
	batch[3] = relay.Message{ID: "outbox_orders:4:0", Key: "k1", Body: []byte{}}
	var out bytes.Buffer
	out.WriteString("before")
	p := &partition{topic: &topic{name: "orders"}, producer: producer{id: 4711, epoch: 3, sequence: 99}}
	if err := new(batchWriter).write(&out, batch, []int32{0, 1, 2, 3}, p, time.UnixMilli(1767225600123)); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("testdata/batch.golden")
	if err != nil {
		t.Fatal(err)
	}
	got := hex.Dump(out.Bytes()[len("before"):])
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("batch differs from the golden one (-want +got):\n%s", diff)
	}
	for i := range batch {
		out.Reset()
		if err := new(batchWriter).write(&out, batch, []int32{int32(i)}, p, time.Now()); err != nil {
			t.Fatal(err)
		}
		if size, limit := out.Len()-headSize, maxRecordSize(&batch[i]); size > limit {
			t.Errorf("message %d takes %d bytes, more than maxRecordSize = %d", i, size, limit)
		}
	}
}

// A publish that is abandoned leaves batches of unknown fate behind. They are
// not written twice.
func TestAbandonedPublishIsNotRepeated(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	for name, idempotence := range map[string]bool{"numbered": true, "looked up": false} {
		t.Run(name, func(t *testing.T) {
			topic := newTopic(t, brokers, 4)
			s := openSink(t, map[string]any{"brokers": brokers, "topic": topic, "idempotence": idempotence})
			const rounds, size = 25, 400
			abandoned := 0
			for n := range rounds {
				batch := make([]relay.Message, size)
				for i := range batch {
					batch[i] = relaytest.Message(n*size+i+1, fmt.Sprintf("k%d", i%20))
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(200+n*150)*time.Microsecond)
				err := s.Publish(ctx, batch)
				cancel()
				rest := remaining(t.Context(), s, err, batch)
				if relay.IsUnknown(err) {
					abandoned++
				}
				if err := publishAll(t.Context(), s, rest); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d of %d publishes were abandoned", abandoned, rounds)
			checkOnce(t, readRaw(t, brokers, topic, rounds*size), rounds*size)
		})
	}
}

// An owner dies during a publish, with its request in flight. The next owner reads back
// the messages that arrived and publishes the rest. No message arrives twice.
func TestSuccessorsPublishNothingTwice(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 3)
	config := map[string]any{"brokers": brokers, "topic": topic}
	const size, owners = 300, 20
	position := ""
	next := 1
	for owner := range owners {
		s := openSink(t, config).(*sink)
		seen := make(map[string]bool)
		if position != "" {
			if err := s.Resume(t.Context(), position, func(id string) { seen[id] = true }); err != nil {
				t.Fatalf("Resume = %v", err)
			}
		}
		writeRaw(t, brokers, topic, kafka.Message{Value: []byte("a stranger's")})
		publish := func(ctx context.Context, from, n int) error {
			var batch []relay.Message
			for i := from; i < from+n; i++ {
				if m := relaytest.Message(i, fmt.Sprintf("k%d", i%20)); !seen[m.ID] {
					batch = append(batch, m)
				}
			}
			if len(batch) == 0 {
				return nil
			}
			return s.Publish(ctx, batch)
		}
		if err := publish(t.Context(), next, size); err != nil {
			t.Fatal(err)
		}
		next += size
		var err error
		if position, err = s.Position(t.Context()); err != nil {
			t.Fatal(err)
		}
		if owner < owners-1 { // dies
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(500+owner*200)*time.Microsecond)
			_ = publish(ctx, next, size)
			cancel()
		}
		_ = s.Close()
	}
	checkOnce(t, readRaw(t, brokers, topic, next-1), next-1)
}

// Without the key topic the sink writes to the subject's topic and creates it. The next
// owner finds messages in topics that the position does not have.
func TestSubjectsAsTopics(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	prefix := newTopicName()
	config := map[string]any{
		"brokers": brokers, "create_if_missing": true, "partitions": 5, "replication_factor": 1, "max_message_bytes": "3MiB",
	}
	s := openSink(t, config).(*sink)
	topics := []string{prefix + ".insert", prefix + ".update", prefix + ".delete"}
	t.Cleanup(func() {
		_, _ = rawClient(brokers).DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: topics})
	})
	position, err := s.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var batch []relay.Message
	for i := range 300 {
		m := relaytest.Message(i+1, fmt.Sprintf("k%d", i/3%7))
		m.Subject = topics[i%3] // a key in three topics, one after the other
		if i == 250 {
			m.Body = []byte(strings.Repeat("x", 2<<20))
		}
		batch = append(batch, m)
	}
	if err := s.Publish(t.Context(), batch); err != nil {
		t.Fatalf("Publish = %v", err)
	}
	for i, topic := range topics {
		if got := readRaw(t, brokers, topic, 100); len(got) != 100 || got[0].Subject != topic {
			t.Errorf("topic %d holds %d messages, subject %q; want 100, %q", i, len(got), got[0].Subject, topic)
		}
		meta, err := rawClient(brokers).Metadata(t.Context(), &kafka.MetadataRequest{Topics: []string{topic}})
		if err != nil || len(meta.Topics[0].Partitions) != 5 {
			t.Errorf("topic %s has %d partitions, want 5", topic, len(meta.Topics[0].Partitions))
		}
	}
	seen := make(map[string]bool)
	if err := openSink(t, config).(*sink).Resume(t.Context(), position, func(id string) { seen[id] = true }); err != nil {
		t.Fatal(err)
	}
	for i := range batch {
		if !seen[batch[i].ID] {
			t.Fatalf("Resume did not find %s, which lies in a topic that the position does not have", batch[i].ID)
		}
	}
}

// Resume reports the messages of unknown fate that the broker has, also when it failed
// half-way before, until the next Publish.
func TestResumeAfterUnknown(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	for name, idempotence := range map[string]bool{"numbered": true, "looked up": false} {
		t.Run(name, func(t *testing.T) {
			s := openSink(t, map[string]any{"brokers": brokers, "topic": newTopic(t, brokers, 2), "idempotence": idempotence}).(*sink)
			batch := []relay.Message{relaytest.Message(1, "k1"), relaytest.Message(2, "k2"), relaytest.Message(3, "k3"), relaytest.Message(4, "k4")}
			var out bytes.Buffer
			for i := range batch { // as if the answers had been lost
				p := s.fixed.partitions[partitionOf(batch[i].Key, s.fixed.ids)]
				if p.doubt != nil {
					continue
				}
				out.Reset()
				if err := new(batchWriter).write(&out, batch, []int32{int32(i)}, p, time.Now()); err != nil {
					t.Fatal(err)
				}
				p.doubt = &doubt{bytes: bytes.Clone(out.Bytes()), ids: []string{batch[i].ID}}
				s.doubtful = append(s.doubtful, p)
				if !idempotence {
					m := rawRecord(&batch[i])
					writeRaw(t, brokers, s.fixed.name, m)
				}
			}
			if len(s.doubtful) != 2 {
				t.Fatalf("%d partitions are in doubt, want 2", len(s.doubtful))
			}
			last := s.doubtful[1]
			name := last.topic.name
			last.topic = &topic{name: "no-such-topic-" + name, partitions: last.topic.partitions}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if err := s.Resume(ctx, "", func(string) {}); err == nil {
				t.Fatal("Resume of a topic that does not exist = nil, want an error")
			}
			last.topic = s.fixed
			for range 2 { // the engine reads until two answers agree
				var seen []string
				if err := s.Resume(t.Context(), "", func(id string) { seen = append(seen, id) }); err != nil || len(seen) != 2 {
					t.Fatalf("Resume = %v, and reports %v; want both messages", err, seen)
				}
			}
			if err := s.Publish(t.Context(), []relay.Message{relaytest.Message(9, "k1"), relaytest.Message(10, "k2")}); err != nil {
				t.Fatalf("Publish = %v", err)
			}
			if len(s.doubtful) > 0 || s.fixed.partitions[0].doubt != nil {
				t.Error("partitions are still in doubt")
			}
		})
	}
}

func TestTopicTemplate(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopicName()
	for _, suffix := range []string{"k0", "k1"} {
		createTopic(t, brokers, topic+"."+suffix, 2, "delete")
	}
	s := openSink(t, map[string]any{"brokers": brokers, "topic": topic + ".{row.key}"})
	batch := []relay.Message{relaytest.Message(1, "k0"), relaytest.Message(2, "k1"), relaytest.Message(3, "k0")}
	batch[1].Row = []byte(`{"key":"not allowed!"}`)
	err := s.Publish(t.Context(), batch)
	var partial *relay.BatchError
	if !errors.As(err, &partial) || len(partial.Failed) != 1 || !relay.IsPermanent(partial.Failed[1]) {
		t.Fatalf("Publish with a topic name that Kafka refuses = %v, want message 1 alone refused for good", err)
	}
	if got := readRaw(t, brokers, topic+".k0", 2); got[0].Subject != "orders.insert" || got[0].Key != "k0" {
		t.Errorf("read subject %q, key %q; want orders.insert, k0", got[0].Subject, got[0].Key)
	}
	if to, err := s.(relay.Router).Destination(&batch[0]); err != nil || to != topic+".k0" {
		t.Errorf("Destination = %q, %v", to, err)
	}
	// A row that names a missing topic stops its key and no other.
	batch = []relay.Message{relaytest.Message(4, "k2"), relaytest.Message(5, "k0"), relaytest.Message(6, "k2")}
	err = s.Publish(t.Context(), batch)
	if !errors.As(err, &partial) || len(partial.Failed) != 2 || !relay.IsPermanent(partial.Failed[0]) ||
		!strings.Contains(partial.Failed[0].Error(), "kafka_create_if_missing") {
		t.Errorf("Publish to a missing topic = %v, want messages 0 and 2 alone refused, with the cure", err)
	}
}

func TestMissingTopic(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	config := mustJSON(map[string]any{"brokers": brokers, "topic": newTopicName()})
	if _, err := Backend().Sink.New(t.Context(), testEnv(), config); !relay.IsFatal(err) {
		t.Errorf("open a sink onto a missing topic = %v, want a fatal error", err)
	}
	if _, err := Backend().Source.New(t.Context(), testEnv(), config); !relay.IsFatal(err) {
		t.Errorf("open a source at a missing topic = %v, want a fatal error", err)
	}
}

func TestMessageLimits(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 1) // takes 2 MiB
	for name, tc := range map[string]struct {
		config string
		body   int
		refuse bool
	}{
		"own limit":             {`{"max_message_bytes":"10KiB"}`, 11 << 10, true},
		"below own limit":       {`{"max_message_bytes":"10KiB"}`, 9 << 10, false},
		"topic's limit":         {`{}`, 3 << 20, true},
		"compressed it goes in": {`{"compression":"gzip"}`, 3 << 20, false},
		"leader alone":          {`{"acks":"1","compression":"snappy","request_timeout":"5s"}`, 100, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := openSink(t, with(tc.config, map[string]any{"brokers": brokers, "topic": topic}))
			batch := []relay.Message{relaytest.Message(1, "b"), relaytest.Message(2, "b"), relaytest.Message(3, "b"), relaytest.Message(4, "c")}
			batch[1].Body = []byte(strings.Repeat("x", tc.body))
			err := s.Publish(t.Context(), batch)
			if !tc.refuse {
				if err != nil {
					t.Fatalf("Publish = %v", err)
				}
				return
			}
			var partial *relay.BatchError
			if !errors.As(err, &partial) || len(partial.Failed) != 2 || !relay.IsPermanent(partial.Failed[1]) || !errors.Is(partial.Failed[2], relay.ErrHeldBack) {
				t.Fatalf("Publish = %v, want message 1 refused for good and 2 held back", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, ofRow bool) error {
		if answer == noTopic {
			return refusals.Classify(missing("t", "create it"), answer, ofRow)
		}
		code, _ := strconv.Atoi(answer)
		return classifyFor(fmt.Errorf("write: %w", kafka.Error(code)), ofRow)
	})
}

func TestLoginWithoutSASL(t *testing.T) {
	t.Parallel()
	err := classify(fmt.Errorf("look up topic: %w", kafka.IllegalSASLState))
	if !relay.IsFatal(err) || !strings.Contains(err.Error(), "leave out kafka_sasl_mechanism") {
		t.Errorf("classify = %v, want a fatal error with the cure", err)
	}
}

func TestClassify(t *testing.T) {
	t.Parallel()
	for code, want := range map[kafka.Error]string{
		kafka.MessageSizeTooLarge: "permanent", kafka.InvalidRecord: "permanent", kafka.InvalidTopic: "permanent",
		kafka.TopicAuthorizationFailed: "fatal", kafka.SASLAuthenticationFailed: "fatal", kafka.UnsupportedSASLMechanism: "fatal", kafka.PolicyViolation: "fatal",
		kafka.NotLeaderForPartition: "transient", kafka.RequestTimedOut: "transient", kafka.NotEnoughReplicas: "transient",
		kafka.UnknownTopicOrPartition: "transient", kafka.KafkaStorageError: "transient", kafka.OutOfOrderSequenceNumber: "transient",
	} {
		err := classify(fmt.Errorf("write: %w", code))
		got := "transient"
		if relay.IsPermanent(err) {
			got = "permanent"
		} else if relay.IsFatal(err) {
			got = "fatal"
		}
		if got != want {
			t.Errorf("classify(%v) is %s, want %s", code, got, want)
		}
	}
}

// Members join and leave while messages are read: each message is received, and all
// messages before the position were settled.
func TestRebalance(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 4)
	const n = 4000
	records := make([]kafka.Message, n)
	for i := range records {
		m := relaytest.Message(i+1, fmt.Sprintf("k%d", i%40))
		records[i] = rawRecord(&m)
	}
	writeRaw(t, brokers, topic, records...)
	config := map[string]any{"brokers": brokers, "topic": topic, "group_id": topic, "session_timeout": "6s", "fetch_max_bytes": 4096, "fetch_max_wait": "100ms", "client_id": "rebalance"}
	ctx, cancel := context.WithTimeout(t.Context(), relaytest.Patience())
	defer cancel()
	type delivery struct {
		member int
		ids    []string
	}
	deliveries := make(chan delivery)
	member := func(id int, src relay.Source) {
		for ctx.Err() == nil {
			batch, err := src.Receive(ctx, 25)
			if err != nil {
				return
			}
			d := delivery{member: id}
			for i := range batch {
				d.ids = append(d.ids, batch[i].ID)
			}
			select {
			case deliveries <- d:
			case <-ctx.Done():
				return
			}
			if err := src.Ack(ctx, batch); err != nil {
				t.Errorf("Ack = %v", err)
			}
		}
	}
	first := openSource(t, config)
	go member(1, first)
	seen := make(map[string]int)
	members := make(map[int]int)
	joined, left := false, false
	for len(seen) < n {
		select {
		case d := <-deliveries:
			for _, id := range d.ids {
				seen[id]++
			}
			members[d.member] += len(d.ids)
		case <-ctx.Done():
			t.Fatalf("%d of %d messages received (by member %v)", len(seen), n, members)
		}
		if len(seen) > 300 && !joined {
			joined = true
			go member(2, openSource(t, config))
		}
		if members[2] > 100 && !left {
			left = true
			go func() { _ = first.Close() }()
		}
	}
	repeated := 0
	for _, c := range seen {
		repeated += c - 1
	}
	t.Logf("by member: %v; received again: %d", members, repeated)
	if members[2] == 0 {
		t.Error("the second member received nothing")
	}
}

// A stop need not wait for a place in the group, which another member keeps open
// until what it has in hand is settled. That member goes on.
func TestCloseWhileJoining(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 1)
	m := relaytest.Message(1, "k")
	writeRaw(t, brokers, topic, rawRecord(&m))
	config := map[string]any{"brokers": brokers, "topic": topic, "group_id": topic, "session_timeout": "30s"}
	first := openSource(t, config)
	var batch []relay.Message
	insist(t, "receive", func(ctx context.Context) (err error) {
		batch, err = first.Receive(ctx, 1)
		return err
	})
	second := openSource(t, config)
	waitForState(t, brokers, topic, "PreparingRebalance")
	began := time.Now()
	if err := second.Close(); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("Close = %v after %s, want nil within 3s", err, time.Since(began))
	}
	if err := first.Ack(t.Context(), batch); err != nil {
		t.Errorf("Ack = %v", err)
	}
	waitForPosition(t, brokers, topic, topic, 1)
	began = time.Now()
	if err := first.Close(); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("Close = %v after %s, want nil within 3s", err, time.Since(began))
	}
}

func waitForState(t *testing.T, brokers, group, want string) {
	t.Helper()
	deadline := time.Now().Add(relaytest.Patience())
	for {
		res, err := rawClient(brokers).DescribeGroups(t.Context(), &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
		if err == nil && len(res.Groups) == 1 && res.Groups[0].GroupState == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the group never was in state %s: %+v, %v", want, res, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// "latest" begins behind what is there, and keeps to that place.
func TestLatest(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopic(t, brokers, 1)
	write := func(from, to int) {
		var records []kafka.Message
		for i := from; i <= to; i++ {
			m := relaytest.Message(i, "k")
			records = append(records, rawRecord(&m))
		}
		writeRaw(t, brokers, topic, records...)
	}
	write(1, 10)
	config := map[string]any{"brokers": brokers, "topic": []string{topic}, "auto_offset_reset": "latest"}
	src := openSource(t, config).(*source)
	if group := src.cfg.GroupID; group != "pgtrickle-relay.default.test" {
		t.Errorf("group = %q", group)
	}
	_ = src.Close()
	config["group_id"] = topic
	src = openSource(t, config).(*source)
	waitForPosition(t, brokers, topic, topic, 10)
	_ = src.Close() // before it has received anything
	write(11, 12)
	got, err := openSource(t, config).Receive(t.Context(), 10)
	if err != nil || len(got) == 0 || got[0].ID != "outbox_orders:11:0" {
		t.Fatalf("Receive = %v, %v; want message 11 first", got, err)
	}
}

func waitForPosition(t *testing.T, brokers, group, topic string, want int64) {
	t.Helper()
	deadline := time.Now().Add(relaytest.Patience())
	for {
		res, err := rawClient(brokers).OffsetFetch(t.Context(), &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: {0}}})
		if err == nil && len(res.Topics[topic]) == 1 && res.Topics[topic][0].CommittedOffset == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the group's position never became %d: %+v, %v", want, res, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// TestLargeBufferIsNotKept: a lane keeps the buffer of usual requests, and not that of a
// large message. Each pipeline has several lanes.
func TestLargeBufferIsNotKept(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	s := openSink(t, map[string]any{
		"brokers": brokers, "topic": newTopicName(), "create_if_missing": true, "max_message_bytes": 3 * maxKept,
	}).(*sink)
	for size, kept := range map[int]bool{1 << 10: true, maxKept + 1: false} {
		m := relaytest.Message(size, "k")
		m.Body = make([]byte, size)
		if err := s.Publish(t.Context(), []relay.Message{m}); err != nil {
			t.Fatal(err)
		}
		if n := s.lanes[0].buf.Cap(); (n > 0) != kept {
			t.Errorf("a buffer of %d bytes is kept after a body of %d", n, size)
		}
	}
}
