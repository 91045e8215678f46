package kafkarelay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"runtime"
	"testing"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/fetch"
)

// fetched is a response to a fetch of one partition that returns a record set.
func fetched(set []byte) []byte {
	b := make([]byte, 10) // throttle, error, session
	b = binary.BigEndian.AppendUint32(b, 1)
	b = append(b, "\x00\x01t"...)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = append(b, make([]byte, 4+2+8+8+8)...) // partition, error, three offsets
	b = binary.BigEndian.AppendUint32(b, 0)   // aborted transactions
	b = append(b, make([]byte, 4)...)         // preferred replica
	b = binary.BigEndian.AppendUint32(b, uint32(len(set)))
	return frame(7, append(b, set...))
}

// batchOf is a batch of records as kafka-go writes it.
func batchOf(t testing.TB, version int8, codec protocol.Attributes, records ...protocol.Record) []byte {
	t.Helper()
	var b bytes.Buffer
	set := protocol.RecordSet{Version: version, Attributes: codec, Records: protocol.NewRecordReader(records...)}
	if _, err := set.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[4:]
}

// sum makes the checksum of a batch of version 2 right.
func sum(batch []byte) []byte {
	binary.BigEndian.PutUint32(batch[8:], uint32(len(batch)-batchPrefix))
	binary.BigEndian.PutUint32(batch[17:], crc32.Checksum(batch[21:], crc32.MakeTable(crc32.Castagnoli)))
	return batch
}

// read returns the records of a fetch that a guard passes.
func read(t testing.TB, answer []byte) (n int, err error) {
	t.Helper()
	message, err := ask(t, 11, &fetch.Request{}, answer)
	if err != nil {
		return 0, err
	}
	for _, topic := range message.(*fetch.Response).Topics {
		for i := range topic.Partitions {
			records := topic.Partitions[i].RecordSet.Records
			for records != nil {
				if _, err := records.ReadRecord(); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					return n, err
				}
				n++
			}
		}
	}
	return n, nil
}

func TestGuardPassesRecords(t *testing.T) {
	boundCodecs()
	record := func(header bool) protocol.Record {
		r := protocol.Record{Key: protocol.NewBytes([]byte("k")), Value: protocol.NewBytes(bytes.Repeat([]byte("v"), 300))}
		if header {
			r.Headers = []protocol.Header{{Key: "h", Value: []byte("x")}, {Key: "n"}}
		}
		return r
	}
	for name, codec := range map[string]protocol.Attributes{
		"none": 0, "gzip": protocol.Gzip, "snappy": protocol.Snappy, "lz4": protocol.Lz4, "zstd": protocol.Zstd,
	} {
		for _, version := range []int8{1, 2} {
			var set []byte
			for range 3 {
				set = append(set, batchOf(t, version, codec, record(version == 2), protocol.Record{}, record(false))...)
			}
			if n, err := read(t, fetched(set)); n != 9 || err != nil {
				t.Errorf("%s, version %d: %d records of 9, %v", name, version, n, err)
			}
			if n, err := read(t, fetched(set[:len(set)-5])); version == 2 && (n != 6 || err != nil) {
				t.Errorf("%s, version %d, without its end: %d records of 6, %v", name, version, n, err)
			}
		}
	}
}

