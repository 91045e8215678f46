package kafkarelay

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// What aborted transactions wrote is passed over, whatever the order in which
// the answer lists them.
func TestAbortedTransactions(t *testing.T) {
	t.Parallel()
	data := func(producer int64, offsets ...int64) protocol.RecordReader {
		b := &protocol.RecordBatch{Attributes: protocol.Transactional, BaseOffset: offsets[0], ProducerID: producer}
		b.Records = protocol.NewRecordReader(records(offsets)...)
		return b
	}
	plain := func(offsets ...int64) protocol.RecordReader {
		return &protocol.RecordBatch{BaseOffset: offsets[0], ProducerID: -1, Records: protocol.NewRecordReader(records(offsets)...)}
	}
	end := func(producer, offset int64) protocol.RecordReader {
		return &protocol.ControlBatch{BaseOffset: offset, ProducerID: producer, Records: protocol.NewRecordReader(records([]int64{offset})...)}
	}
	for name, tc := range map[string]struct {
		from    int64
		aborted []fetch.ResponseTransaction // producer, first offset
		log     []protocol.RecordReader
		want    []int64
	}{
		"the later one ends first": {
			5,
			[]fetch.ResponseTransaction{{ProducerID: 2, FirstOffset: 10}, {ProducerID: 1, FirstOffset: 5}},
			[]protocol.RecordReader{data(1, 5, 6), plain(7), data(2, 10, 11), end(2, 12), data(1, 13), end(1, 14), plain(15)},
			[]int64{7, 15},
		},
		"one of two is committed": {
			0,
			[]fetch.ResponseTransaction{{ProducerID: 1, FirstOffset: 0}},
			[]protocol.RecordReader{data(1, 0), data(2, 1), end(2, 2), end(1, 3)},
			[]int64{1},
		},
		"a producer aborts, then commits": {
			0,
			[]fetch.ResponseTransaction{{ProducerID: 2, FirstOffset: 1}, {ProducerID: 1, FirstOffset: 0}},
			[]protocol.RecordReader{data(1, 0), data(2, 1), end(2, 2), end(1, 3), data(1, 4), end(1, 5)},
			[]int64{4},
		},
		"in the middle of one": {
			6,
			[]fetch.ResponseTransaction{{ProducerID: 2, FirstOffset: 7}, {ProducerID: 1, FirstOffset: 5}},
			[]protocol.RecordReader{data(1, 6), data(2, 7), end(2, 8), end(1, 9), plain(10)},
			[]int64{10},
		},
	} {
		f := fetcher{committed: true}
		s := &spot{place: place{topic: "t"}, offset: tc.from}
		p := &fetch.ResponsePartition{AbortedTransactions: tc.aborted, RecordSet: protocol.RecordSet{Records: &protocol.RecordStream{Records: tc.log}}}
		var got []int64
		err := f.walk(s, p, func(_ *spot, r *protocol.Record) error {
			got = append(got, r.Offset)
			return nil
		})
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("%s: records at %v, %v; want %v", name, got, err, tc.want)
		}
	}
}

func records(offsets []int64) []protocol.Record {
	out := make([]protocol.Record, len(offsets))
	for i, o := range offsets {
		out[i].Offset = o
	}
	return out
}

// testReadCommitted is the same with a broker's own transactions: two that overlap
// are aborted, the later one first.
func testReadCommitted(t *testing.T, b *broker) {
	topic := newTopic(t, b.plain, 1)
	early, late := begin(t, b, topic, "early"), begin(t, b, topic, "late")
	early.write(t, 1)
	late.write(t, 2)
	early.write(t, 3)
	late.end(t, false)
	early.end(t, false)
	kept := begin(t, b, topic, "kept")
	kept.write(t, 4)
	kept.end(t, true)
	last := relaytest.Message(5, "k")
	writeRaw(t, b.plain, topic, rawRecord(&last))
	for level, want := range map[string][]string{
		"read_committed":   {"outbox_orders:4:0", "outbox_orders:5:0"},
		"read_uncommitted": {"outbox_orders:1:0", "outbox_orders:2:0", "outbox_orders:3:0", "outbox_orders:4:0", "outbox_orders:5:0"},
	} {
		src := openSource(t, map[string]any{"brokers": b.plain, "topic": topic, "group_id": topic + level, "isolation_level": level})
		var got []string
		for !slices.Contains(got, last.ID) {
			var batch []relay.Message
			insist(t, "receive", func(ctx context.Context) (err error) {
				batch, err = src.Receive(ctx, 10)
				return err
			})
			for i := range batch {
				got = append(got, batch[i].ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: received %v, want %v", level, got, want)
		}
	}
}

// insist repeats do: a broker that was just started has no coordinators yet.
func insist(t testing.TB, what string, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), relaytest.Patience())
	defer cancel()
	for {
		err := do(ctx)
		if err == nil {
			return
		}
		if backoff.Sleep(ctx, 50*time.Millisecond) != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// transaction is a stranger's.
type transaction struct {
	client   *kafka.Client
	id       string
	topic    string
	producer producer
}

func begin(t testing.TB, b *broker, topic, name string) *transaction {
	t.Helper()
	x := &transaction{client: rawClient(b.plain), id: topic + "." + name, topic: topic}
	insist(t, "begin a transaction", func(ctx context.Context) error {
		res, err := x.client.InitProducerID(ctx, &kafka.InitProducerIDRequest{TransactionalID: x.id, TransactionTimeoutMs: 60_000, ProducerID: -1, ProducerEpoch: -1})
		if err == nil {
			err = res.Error
		}
		if err != nil {
			return err
		}
		x.producer = producer{id: int64(res.Producer.ProducerID), epoch: int16(res.Producer.ProducerEpoch)}
		return nil
	})
	insist(t, "add a partition to a transaction", func(ctx context.Context) error {
		res, err := x.client.AddPartitionsToTxn(ctx, &kafka.AddPartitionsToTxnRequest{
			TransactionalID: x.id, ProducerID: int(x.producer.id), ProducerEpoch: int(x.producer.epoch),
			Topics: map[string][]kafka.AddPartitionToTxn{topic: {{Partition: 0}}},
		})
		if err != nil {
			return err
		}
		return res.Topics[topic][0].Error
	})
	return x
}

// write writes message n, in a batch of its own.
func (x *transaction) write(t testing.TB, n int) {
	t.Helper()
	m := relaytest.Message(n, "k")
	var out bytes.Buffer
	w := batchWriter{attributes: protocol.Transactional}
	p := &partition{topic: &topic{name: x.topic}, producer: x.producer}
	if err := w.write(&out, []relay.Message{m}, []int32{0}, p, time.Now()); err != nil {
		t.Fatal(err)
	}
	x.producer.advance(1)
	insist(t, "write into a transaction", func(ctx context.Context) error {
		res, err := x.client.RawProduce(ctx, &kafka.RawProduceRequest{
			Topic: x.topic, RequiredAcks: kafka.RequireAll, TransactionalID: x.id, RawRecords: protocol.RawRecordSet{Reader: bytes.NewReader(out.Bytes())},
		})
		if err != nil {
			return err
		}
		return res.Error
	})
}

func (x *transaction) end(t testing.TB, commit bool) {
	t.Helper()
	insist(t, "end a transaction", func(ctx context.Context) error {
		res, err := x.client.EndTxn(ctx, &kafka.EndTxnRequest{
			TransactionalID: x.id, ProducerID: int(x.producer.id), ProducerEpoch: int(x.producer.epoch), Committed: commit,
		})
		if err != nil {
			return err
		}
		return res.Error
	})
}
