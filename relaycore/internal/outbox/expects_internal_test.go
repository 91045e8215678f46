package outbox

import "testing"

func TestExpects(t *testing.T) {
	t.Parallel()
	s := &Source{}
	s.shape.Store(&table{name: "out:box"})
	s.settler.Store(&settler{safe: 10, part: [2]int64{12, 3}, done: [][3]int64{{14, 2, 4}}})
	for id, want := range map[string]bool{
		"out:box:10:0": false,
		"out:box:11:0": true,
		"out:box:12:2": false,
		"out:box:12:3": true,
		"out:box:14:1": true,
		"out:box:14:3": false,
		"out:box:14:4": true,
		"out:box:15":   false,
		"out:box:x:0":  false,
		"other:11:0":   false,
		"":             false,
	} {
		if got := s.Expects(id); got != want {
			t.Errorf("Expects(%q) = %t, want %t", id, got, want)
		}
	}
}