// TestGuardRefusesRecords: batches whose checksum is right, and whose counts and lengths
// would end the process or take gigabytes.
func TestGuardRefusesRecords(t *testing.T) {
	boundCodecs()
	batch := func() []byte {
		return batchOf(t, 2, 0, protocol.Record{Value: protocol.NewBytes([]byte("v")), Headers: []protocol.Header{{Key: "h", Value: []byte("x")}}})
	}
	records := []byte("\x16\x00\x00\x00\x01\x02v\x02\x02h\x02x")
	with := func(codec protocol.Attributes, records string) []byte {
		b := batch()[:batchPrefix+batchHeader]
		var body bytes.Buffer
		w := codec.Compression().Codec().NewWriter(&body)
		_, _ = io.WriteString(w, records)
		_ = w.Close()
		b[22] = byte(codec)
		return sum(append(b, body.Bytes()...))
	}
	count := func(n int32) []byte {
		b := batch()
		binary.BigEndian.PutUint32(b[57:], uint32(n))
		return sum(b)
	}
	huge := "\xfe\xff\xff\xff\xff\xff\xff\x7f" // 2^55 - 1, as a varint
	plain := func(records string) []byte { return sum(append(batch()[:batchPrefix+batchHeader], records...)) }
	if n, err := read(t, fetched(plain(string(records)))); n != 1 || err != nil {
		t.Fatalf("the usual batch has %d records, %v", n, err)
	}
	wrapped := batchOf(t, 1, protocol.Gzip, protocol.Record{Value: protocol.NewBytes([]byte("v"))})
	for name, set := range map[string][]byte{
		"no count":                 count(-1),
		"the largest count":        count(1<<31 - 1),
		"a count of two":           count(2),
		"many headers":             plain("\x16\x00\x00\x00\x01\x02v" + huge),
		"a long name of a header":  plain("\x16\x00\x00\x00\x01\x02v\x02" + huge + "h"),
		"a long value":             plain("\x16\x00\x00\x00\x01" + huge + "v\x00"),
		"many headers, compressed": with(protocol.Zstd, "\x16\x00\x00\x00\x01\x02v"+huge),
		"a long name, compressed":  with(protocol.Gzip, "\x16\x00\x00\x00\x01\x02v\x02"+huge+"h"),
		"the largest count compressed": func() []byte {
			b := with(protocol.Gzip, string(records))
			binary.BigEndian.PutUint32(b[57:], 1<<31-1)
			return sum(b)
		}(),
		"a batch without a length": func() []byte { b := batch(); binary.BigEndian.PutUint32(b[8:], 1<<32-5); return b }(),
		"a batch behind a message": func() []byte { // whose rest the client takes for the next batch
			b := batchOf(t, 1, 0, protocol.Record{Value: protocol.NewBytes([]byte("v"))})
			evil := count(-1)
			binary.BigEndian.PutUint32(b[8:], uint32(len(b)-batchPrefix+len(evil)))
			return append(b, evil...)
		}(),
		"a batch behind compressed records": func() []byte {
			b := with(protocol.Gzip, string(records))
			return sum(append(b, count(-1)...))
		}(),
		"a message in a message, of no length": func() []byte {
			return wrap(t, wrapped, func(inner []byte) { binary.BigEndian.PutUint32(inner[8:], 1<<32-1) })
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			n, err := read(t, fetched(set))
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > 8<<20 {
				t.Errorf("%d MiB were allocated", took>>20)
			}
			if err == nil && n > 1 {
				t.Errorf("%d records", n)
			}
			t.Log(n, err)
		})
	}
}

// wrap changes the messages in a compressed message, and compresses them again.
func wrap(t *testing.T, message []byte, change func(inner []byte)) []byte {
	t.Helper()
	value := message[batchPrefix+messageHead+8:] // version 1 has a time, and the key is null
	r := protocol.Gzip.Compression().Codec().NewReader(protocol.NewBytes(value))
	inner, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	change(inner)
	var body bytes.Buffer
	w := protocol.Gzip.Compression().Codec().NewWriter(&body)
	_, _ = w.Write(inner)
	_ = w.Close()
	b := append([]byte(nil), message[:batchPrefix+messageHead+8]...)
	binary.BigEndian.PutUint32(b[len(b)-4:], uint32(body.Len()))
	b = append(b, body.Bytes()...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-batchPrefix))
	binary.BigEndian.PutUint32(b[12:], crc32.ChecksumIEEE(b[16:]))
	return b
}

// FuzzRecords lets kafka-go decode any records in a batch whose checksum is right.
func FuzzRecords(f *testing.F) {
	boundCodecs()
	f.Add(uint8(0), int32(1), []byte("\x16\x00\x00\x00\x01\x02v\x02\x02h\x02x"))
	f.Add(uint8(1), int32(1), []byte("\x16\x00\x00\x00\x01\x02v\x00"))
	f.Fuzz(func(t *testing.T, attributes uint8, count int32, records []byte) {
		b := make([]byte, batchPrefix+batchHeader)
		b[batchMagic], b[22] = 2, attributes
		binary.BigEndian.PutUint32(b[57:], uint32(count))
		if codec := protocol.Attributes(attributes).Compression().Codec(); codec != nil {
			var body bytes.Buffer
			w := codec.NewWriter(&body)
			_, _ = w.Write(records)
			_ = w.Close()
			records = body.Bytes()
		}
		_, _ = read(t, fetched(sum(append(b, records...))))
	})
}
