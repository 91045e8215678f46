package kafkarelay

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"

	"github.com/segmentio/kafka-go/compress"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// producer is what numbers the batches of one partition: brokers drop a batch
// whose numbers they have seen.
type producer struct {
	id       int64 // -1: batches are not numbered
	epoch    int16
	sequence int32 // of the next record
}

func (p *producer) advance(records int) {
	p.sequence = int32((int64(p.sequence) + int64(records)) & (1<<31 - 1)) //nolint:gosec // wraps to 0 as the protocol wants
}

// Places in an encoded batch. The first four bytes are the length that precedes
// a record set in a produce request; the format itself is "record batch, v2".
const (
	atSize        = 0
	atBatchLength = 4 + 8
	atMagic       = 4 + 16
	atCRC         = 4 + 17
	atAttributes  = 4 + 21
	atLastOffset  = 4 + 23
	atBaseTime    = 4 + 27
	atMaxTime     = 4 + 35
	atProducer    = 4 + 43
	atCount       = 4 + 57
	headSize      = 4 + 61
)

// batchWriter encodes messages into record batches. Kafka-go's own encoder takes
// a slice of headers and several interfaces for each record; this one appends to
// a buffer that is used again.
type batchWriter struct {
	codec   compress.Codec // nil: none
	attrs   int16
	headers []relay.Header
	wire    []byte // the headers of one record, encoded
	plain   bytes.Buffer
}

// begin appends the head of a batch to dst; finish completes it.
func (*batchWriter) begin(dst []byte) []byte {
	return append(dst, make([]byte, headSize)...)
}

// record appends m as record n of a batch.
func (w *batchWriter) record(dst []byte, m *relay.Message, n int, topic string) []byte {
	w.encodeHeaders(m, topic)
	key := int64(len(m.Key))
	if key == 0 {
		key = -1
	}
	value := int64(len(m.Body))
	if m.Body == nil {
		value = -1
	}
	size := 1 + 1 + varintLen(int64(n)) + varintLen(key) + len(m.Key) + varintLen(value) + len(m.Body) + len(w.wire)
	dst = binary.AppendVarint(dst, int64(size))
	dst = append(dst, 0, 0) // attributes; milliseconds after the batch's time
	dst = binary.AppendVarint(dst, int64(n))
	dst = binary.AppendVarint(dst, key)
	dst = append(dst, m.Key...)
	dst = binary.AppendVarint(dst, value)
	dst = append(dst, m.Body...)
	return append(dst, w.wire...)
}

func (w *batchWriter) encodeHeaders(m *relay.Message, topic string) {
	w.headers = m.WireHeaders(w.headers[:0])
	count := int64(len(w.headers) + 1)
	for i := range w.headers {
		if w.headers[i].Name == relay.HeaderKey {
			count-- // the record's own key says it
		}
	}
	if m.Subject != topic {
		count++
	}
	b := binary.AppendVarint(w.wire[:0], count)
	b = appendHeader(b, relay.HeaderDedupKey, m.ID)
	if m.Subject != topic {
		b = appendHeader(b, relay.HeaderSubject, m.Subject)
	}
	for i := range w.headers {
		if h := &w.headers[i]; h.Name != relay.HeaderKey {
			b = appendHeader(b, h.Name, h.Value)
		}
	}
	w.wire = b
}

func appendHeader(b []byte, name, value string) []byte {
	b = binary.AppendVarint(b, int64(len(name)))
	if standard := lowerCase(name); standard != "" {
		b = append(b, standard...)
	} else {
		for i := range len(name) {
			c := name[i]
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			b = append(b, c)
		}
	}
	b = binary.AppendVarint(b, int64(len(value)))
	return append(b, value...)
}

// lowerCase returns a standard header's name as it is written, and "" for another.
func lowerCase(name string) string {
	switch name {
	case relay.HeaderDedupKey:
		return "pgtrickle-dedup-key"
	case relay.HeaderSubject:
		return "pgtrickle-subject"
	case relay.HeaderOp:
		return "pgtrickle-op"
	case relay.HeaderOutboxID:
		return "pgtrickle-outbox-id"
	case relay.HeaderFullRefresh:
		return "pgtrickle-full-refresh"
	case relay.HeaderContentType:
		return "content-type"
	case relay.HeaderTraceparent:
		return name
	}
	return ""
}

