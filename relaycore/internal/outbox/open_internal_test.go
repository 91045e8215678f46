package outbox

import (
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

func TestCompare(t *testing.T) {
	t.Parallel()
	was := table.Origin{System: "7391", Timeline: "00000001", Database: 5, Table: 16390, File: 16391, Sequence: 16388}
	for name, tc := range map[string]struct {
		change      func(o *table.Origin)
		partitioned bool
		want        change
	}{
		"nothing":                       {func(*table.Origin) {}, false, unchanged},
		"not readable any longer":       {func(o *table.Origin) { o.System, o.Timeline = "", "" }, false, unchanged},
		"another server":                {func(o *table.Origin) { o.System = "1" }, false, elsewhere},
		"another database":              {func(o *table.Origin) { o.Database = 6 }, false, elsewhere},
		"another server and table":      {func(o *table.Origin) { o.System, o.Table = "1", 2 }, false, elsewhere},
		"created again":                 {func(o *table.Origin) { o.Table = 2 }, true, restarted},
		"truncated, ids restarted":      {func(o *table.Origin) { o.File, o.Sequence = 2, 3 }, false, restarted},
		"truncated":                     {func(o *table.Origin) { o.File = 2 }, false, unchanged},
		"restarted by hand":             {func(o *table.Origin) { o.Sequence = 3 }, false, unchanged},
		"restarted by hand, partitions": {func(o *table.Origin) { o.File, o.Sequence = 0, 3 }, true, unchanged},
		"promoted":                      {func(o *table.Origin) { o.Timeline = "00000002" }, false, promoted},
	} {
		here := was
		tc.change(&here)
		if got, detail := compare(was, here, tc.partitioned); got != tc.want {
			t.Errorf("%s: compare = %d (%s), want %d", name, got, detail, tc.want)
		}
	}
}
