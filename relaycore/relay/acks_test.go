package relay_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestAcks(t *testing.T) {
	t.Parallel()
	var acks relay.Acks[string]
	a, b, c := acks.Add("a"), acks.Add("b"), acks.Add("c")
	if a != 1 {
		t.Errorf("the first ticket is %d, want 1", a)
	}
	for _, step := range []struct {
		ticket uint64
		at     string
		moved  bool
		open   int
	}{
		{b, "", false, 3},
		{b, "", false, 3}, // a second time
		{0, "", false, 3}, // no ticket
		{99, "", false, 3},
		{a, "b", true, 1},
		{a, "", false, 1}, // passed
		{c, "c", true, 0},
		{c, "", false, 0},
	} {
		at, moved := acks.Done(step.ticket)
		if at != step.at || moved != step.moved || acks.Open() != step.open {
			t.Errorf("Done(%d) = %q, %t with %d open, want %q, %t with %d", step.ticket, at, moved, acks.Open(), step.at, step.moved, step.open)
		}
	}
}

// Whatever the order of acknowledgements, the position is the last before which
// nothing is open.
func TestAcksInRandomOrder(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	var acks relay.Acks[uint64]
	done := make(map[uint64]bool)
	var open []uint64
	position, next := uint64(0), uint64(1)
	for range 100_000 {
		if len(open) == 0 || len(open) < 300 && rng.IntN(2) == 0 {
			ticket := acks.Add(next)
			if ticket != next {
				t.Fatalf("Add = %d, want %d", ticket, next)
			}
			open = append(open, ticket)
			next++
			continue
		}
		i := rng.IntN(len(open))
		ticket := open[i]
		open[i] = open[len(open)-1]
		open = open[:len(open)-1]
		done[ticket] = true
		before := position
		for done[position+1] {
			position++
		}
		at, moved := acks.Done(ticket)
		if moved != (position > before) || moved && at != position {
			t.Fatalf("Done(%d) = %d, %t, want %d, %t", ticket, at, moved, position, position > before)
		}
		if want := int(next - 1 - position); acks.Open() != want {
			t.Fatalf("Open() = %d, want %d", acks.Open(), want)
		}
	}
}

func ExampleAcks() {
	var acks relay.Acks[int64] // of offsets
	first, second := acks.Add(100), acks.Add(101)

	_, moved := acks.Done(second) // overtakes the first
	fmt.Println(moved)
	offset, moved := acks.Done(first)
	fmt.Println(offset, moved)
	// Output:
	// false
	// 101 true
}
