// Package tail holds the ids of the messages that a pipeline's last owner published beyond
// its last checkpoint. They were read back from the far end, and are not published again.
package tail

// Tail is the set of their ids. It is used by one goroutine.
//
// The sink's position stays before the tail until the source has delivered all of
// it. If this owner is killed before that, the next one reads the tail again.
type Tail struct {
	expects func(id string) (expected, known bool)
	ids     map[string]bool // whether the source is to deliver it still
	open    int             // how many of ids it is
	every   int             // messages between two checks of what is expected
	left    int             // of them
	unsure  int             // messages until the ids that the source does not know are removed
}

// New returns an empty tail. Now and then the ids that the source no longer expects are
// removed. Behind horizon messages, all that was beyond the last checkpoint has come again.
// Then the ids are removed that the source does not know: their messages may be gone, and
// the sink's position must not wait for them. If expects is nil, it knows none.
func New(expects func(id string) (expected, known bool), horizon int) Tail {
	if expects == nil {
		expects = func(string) (bool, bool) { return true, false }
	}
	every := max(horizon/10, 1)
	return Tail{expects: expects, ids: make(map[string]bool), every: every, left: every, unsure: horizon}
}

// Open returns how many messages of the tail the source is to deliver still.
func (t *Tail) Open() int { return t.open }

// Add adds an id that was read back.
func (t *Tail) Add(id string) {
	if t.Has(id) {
		return
	}
	expected, _ := t.expects(id)
	t.ids[id] = expected
	if expected {
		t.open++
	}
}

// Has reports whether id is in the tail.
func (t *Tail) Has(id string) bool {
	_, ok := t.ids[id]
	return ok
}

// Take reports whether id is in the tail, and removes it.
func (t *Tail) Take(id string) bool {
	expected, ok := t.ids[id]
	if expected {
		t.open--
	}
	delete(t.ids, id)
	return ok
}

// TakeExpected is Take for a message that the source delivers. An id that was no longer
// expected stands for another message: the ids of the table began again.
func (t *Tail) TakeExpected(id string) bool { return t.ids[id] && t.Take(id) }

// Passed records that so many messages came from the source.
func (t *Tail) Passed(messages int) {
	if len(t.ids) == 0 {
		return
	}
	t.unsure -= messages
	if t.left -= messages; t.left > 0 {
		return
	}
	t.left = t.every
	for id := range t.ids {
		if expected, known := t.expects(id); !expected || !known && t.unsure <= 0 {
			t.Take(id)
		}
	}
}
