package relay

// Lanes splits a batch into lanes, one for each key. A sink sends the messages of one
// lane one after the other, and different lanes side by side. A message without a key
// is a lane of its own.
//
// Lanes can be used again for the next batch and then allocates nothing, unless
// that batch has more lanes. After a split, First and Next may be called from
// several goroutines.
type Lanes struct {
	first []int32          // of each lane
	next  []int32          // by index: the next message of the lane, or -1
	last  map[string]int32 // by key: the last message of the lane
}

// Split splits batch by key.
func (l *Lanes) Split(batch []Message) {
	l.Reset(len(batch))
	for i := range batch {
		l.Add(i, batch[i].Key)
	}
}

// Reset starts again, with a batch of n messages of which none is in a lane.
// Reset(0) releases the keys of the batch before.
func (l *Lanes) Reset(n int) {
	if cap(l.next) < n {
		l.next = make([]int32, n)
	}
	l.first, l.next = l.first[:0], l.next[:n]
	clear(l.last)
}

// Add appends message i to the lane of key, or makes it a lane of its own if key is
// empty. Messages are added in the order of the batch. A message that is not added
// is in no lane.
func (l *Lanes) Add(i int, key string) {
	last, ok := l.last[key]
	l.add(i, last, ok)
	if key != "" {
		if l.last == nil {
			l.last = make(map[string]int32)
		}
		l.last[key] = l.at(i)
	}
}

// AddBytes is Add for a key that the caller rendered into a buffer. It copies the
// key only when it begins a lane.
func (l *Lanes) AddBytes(i int, key []byte) {
	last, ok := l.last[string(key)]
	l.add(i, last, ok)
	if len(key) > 0 {
		if l.last == nil {
			l.last = make(map[string]int32)
		}
		l.last[string(key)] = l.at(i)
	}
}

func (l *Lanes) add(i int, last int32, ok bool) {
	l.next[i] = -1
	if ok {
		l.next[last] = l.at(i)
	} else {
		l.first = append(l.first, l.at(i))
	}
}

func (*Lanes) at(i int) int32 { return int32(i) }

// Len returns the number of lanes.
func (l *Lanes) Len() int { return len(l.first) }

// First returns the index of the first message of a lane.
func (l *Lanes) First(lane int) int { return int(l.first[lane]) }

// Next returns the index of the message after message i in its lane, or -1.
func (l *Lanes) Next(i int) int { return int(l.next[i]) }
