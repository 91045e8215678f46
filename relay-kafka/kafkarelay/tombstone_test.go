package kafkarelay

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// With on_tombstone skip, a record without a value is no message.
func TestSourceTombstones(t *testing.T) {
	brokers := relaytest.Endpoint(t, "RELAY_TEST_KAFKA_BROKERS")
	for policy, want := range map[string][]string{"delete": {"event", "delete", "event"}, "skip": {"event", "event"}} {
		topic := newTopic(t, brokers, 1)
		writeRaw(t, brokers, topic, kafka.Message{Key: []byte("7"), Value: []byte("1")}, kafka.Message{Key: []byte("7")},
			kafka.Message{Key: []byte("7"), Value: []byte("2")})
		s := openSource(t, map[string]any{"brokers": brokers, "topic": topic, "group_id": topic, "on_tombstone": policy})
		var got []relay.Message
		for len(got) < len(want) {
			batch, err := s.Receive(t.Context(), 10)
			if relay.IsFatal(err) || t.Context().Err() != nil {
				t.Fatal(err)
			}
			got = append(got, batch...)
		}
		for i, m := range got {
			if m.Op != want[i] || (m.Op == relay.OpDelete && string(m.Row) != "7") {
				t.Errorf("%s: message %d = op %q, row %q; want op %q", policy, i, m.Op, m.Row, want[i])
			}
		}
	}
}

// Whether a tombstone is written goes by the key tombstones, and with auto by the topic.
func TestTombstonePolicy(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topics := make(map[string]string)
	for _, policy := range []string{"delete", "compact", "compact,delete"} {
		topics[policy] = newTopicName()
		createTopic(t, brokers, topics[policy], 1, policy)
	}
	for name, tc := range map[string]struct {
		tombstones, policy string
		want               bool
		note               string
	}{
		"existing":           {policy: "compact", note: "WARNING: topic"},
		"never":              {tombstones: "never", policy: "delete"},
		"always":             {tombstones: "always", policy: "delete", want: true},
		"auto":               {tombstones: "auto", policy: "delete", note: "writes no tombstones"},
		"auto, compact":      {tombstones: "auto", policy: "compact", want: true, note: "writes a tombstone"},
		"auto, compact too":  {tombstones: "auto", policy: "compact,delete", want: true, note: "writes a tombstone"},
		"a row's topic":      {tombstones: "auto", policy: "{row.topic}", want: true},
		"a row's lost topic": {tombstones: "auto", policy: "lost", want: true}, // it is refused as its event is
	} {
		t.Run(name, func(t *testing.T) {
			topic, m := topics[tc.policy], relaytest.Message(1, "k")
			if topic == "" {
				topic, m.Row = "{row.topic}", mustJSON(map[string]any{"topic": topics["compact"], "n": 1})
			}
			if tc.policy == "lost" {
				m.Row = mustJSON(map[string]any{"topic": "relaytest-lost"})
			}
			config := map[string]any{"brokers": brokers, "topic": topic}
			if tc.tombstones != "" {
				config["tombstones"] = tc.tombstones
			}
			s := openSink(t, config)
			for range 2 {
				gone := m.Tombstone("k")
				if got, err := s.(relay.Tombstoner).Tombstones(t.Context(), &gone); err != nil || got != tc.want {
					t.Errorf("Tombstones = %t, %v; want %t", got, err, tc.want)
				}
			}
			notes := s.(relay.Noter).Notes(t.Context())
			if (len(notes) > 0) != (tc.note != "") || tc.note != "" && !strings.HasPrefix(notes[0], tc.note) {
				t.Errorf("Notes = %q, want %q", notes, tc.note)
			}
		})
	}
}

// A sink that is killed between an event and its tombstone finds the event alone. After
// the tombstone it finds both, so neither is written twice.
func TestTombstoneIsReadBack(t *testing.T) {
	brokers := relaytest.Endpoint(t, brokersEnv)
	topic := newTopicName()
	createTopic(t, brokers, topic, 3, "compact")
	config := map[string]any{"brokers": brokers, "topic": topic, "tombstones": "auto"}
	first := openSink(t, config)
	at, err := first.(relay.Resumer).Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := relaytest.Message(1, "k")
	m.Op = relay.OpDelete
	gone := m.Tombstone(m.EndedKey())
	want := []string{m.ID}
	for _, next := range []relay.Message{m, gone} {
		if err := openSink(t, config).Publish(t.Context(), []relay.Message{next}); err != nil {
			t.Fatal(err)
		}
		want = append(want[:0], readIDs(t, brokers, topic)...)
		var got []string
		if err := openSink(t, config).(relay.Resumer).Resume(t.Context(), at, func(id string) {
			if !slices.Contains(got, id) {
				got = append(got, id)
			}
		}); err != nil || !slices.Equal(got, want) || got[len(got)-1] != next.ID {
			t.Errorf("read back %q, %v; want %q", got, err, want)
		}
	}
	arrived := readRaw(t, brokers, topic, 2)
	if last := arrived[1]; last.Body != nil || last.Key != "k" || last.Op != relay.OpDelete {
		t.Errorf("the tombstone is %+v", last)
	}
}

func readIDs(t testing.TB, brokers, topic string) (ids []string) {
	for _, m := range readRaw(t, brokers, topic, 1) {
		ids = append(ids, m.ID)
	}
	return ids
}

// A sink that may write to a topic and not read its settings writes no tombstones. It
// warns, and the command check does.
func testTombstonesDenied(t *testing.T, b *broker) {
	topic := newTopicName()
	createTopic(t, b.plain, topic, 1, "compact")
	res, err := rawClient(b.plain).CreateACLs(t.Context(), &kafka.CreateACLsRequest{ACLs: []kafka.ACLEntry{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ResourcePatternType: kafka.PatternTypeLiteral,
		Principal: "User:bob", Host: "*", Operation: kafka.ACLOperationTypeWrite, PermissionType: kafka.ACLPermissionTypeAllow,
	}}})
	if err != nil || len(res.Errors) != 1 || res.Errors[0] != nil {
		t.Fatal(res, err)
	}
	var log bytes.Buffer
	env := testEnv()
	env.Logger = slog.New(slog.NewTextHandler(&log, nil))
	raw, _ := json.Marshal(map[string]any{
		"brokers": b.sasl, "topic": topic, "tls_ca": b.ca, "tombstones": "auto",
		"sasl_mechanism": "SCRAM-SHA-256", "sasl_username": "bob", "sasl_password": "bob-secret",
	})
	s, err := Backend().Sink.New(t.Context(), env, raw)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	m := relaytest.Message(1, "k")
	gone := m.Tombstone("k")
	for range 3 {
		if wanted, err := s.(relay.Tombstoner).Tombstones(t.Context(), &gone); wanted || err != nil {
			t.Errorf("Tombstones = %t, %v; want false", wanted, err)
		}
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, log.String())
	}
	notes := s.(relay.Noter).Notes(t.Context())
	if len(notes) != 1 || !strings.Contains(notes[0], "WARNING: no tombstones are written: ask for cleanup.policy of topic") ||
		!strings.Contains(notes[0], "allow DescribeConfigs") {
		t.Errorf("Notes = %q", notes)
	}
	if err := s.Publish(t.Context(), []relay.Message{m}); err != nil {
		t.Errorf("Publish = %v", err)
	}
}
