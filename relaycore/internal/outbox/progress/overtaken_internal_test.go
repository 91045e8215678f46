package progress

import "testing"

func TestGapsAreCountedAtTheirEnd(t *testing.T) {
	t.Parallel()
	var reported []int64
	report := func(_ Gap, ids int64) { reported = append(reported, ids) }
	o := overtaken{ids: 5}
	o.watch(Gap{From: 1, To: 4, Step: 1})
	o.watch(Gap{From: 11, To: 40, Step: 10}) // 20, 30, 40
	o.watch(Gap{From: 51, To: 52, Step: 1})
	o.watch(Gap{}) // there was none
	for i, step := range []struct{ row, settled, want int64 }{
		{2, 3, 5},
		{20, 4, 8},
		{40, 39, 8},
		{41, 41, 9},
		{51, 51, 9},
		{52, 60, 9}, // all came
	} {
		o.count(step.row)
		o.close(step.settled, report)
		if o.ids != step.want {
			t.Errorf("step %d: %d ids are gone, want %d", i, o.ids, step.want)
		}
	}
	if len(reported) != 2 || len(o.gaps) != 0 {
		t.Errorf("reported %v, want 3 and 1; watched still: %v", reported, o.gaps)
	}
}
