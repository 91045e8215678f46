package outbox

import (
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/backfill"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

func TestExpects(t *testing.T) {
	t.Parallel()
	s := &Source{}
	start := progress.Start{Backfill: &backfill.State{Run: "now"}, Position: scan.Fence.Behind(10), Safe: 10, Resumed: &progress.Checkpoint{Part: &[2]int64{12, 3}, Done: [][3]int64{{14, 2, 4}}}}
	s.shared.set(view{table: &table.Table{Name: "out:box"}, tracker: progress.New(start, progress.NewNotifier(), nil), ids: rows.IDs{Outbox: "identity"}}, start.Position)
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

		"identity.t:11:0": true,
		"identity:11:0":   true,
		"identity.t:10:0": false,
		"":                false,

		"out:box.snow:x7":   true,
		"out:box.sold:x7":   false,
		"identity.snow:x7":  true,
		"identity.sold:x7":  false,
		"identity2.snow:x7": false,
	} {
		got, known := s.Expects(id)
		if unsure := strings.Contains(id, ".snow:") && want; got != want || known == unsure {
			t.Errorf("Expects(%q) = %t, %t; want %t, %t", id, got, known, want, !unsure)
		}
	}
}
