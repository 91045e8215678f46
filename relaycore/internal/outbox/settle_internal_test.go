package outbox

import (
	"math"
	"reflect"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func TestMarksSurviveTheirJSON(t *testing.T) {
	t.Parallel()
	snap := func(s string) snapshot {
		x, err := parseSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for name, tc := range map[string]struct {
		mode string
		mark mark
	}{
		"fresh windows":    {modeWindow, mark{lo: nothing, at: 41}},
		"closed window":    {modeWindow, mark{lo: snap("10:20:11,15"), at: beginning}},
		"open window":      {modeWindow, mark{lo: snap("10:20:11,15"), hi: snap("20:30:"), open: true, at: 7}},
		"no holes":         {modeFence, mark{last: 12, at: beginning}},
		"holes":            {modeFence, mark{last: 100, at: beginning, holes: []hole{{lo: 5, hi: 9}, {lo: 11, hi: 11}, {lo: 50, hi: 70}}, idle: []writer{{vxid: "3/4", idle: "12 2026", upTo: 7}, {vxid: "-1/746", prepared: true, upTo: 9}}}},
		"open read":        {modeFence, mark{last: 100, holes: []hole{{lo: 50, hi: 70}}, open: true, at: 30, from: 40, fill: []int64{31, 39}}},
		"before the first": {modeFence, mark{last: math.MinInt64, at: beginning}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := settler{mode: tc.mode, base: tc.mark, moved: make(chan struct{}, 1), safe: 3, counts: audit{on: true, from: 2, highest: 9, buckets: []bucket{{0, 4}}}}
			st, err := parseState(s.checkpoint())
			if err != nil {
				t.Fatal(err)
			}
			got, err := st.mark()
			if err != nil || !reflect.DeepEqual(got, tc.mark) {
				t.Fatalf("mark = %+v, %v, want %+v", got, err, tc.mark)
			}
			var a audit
			a.parse(st.Audit)
			if !reflect.DeepEqual(a, s.counts) || st.Safe != 3 {
				t.Fatalf("audit = %+v, want %+v", a, s.counts)
			}
		})
	}
}

func TestFold(t *testing.T) {
	t.Parallel()
	open, ended := &writers{list: []writer{{vxid: "3/1"}}}, &writers{}
	for name, tc := range map[string]struct {
		holes         []hole
		ids           []int64
		last, covered int64
		want          []hole
	}{
		"contiguous":              {ids: []int64{1, 2, 3}, covered: math.MaxInt64},
		"a gap":                   {ids: []int64{1, 4}, covered: math.MaxInt64, want: []hole{{2, 3, nil}}},
		"filled in the middle":    {holes: []hole{{2, 6, open}}, ids: []int64{4, 9}, last: 8, covered: math.MaxInt64, want: []hole{{2, 3, open}, {5, 6, open}}},
		"nobody is left":          {holes: []hole{{2, 6, ended}}, ids: []int64{4}, last: 8, covered: math.MaxInt64},
		"closed as far as read":   {holes: []hole{{2, 6, ended}, {10, 20, ended}}, ids: []int64{4, 12}, last: 30, covered: 12, want: []hole{{13, 20, ended}}},
		"not reached at all":      {holes: []hole{{2, 6, ended}, {10, 20, ended}}, ids: []int64{4}, last: 30, covered: 4, want: []hole{{5, 6, ended}, {10, 20, ended}}},
		"never listed stays open": {holes: []hole{{2, 6, nil}}, last: 8, covered: math.MaxInt64, want: []hole{{2, 6, nil}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := fold(tc.holes, tc.ids, tc.last, tc.covered); !reflect.DeepEqual(got, tc.want) {
				t.Fatalf("fold = %v, want %v", got, tc.want)
			}
		})
	}
}

func TestAPreparedTransactionKeepsItsHole(t *testing.T) {
	t.Parallel()
	was := &writers{list: []writer{{vxid: "3/1"}, {vxid: "4/9"}}}
	now := &writers{list: []writer{{vxid: "4/9"}, {vxid: "-1/746", prepared: true}, {vxid: "7/1"}}}
	next := was.remaining(now, []writer{{vxid: "-1/746", prepared: true}})
	if !next.has("4/9") || !next.has("-1/746") || len(next.list) != 2 {
		t.Fatalf("remaining = %+v, want 4/9 and the prepared one", next.list)
	}
	// A prepared one that goes has ended: nobody takes its place.
	if next = next.remaining(&writers{list: []writer{{vxid: "-1/800", prepared: true}}}, []writer{{vxid: "-1/800", prepared: true}}); len(next.list) != 1 {
		t.Fatalf("remaining = %+v", next.list) // 4/9 may have become -1/800
	}
	if next = next.remaining(&writers{}, nil); len(next.list) != 0 {
		t.Fatalf("remaining = %+v, want none", next.list)
	}
}

func TestCheckpointNeverPassesWhatIsNotSettled(t *testing.T) {
	t.Parallel()
	s := settler{mode: modeFence, moved: make(chan struct{}, 1), base: mark{at: beginning}}
	slots := []slot{{id: 1, end: true}, {id: 2}, {id: 2, index: 1, end: true}, {id: 3, index: -1, end: true, settled: true}, {id: 4, end: true}}
	s.add(&chunk{slots: slots, last: true, mark: mark{last: 4, from: 0, open: true, at: beginning}, after: mark{last: 4, at: beginning}})
	msg := func(i int) relay.Message { return relay.Message{Token: &slots[i]} }
	steps := []struct {
		batch []relay.Message
		want  string
	}{
		{[]relay.Message{msg(4)}, `"last":0,"done":[[4,0,1]],"safe":0}`},
		{[]relay.Message{msg(0), msg(1)}, `"last":4,"open":{"at":1,"from":0},"part":[2,1],"done":[[4,0,1]],"safe":0}`},
		{[]relay.Message{msg(1)}, `"last":4,"open":{"at":1,"from":0},"part":[2,1],"done":[[4,0,1]],"safe":0}`}, // twice is once
		{[]relay.Message{msg(2)}, `"last":4,"safe":4}`},
	}
	for i, step := range steps {
		got := string(s.settle(step.batch).State)
		if len(got) < len(step.want) || got[len(got)-len(step.want):] != step.want {
			t.Fatalf("step %d: %s, want … %s", i, got, step.want)
		}
	}
}

// A read that is repeated after a restart may come in several parts. What of it has
// not come yet is not settled.
func TestRepeatedReadClaimsNoMoreThanItHas(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		mark mark
		want int64
	}{
		"closed":              {mark{last: 100, at: beginning}, 100},
		"closed, with a hole": {mark{last: 100, at: beginning, holes: []hole{{lo: 50, hi: 70}}}, 49},
		"nothing of it":       {mark{last: 100, open: true, at: beginning, from: 40}, 40},
		"part of it":          {mark{last: 100, open: true, at: 60, from: 40}, 60},
		"a filled hole":       {mark{last: 100, open: true, at: 10, from: 40, fill: []int64{7, 22, 30}}, 21},
		"before its hole":     {mark{last: 100, open: true, at: 60, from: 40, holes: []hole{{lo: 20, hi: 30}}}, 19},
	} {
		if got := tc.mark.complete(); got != tc.want {
			t.Errorf("%s: complete = %d, want %d", name, got, tc.want)
		}
	}
}
