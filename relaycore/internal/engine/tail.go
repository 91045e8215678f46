package engine

import "github.com/grove/pgtrickle-relay/relaycore/relay"

// tail is what a predecessor had published beyond its last checkpoint, and so
// what is not to be published again.
//
// Until the source has delivered all of it, the sink's position stays where it
// was: should this owner be killed while some of it is in no checkpoint, the next
// one has to find that again.
type tail struct {
	expects func(id string) bool // nil where nobody knows
	ids     map[string]bool      // whether the source is to deliver it still
	open    int                  // how many of ids it is
	every   int                  // messages between two looks at what will not come
	left    int                  // of them
}

func newTail(src relay.Source) tail {
	t := tail{ids: make(map[string]bool), every: 2 * maxUncommitted}
	if e, ok := src.(Expecter); ok {
		t.expects, t.every = e.Expects, maxUncommitted/5
	}
	t.left = t.every
	return t
}

// found takes up an id that was read back.
func (t *tail) add(id string) {
	if t.has(id) {
		return
	}
	expected := t.expects == nil || t.expects(id)
	t.ids[id] = expected
	if expected {
		t.open++
	}
}

func (t *tail) has(id string) bool {
	_, ok := t.ids[id]
	return ok
}

// take reports whether id was found, and lets go of it.
func (t *tail) take(id string) bool {
	expected, ok := t.ids[id]
	if expected {
		t.open--
	}
	delete(t.ids, id)
	return ok
}

// takeExpected is take for what the source has given. An id that it was not to give any
// more stands for another message now: the table's ids have begun again.
func (t *tail) takeExpected(id string) bool { return t.ids[id] && t.take(id) }

// passed says that so many messages have come by. It forgets what will not come
// any more; where nobody knows, all that has not come by then.
func (t *tail) passed(messages int) {
	if len(t.ids) == 0 {
		return
	}
	if t.left -= messages; t.left > 0 {
		return
	}
	t.left = t.every
	for id := range t.ids {
		if t.expects == nil || !t.expects(id) {
			t.take(id)
		}
	}
}
