package table

import "testing"

func TestOriginSince(t *testing.T) {
	t.Parallel()
	was := Origin{System: "7391", Timeline: "00000001", Database: 5, Table: 16390, File: 16391, Sequence: 16388}
	for name, tc := range map[string]struct {
		change      func(o *Origin)
		partitioned bool
		want        Change
	}{
		"nothing":                       {func(*Origin) {}, false, Unchanged},
		"not readable any longer":       {func(o *Origin) { o.System, o.Timeline = "", "" }, false, Unchanged},
		"another server":                {func(o *Origin) { o.System = "1" }, false, Elsewhere},
		"another database":              {func(o *Origin) { o.Database = 6 }, false, Elsewhere},
		"another server and table":      {func(o *Origin) { o.System, o.Table = "1", 2 }, false, Elsewhere},
		"created again":                 {func(o *Origin) { o.Table = 2 }, true, Restarted},
		"truncated, ids restarted":      {func(o *Origin) { o.File, o.Sequence = 2, 3 }, false, Restarted},
		"truncated":                     {func(o *Origin) { o.File = 2 }, false, Unchanged},
		"restarted by hand":             {func(o *Origin) { o.Sequence = 3 }, false, Unchanged},
		"restarted by hand, partitions": {func(o *Origin) { o.File, o.Sequence = 0, 3 }, true, Unchanged},
		"promoted":                      {func(o *Origin) { o.Timeline = "00000002" }, false, Promoted},
	} {
		here := was
		tc.change(&here)
		if got, detail := here.Since(was, tc.partitioned); got != tc.want {
			t.Errorf("%s: %d (%s), want %d", name, got, detail, tc.want)
		}
	}
}