// recordSize is about what m takes in a batch.
func recordSize(m *relay.Message) int {
	n := len(m.Key) + len(m.Body) + len(m.ID) + len(m.Subject) + len(m.ContentType)
	for i := range m.Headers {
		n += len(m.Headers[i].Name) + len(m.Headers[i].Value)
	}
	return n
}

func varintLen(v int64) int {
	u := uint64(v)<<1 ^ uint64(v>>63) //nolint:gosec // zigzag
	n := 1
	for u >= 0x80 {
		u >>= 7
		n++
	}
	return n
}

// finish compresses the records of the batch that starts at buf[at] and fills in
// its head. It returns buf, cut to the batch's end.
func (w *batchWriter) finish(buf []byte, at, count int, p producer, nowMillis int64) ([]byte, error) {
	if w.codec != nil {
		w.plain.Reset()
		w.plain.Write(buf[at+headSize:])
		out := bytes.NewBuffer(buf[:at+headSize])
		zip := w.codec.NewWriter(out)
		if _, err := w.plain.WriteTo(zip); err != nil {
			return buf, err
		}
		if err := zip.Close(); err != nil {
			return buf, err
		}
		buf = out.Bytes()
	}
	b := buf[at:]
	big := binary.BigEndian
	big.PutUint32(b[atSize:], uint32(len(b)-4))                      //nolint:gosec // batches are far smaller
	big.PutUint64(b[4:], 0)                                          // base offset: the broker's business
	big.PutUint32(b[atBatchLength:], uint32(len(b)-atBatchLength-4)) //nolint:gosec // see above
	big.PutUint32(b[atBatchLength+4:], ^uint32(0))                   // leader epoch: unknown
	b[atMagic] = 2                                                   //
	big.PutUint16(b[atAttributes:], uint16(w.attrs))                 //nolint:gosec // a few bits
	big.PutUint32(b[atLastOffset:], uint32(count-1))                 //nolint:gosec // see above
	big.PutUint64(b[atBaseTime:], uint64(nowMillis))                 //nolint:gosec // after 1970
	big.PutUint64(b[atMaxTime:], uint64(nowMillis))                  //nolint:gosec // after 1970
	big.PutUint64(b[atProducer:], uint64(p.id))                      //nolint:gosec // -1 is all ones
	big.PutUint16(b[atProducer+8:], uint16(p.epoch))                 //nolint:gosec // not negative
	sequence := p.sequence                                           //
	if p.id < 0 {
		sequence = -1
	}
	big.PutUint32(b[atProducer+10:], uint32(sequence)) //nolint:gosec // -1 is all ones
	big.PutUint32(b[atCount:], uint32(count))          //nolint:gosec // see above
	big.PutUint32(b[atCRC:], crc32.Checksum(b[atAttributes:], castagnoli))
	return buf, nil
}

// murmur2 is the hash by which the Java client spreads keys, so that its
// producers and ours put a key into the same partition.
func murmur2(key string) uint32 {
	const m = 0x5bd1e995
	h := uint32(0x9747b28c) ^ uint32(len(key)) //nolint:gosec // as Java does
	for ; len(key) >= 4; key = key[4:] {
		k := uint32(key[0]) | uint32(key[1])<<8 | uint32(key[2])<<16 | uint32(key[3])<<24
		k *= m
		k ^= k >> 24
		k *= m
		h *= m
		h ^= k
	}
	switch len(key) {
	case 3:
		h ^= uint32(key[2]) << 16
		fallthrough
	case 2:
		h ^= uint32(key[1]) << 8
		fallthrough
	case 1:
		h ^= uint32(key[0])
		h *= m
	}
	h ^= h >> 13
	h *= m
	h ^= h >> 15
	return h
}

// partitionOf returns the partition of a key among n.
func partitionOf(key string, n int) int { return int(murmur2(key)&0x7fffffff) % n }

// validTopic reports whether a broker would take name for a topic.
func validTopic(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > 249 {
		return false
	}
	return strings.IndexFunc(name, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-'
	}) < 0
}
