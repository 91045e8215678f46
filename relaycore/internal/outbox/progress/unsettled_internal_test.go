package progress

import "testing"

func TestUnsettled(t *testing.T) {
	t.Parallel()
	tr := &Tracker{safe: 10, part: [2]int64{12, 3}, done: [][3]int64{{14, 2, 4}}}
	for _, tc := range []struct {
		row, index int64
		want       bool
	}{
		{10, 0, false},
		{11, 0, true},
		{12, 2, false},
		{12, 3, true},
		{14, 1, true},
		{14, 3, false},
		{14, 4, true},
	} {
		if got := tr.Unsettled(tc.row, tc.index); got != tc.want {
			t.Errorf("Unsettled(%d, %d) = %t, want %t", tc.row, tc.index, got, tc.want)
		}
	}
}
