package tail_test

import (
	"strconv"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine/tail"
)

// expects is a source that delivers the ids from a number on.
func expects(from *int) func(string) (bool, bool) {
	return func(id string) (bool, bool) {
		n, err := strconv.Atoi(id)
		return err == nil && n >= *from, true
	}
}

func TestTailIsOpenUntilTheSourceDelivered(t *testing.T) {
	t.Parallel()
	from := 10
	p := tail.New(expects(&from), 100)
	for _, id := range []string{"9", "10", "11", "11"} {
		p.Add(id)
	}
	if p.Open() != 2 {
		t.Fatalf("%d messages are open, want 2: 9 is settled, and 11 came twice", p.Open())
	}
	if !p.TakeExpected("10") || p.TakeExpected("10") {
		t.Error("10 must be taken once")
	}
	if p.TakeExpected("9") {
		t.Error("9 was taken; the source began again with that id, so it is another message")
	}
	if !p.Take("9") || p.Open() != 1 || !p.Has("11") {
		t.Errorf("after 9 was taken: %d open, has 11: %v; want 1 and true", p.Open(), p.Has("11"))
	}
}

func TestTailForgets(t *testing.T) {
	t.Parallel()
	from := 10
	known, unknown := tail.New(expects(&from), 100), tail.New(nil, 100)
	for _, p := range []*tail.Tail{&known, &unknown} {
		p.Add("10")
		p.Add("12")
		p.Passed(99)
		if p.Open() != 2 {
			t.Fatalf("after 99 messages, %d are open; want 2", p.Open())
		}
		from = 11
		p.Passed(10)
		from = 10
	}
	if known.Has("10") || !known.Has("12") || known.Open() != 1 {
		t.Error("of a source that expects 12 alone, 12 alone must stay")
	}
	if unknown.Has("12") || unknown.Open() != 0 {
		t.Error("of a source that does not know, nothing may stay")
	}
}
