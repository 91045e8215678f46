package relay_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func lanesOf(l *relay.Lanes) [][]int {
	var all [][]int
	for lane := range l.Len() {
		var one []int
		for i := l.First(lane); i >= 0; i = l.Next(i) {
			one = append(one, i)
		}
		all = append(all, one)
	}
	return all
}

func TestLanes(t *testing.T) {
	t.Parallel()
	var lanes relay.Lanes // used again from case to case
	for _, tc := range []struct {
		name string
		keys []string
		want [][]int
	}{
		{"empty", nil, nil},
		{"one key", []string{"a", "a", "a"}, [][]int{{0, 1, 2}}},
		{"keys side by side", []string{"a", "b", "a", "c", "b"}, [][]int{{0, 2}, {1, 4}, {3}}},
		{"without key", []string{"", "a", "", "a"}, [][]int{{0}, {1, 3}, {2}}},
		{"a key of the batch before", []string{"c", "a"}, [][]int{{0}, {1}}},
	} {
		lanes.Split(keyed(tc.keys...))
		if diff := cmp.Diff(tc.want, lanesOf(&lanes)); diff != "" {
			t.Errorf("%s: lanes differ (-want +got):\n%s", tc.name, diff)
		}
	}
}

func TestLanesOfRenderedKeys(t *testing.T) {
	t.Parallel()
	var lanes relay.Lanes
	lanes.Reset(5)
	buf := make([]byte, 0, 8)
	for i, group := range []string{"x", "y", "", "x", ""} {
		if i == 1 {
			continue // the sink refused it
		}
		buf = append(buf[:0], group...)
		lanes.AddBytes(i, buf)
	}
	if diff := cmp.Diff([][]int{{0, 3}, {2}, {4}}, lanesOf(&lanes)); diff != "" {
		t.Errorf("lanes differ (-want +got):\n%s", diff)
	}
}

func ExampleLanes() {
	batch := []relay.Message{{ID: "1", Key: "a"}, {ID: "2", Key: "b"}, {ID: "3", Key: "a"}}
	var lanes relay.Lanes
	lanes.Split(batch)
	for lane := range lanes.Len() { // each lane can have a worker of its own
		for i := lanes.First(lane); i >= 0; i = lanes.Next(i) {
			fmt.Println("lane", lane, "message", batch[i].ID)
		}
	}
	// Output:
	// lane 0 message 1
	// lane 0 message 3
	// lane 1 message 2
}
