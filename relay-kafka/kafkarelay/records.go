package kafkarelay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
)

// kafka-go decodes the batches of a fetch with the counts and lengths that they state. A
// negative one ends the process, and so does a large one. The formats are those of Kafka's
// documentation, under "Message Format".

const (
	batchPrefix = 12 // base offset, and the length of the rest
	batchMagic  = 16
	batchHeader = 49 // of a batch of version 2, from its prefix to its records
	messageHead = 14 // of a message of version 0, from its prefix to its key

	minRecords = 1 << 18
	maxRecords = 1 << 24
)

// compressedRecords is how many records the compressed batches of a response may state. The
// client takes up to a hundred bytes for each before it looks for it.
func compressedRecords() int {
	return int(min(max(debug.SetMemoryLimit(-1)/256, minRecords), maxRecords))
}

// recordSet checks the batches of one partition. Of the last, the end may be missing.
func (w *walker) recordSet() {
	set := w.take(max(w.int(4), 0))
	for w.err == nil && len(set) > batchMagic {
		length := int(int32(binary.BigEndian.Uint32(set[8:])))
		if length > len(set)-batchPrefix {
			return
		}
		switch magic := set[batchMagic]; {
		case length < messageHead || magic == 2 && length < batchHeader:
			w.err = fmt.Errorf("a batch of %d bytes", length)
		case magic == 2:
			w.batch(set[batchPrefix : batchPrefix+length])
		case magic < 2:
			w.err = checkMessage(set[batchPrefix:batchPrefix+length], magic)
		default:
			return // which the client refuses
		}
		if w.err == nil {
			set = set[batchPrefix+length:]
		}
	}
}

func (w *walker) batch(b []byte) {
	count, compression := int(int32(binary.BigEndian.Uint32(b[batchHeader-4:]))), b[10]&7
	if compression != 0 { // what is in it is checked when it is decompressed
		if w.records += count; count < 0 || w.records > compressedRecords() {
			w.err = fmt.Errorf("compressed batches of %d records, of at most %d: lower kafka_fetch_max_bytes, or give the relay more memory",
				w.records, compressedRecords())
		}
		return
	}
	var c recordCheck
	if w.err = c.feed(b[batchHeader:]); w.err == nil {
		w.err = c.end()
	}
	if w.err == nil && (count < 0 || count > c.records) {
		w.err = fmt.Errorf("a count of %d where %d records are", count, c.records)
	}
}

// checkMessage checks a message of version 0 or 1. If its fields did not fill it, the client
// would take what is left for the next message.
func checkMessage(b []byte, magic byte) error {
	rest := b[6:] // behind checksum, magic and attributes
	if magic == 1 {
		rest = rest[min(8, len(rest)):] // the time
	}
	for range 2 { // key and value
		if len(rest) < 4 {
			return errIncomplete
		}
		n := max(int(int32(binary.BigEndian.Uint32(rest))), 0)
		if rest = rest[4:]; n > len(rest) {
			return errIncomplete
		}
		rest = rest[n:]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%d bytes behind a message", len(rest))
	}
	return nil
}

var errIncomplete = errors.New("a record is not complete")

// recordCheck goes through the records of a batch of version 2. A record begins with its
// length and a byte of attributes, its time and its offset. Key and value follow, then the
// number of headers, and each header as its name and value. All numbers are varints.
type recordCheck struct {
	records int // that were whole

	field   recordField // that comes next
	headers int64       // of the record, that are to come
	skip    int64       // bytes to the next field
	x       uint64      // the varint that is being read
	shift   uint
}

type recordField int

const (
	recordLength recordField = iota
	recordTime
	recordOffset
	recordKey
	recordValue
	recordHeaders
	headerName
	headerValue
)

// feed takes the next bytes.
func (c *recordCheck) feed(p []byte) error {
	for len(p) > 0 {
		if c.skip > 0 {
			n := min(c.skip, int64(len(p)))
			c.skip -= n
			p = p[n:]
			continue
		}
		b := p[0]
		p = p[1:]
		c.x |= uint64(b&0x7f) << c.shift
		if c.shift += 7; b >= 0x80 {
			if c.shift > 63 {
				return errors.New("a number of more than ten bytes")
			}
			continue
		}
		n := int64(c.x>>1) ^ -int64(c.x&1)
		c.x, c.shift = 0, 0
		c.next(max(n, 0))
	}
	return nil
}

func (c *recordCheck) next(n int64) {
	switch c.field {
	case recordLength:
		c.skip = 1 // the attributes
	case recordKey, recordValue, headerName, headerValue:
		c.skip = n
	case recordHeaders:
		c.headers = n
	case recordTime, recordOffset:
	}
	c.field++
	if c.field > headerValue {
		c.headers--
		c.field = headerName
	}
	if c.field == headerName && c.headers == 0 {
		c.records++
		c.field = recordLength
	}
}

// end reports whether the last record is whole.
func (c *recordCheck) end() error {
	if c.field != recordLength || c.skip > 0 || c.shift > 0 {
		return errIncomplete
	}
	return nil
}

// messageCheck goes through the messages of version 0 or 1 that are in a compressed one. The
// client copes with all lengths but negative ones.
type messageCheck struct {
	prefix []byte
	skip   int
}

func (c *messageCheck) feed(p []byte) error {
	for len(p) > 0 {
		if c.skip > 0 {
			n := min(c.skip, len(p))
			c.skip -= n
			p = p[n:]
			continue
		}
		n := min(batchPrefix-len(c.prefix), len(p))
		c.prefix = append(c.prefix, p[:n]...)
		p = p[n:]
		if len(c.prefix) < batchPrefix {
			continue
		}
		c.skip = int(int32(binary.BigEndian.Uint32(c.prefix[8:])))
		c.prefix = c.prefix[:0]
		if c.skip < messageHead {
			return fmt.Errorf("a message of %d bytes", c.skip)
		}
	}
	return nil
}

// end allows the last message to be incomplete, as brokers do.
func (c *messageCheck) end() error { return nil }
