package kafkarelay

// tracker knows which messages of a partition are settled. Messages may be
// acknowledged in any order; the position is behind the last one before which
// none is open.
type tracker struct {
	offsets   []int64 // of the messages that were handed out, from base on
	done      []bool
	base      int // number of the first of these, counted from the beginning
	position  int64
	committed int64
}

// hand notes that the message at offset is handed out, and returns its number.
func (t *tracker) hand(offset int64) int {
	t.offsets = append(t.offsets, offset)
	t.done = append(t.done, false)
	return t.base + len(t.offsets) - 1
}

// settle notes that message number is settled.
func (t *tracker) settle(number int) {
	i := number - t.base
	if i < 0 || t.done[i] {
		return // acknowledged twice
	}
	t.done[i] = true
	n := 0
	for n < len(t.done) && t.done[n] {
		t.position = t.offsets[n] + 1
		n++
	}
	if n == len(t.done) {
		t.offsets, t.done = t.offsets[:0], t.done[:0]
	} else {
		t.offsets, t.done = t.offsets[n:], t.done[n:]
	}
	t.base += n
}

// open returns how many messages are handed out and not settled, at most.
func (t *tracker) open() int { return len(t.offsets) }
