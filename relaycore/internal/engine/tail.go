package engine

import "github.com/grove/pgtrickle-relay/relaycore/relay"

// tail has the messages that the last owner published beyond its last checkpoint. They
// are not published again.
//
// The sink's position stays in front of the tail until the source has delivered all of
// it. If this owner is killed before that, the next one reads the tail again.
type tail struct {
	expects func(id string) bool // nil if the source does not know
	ids     map[string]bool      // whether the source is to deliver it still
	open    int                  // how many of ids it is
	every   int                  // messages between two checks of what is expected
	left    int                  // of them
}

func newTail(src relay.Source) tail {
	t := tail{ids: make(map[string]bool), every: 2 * maxUncommitted}
	if e, ok := src.(Expecter); ok {
		t.expects = func(id string) bool { return e.Expects(relay.EventID(id)) }
		t.every = maxUncommitted / 5
	}
	t.left = t.every
	return t
}

// add adds an id that was read back.
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

// take reports whether id is in the tail, and removes it.
func (t *tail) take(id string) bool {
	expected, ok := t.ids[id]
	if expected {
		t.open--
	}
	delete(t.ids, id)
	return ok
}

// takeExpected is take for a message that the source delivers. An id that was no longer
// expected stands for another message: the ids of the table began again.
func (t *tail) takeExpected(id string) bool { return t.ids[id] && t.take(id) }

// passed records that so many messages came from the source. Now and then it removes
// the ids that are no longer expected; if the source does not know, all of them.
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
