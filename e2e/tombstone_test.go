package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/grove/pgtrickle-relay/e2e/internal/ends"
	"github.com/grove/pgtrickle-relay/e2e/internal/rig"
)

// TestTombstonesAfterKill changes the keys of rows. That is an event of the new key and a
// tombstone of the old one, mostly in different partitions. The relay is killed as soon as
// the first of them are in the topic, so that events are there without their tombstones.
// The topic takes one event of 32 kB a request, so each partition has its own pace. Larger
// rows are read one by one, and then each batch may have one change only. After the restart
// each event and each tombstone is there once.
func TestTombstonesAfterKill(t *testing.T) {
	const rows, kills = 100, 4
	k := ends.Kinds()[1]
	p := binary(t, k.Binary)
	db, end := newCase(t, k, "tombstones", p)
	topic := end.Sink()["topic"].(string)
	limit(t, topic, 40_000)
	db.Forward(t, "out", k.Name, end.Sink(), map[string]any{"kafka_tombstones": "always"})
	db.Exec(t, `INSERT INTO events SELECT i, 'a' || i, 1, (SELECT string_agg(md5(i || '-' || j), '') FROM generate_series(1, 1000) j)
		FROM generate_series(1, $1::int) i`, rows*kills)
	relay := p.Start(t, db.URL, rig.Options{})
	delivered := func() {
		t.Helper()
		rig.Until(t, patience, "delivery", func(ctx context.Context) (bool, error) { return db.Forwarded(ctx, "out") })
	}
	delivered()

	between := 0
	for i := range kills {
		before := recordsOf(t, topic)
		db.Exec(t, `UPDATE events SET k = 'b' || id, seq = 2 WHERE id BETWEEN $1::int + 1 AND $1::int + $2::int`, i*rows, rows)
		for recordsOf(t, topic) < before+20 { // the first change goes alone
		}
		relay.Kill()
		alone, missing, twice := tombstones(t, end, (i+1)*rows)
		t.Logf("killed at %d records of %d: %d changes half there, %d missing, %d twice", recordsOf(t, topic), before, alone, missing, twice)
		between += alone
		relay = p.Start(t, db.URL, rig.Options{})
		delivered()
	}
	if alone, missing, twice := tombstones(t, end, rows*kills); alone != 0 || missing != 0 || twice != 0 {
		t.Errorf("of %d changes a record is missing, of %d both; %d records are too many", alone, missing, twice)
	}
	if between == 0 {
		t.Error("the relay was never killed between an event and its tombstone")
	}
	t.Logf("%d changes; of %d the event or the tombstone was there alone when the relay was killed", rows*kills, between)
}

// limit sets the bytes that a batch of the topic may have.
func limit(t *testing.T, topic string, n int) {
	t.Helper()
	client := &kafka.Client{Addr: kafka.TCP(fleet.Server("kafka").URL), Timeout: 10 * time.Second}
	res, err := client.IncrementalAlterConfigs(t.Context(), &kafka.IncrementalAlterConfigsRequest{
		Resources: []kafka.IncrementalAlterConfigsRequestResource{{
			ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
			Configs: []kafka.IncrementalAlterConfigsRequestConfig{
				{Name: "max.message.bytes", Value: fmt.Sprint(n), ConfigOperation: kafka.ConfigOperationSet},
			},
		}},
	})
	if err == nil {
		err = res.Resources[0].Error
	}
	if err != nil {
		t.Fatal(err)
	}
}

// recordsOf counts the records of a topic.
func recordsOf(t *testing.T, topic string) (n int64) {
	t.Helper()
	var ask []kafka.OffsetRequest
	for p := range 4 {
		ask = append(ask, kafka.LastOffsetOf(p))
	}
	client := &kafka.Client{Addr: kafka.TCP(fleet.Server("kafka").URL), Timeout: 10 * time.Second}
	res, err := client.ListOffsets(t.Context(), &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{topic: ask}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Topics[topic] {
		n += p.LastOffset
	}
	return n
}

// tombstones looks at the changes of the rows up to last. It counts those whose event or
// tombstone is there alone, those that have neither, and records that are there twice.
func tombstones(t *testing.T, end ends.End, last int) (alone, missing, twice int) {
	t.Helper()
	arrived, err := end.Arrived(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	times := make(map[string]int)
	for _, r := range arrived {
		kind := "event "
		if r.Body == nil {
			kind = "tombstone "
			if !strings.HasPrefix(r.Key, "a") || times["event "+r.Key] == 0 {
				t.Errorf("a tombstone of key %s, before any event of it", r.Key)
			}
		}
		times[kind+r.Key]++
	}
	for i := 1; i <= last; i++ {
		event, tombstone := times[fmt.Sprint("event b", i)], times[fmt.Sprint("tombstone a", i)]
		if event+tombstone == 0 {
			missing++
		} else if event == 0 || tombstone == 0 {
			alone++
		}
		twice += max(event-1, 0) + max(tombstone-1, 0)
	}
	return alone, missing, twice
}
