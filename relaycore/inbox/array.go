package inbox

import "encoding/binary"

// array builds the binary form of a one-dimensional PostgreSQL array in a buffer
// that is used again for the next batch.
type array struct {
	buf   []byte
	count uint32
	nulls uint32

	uniform bool   // all elements so far are same, and not in buf
	same    string // "" stands for null
	text    []byte // same, when the array is finished
}

const (
	arrayHeader = 20
	keepBuffer  = 2 << 20 // a buffer that has grown beyond this is given back
	null        = 0xffffffff
)

func (a *array) reset(elem uint32, uniform bool) {
	if cap(a.buf) > keepBuffer {
		a.buf = nil
	}
	a.count, a.nulls, a.uniform = 0, 0, uniform
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

// appendBytes appends b, or null when it is nil.
func (a *array) appendBytes(b []byte) {
	if b == nil {
		a.appendNull()
		return
	}
	a.count++
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(b))) //nolint:gosec // as above
	a.buf = append(a.buf, b...)
}

// append appends s, or null when it is empty, for as long as it can without
// writing anything.
func (a *array) append(s string) {
	if a.uniform {
		if a.count == 0 {
			a.same = s
		}
		if s == a.same {
			a.count++
			return
		}
		a.uniform = false
		n := a.count
		a.count = 0
		for range n {
			a.appendStringOrNull(a.same)
		}
	}
	a.appendStringOrNull(s)
}

// finish returns the array, and the element that all of it would be if there was
// an array. Both are valid until the next reset.
func (a *array) finish() (elements, constant []byte) {
	const noElements = 12 // bytes of an array without dimensions
	if !a.uniform {
		binary.BigEndian.PutUint32(a.buf[4:], a.nulls)
		binary.BigEndian.PutUint32(a.buf[12:], a.count)
		return a.buf, nil
	}
	binary.BigEndian.PutUint32(a.buf[0:], 0)
	if a.same != "" {
		a.text = append(a.text[:0], a.same...)
		constant, a.same = a.text, ""
	}
	return a.buf[:noElements], constant
}
