package scan

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

func TestPositionsSurviveTheirJSON(t *testing.T) {
	t.Parallel()
	snap := func(s string) snapshot {
		x, err := parseSnapshot(s)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	for name, p := range map[string]Position{
		"fresh windows":    &windowPosition{lo: nothing, at: 41},
		"closed window":    &windowPosition{lo: snap("10:20:11,15"), at: table.Beginning},
		"open window":      &windowPosition{lo: snap("10:20:11,15"), hi: snap("20:30:"), open: true, at: 7},
		"no holes":         &fencePosition{last: 12, at: table.Beginning},
		"holes":            &fencePosition{last: 100, at: table.Beginning, holes: []hole{{lo: 5, hi: 9}, {lo: 11, hi: 11}, {lo: 50, hi: 70}}, idle: []writer{{vxid: "3/4", idle: "12 2026", upTo: 7}, {vxid: "-1/746", prepared: true, upTo: 9}}},
		"open read":        &fencePosition{last: 100, holes: []hole{{lo: 50, hi: 70}}, open: true, at: 30, from: 40, fill: []int64{31, 39}},
		"before the first": &fencePosition{last: math.MinInt64, at: table.Beginning},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, err := json.Marshal(Store(p))
			if err != nil {
				t.Fatal(err)
			}
			var s State
			if err := json.Unmarshal(b, &s); err != nil {
				t.Fatal(err)
			}
			got, err := s.Position(p.Strategy().Name())
			if err != nil || !reflect.DeepEqual(got, p) {
				t.Fatalf("position = %+v, %v, want %+v; stored as %s", got, err, p, b)
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
		"none is left":            {holes: []hole{{2, 6, ended}}, ids: []int64{4}, last: 8, covered: math.MaxInt64},
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
	// A prepared one that goes has ended: no other takes its place.
	if next = next.remaining(&writers{list: []writer{{vxid: "-1/800", prepared: true}}}, []writer{{vxid: "-1/800", prepared: true}}); len(next.list) != 1 {
		t.Fatalf("remaining = %+v", next.list) // 4/9 may have become -1/800
	}
	if next = next.remaining(&writers{}, nil); len(next.list) != 0 {
		t.Fatalf("remaining = %+v, want none", next.list)
	}
}

// A read that is repeated after a restart may come in several parts. What of it has
// not come yet is not settled.
func TestRepeatedReadClaimsNoMoreThanItHas(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		pos  fencePosition
		want int64
	}{
		"closed":              {fencePosition{last: 100, at: table.Beginning}, 100},
		"closed, with a hole": {fencePosition{last: 100, at: table.Beginning, holes: []hole{{lo: 50, hi: 70}}}, 49},
		"nothing of it":       {fencePosition{last: 100, open: true, at: table.Beginning, from: 40}, 40},
		"part of it":          {fencePosition{last: 100, open: true, at: 60, from: 40}, 60},
		"a filled hole":       {fencePosition{last: 100, open: true, at: 10, from: 40, fill: []int64{7, 22, 30}}, 21},
		"before its hole":     {fencePosition{last: 100, open: true, at: 60, from: 40, holes: []hole{{lo: 20, hi: 30}}}, 19},
	} {
		if got := tc.pos.Complete(); got != tc.want {
			t.Errorf("%s: Complete = %d, want %d", name, got, tc.want)
		}
	}
}
