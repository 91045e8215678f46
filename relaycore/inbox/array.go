package inbox

import "encoding/binary"

// array builds the binary form of a one-dimensional PostgreSQL array in a buffer
// that is used again for the next batch.
type array struct {
	buf   []byte
	count uint32
	nulls uint32
	jsonb bool // elements begin with the version of jsonb's binary form
}

const (
	arrayHeader = 20
	keepBuffer  = 2 << 20 // a buffer that has grown beyond this is given back
	null        = 0xffffffff
	jsonbV1     = 1
)

func (a *array) reset(elem uint32) {
	if cap(a.buf) > keepBuffer {
		a.buf = nil
	}
	a.count, a.nulls, a.jsonb = 0, 0, elem == jsonbOID
	b := append(a.buf[:0], make([]byte, arrayHeader)...)
	binary.BigEndian.PutUint32(b[0:], 1) // dimensions
	binary.BigEndian.PutUint32(b[8:], elem)
	binary.BigEndian.PutUint32(b[16:], 1) // lower bound
	a.buf = b
}

func (a *array) appendString(s string) {
	a.count++
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(s))) //nolint:gosec // a message is far smaller than 4 GiB
	a.buf = append(a.buf, s...)
}

func (a *array) appendStringOrNull(s string) {
	if s == "" {
		a.appendNull()
		return
	}
	a.appendString(s)
}

func (a *array) appendNull() {
	a.count++
	a.nulls = 1
	a.buf = binary.BigEndian.AppendUint32(a.buf, null)
}

// appendPayload appends b in the binary form of the column's type.
func (a *array) appendPayload(b []byte) {
	if b == nil {
		a.appendNull()
		return
	}
	if !a.jsonb {
		a.count++
		a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(b))) //nolint:gosec // as above
		a.buf = append(a.buf, b...)
		return
	}
	a.count++
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(b)+1)) //nolint:gosec // as above
	a.buf = append(a.buf, jsonbV1)
	a.buf = append(a.buf, b...)
}

// finish returns the array, valid until the next reset.
func (a *array) finish() []byte {
	binary.BigEndian.PutUint32(a.buf[4:], a.nulls)
	binary.BigEndian.PutUint32(a.buf[12:], a.count)
	return a.buf
}
