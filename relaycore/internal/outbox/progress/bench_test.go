package progress_test

import (
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/scan"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// BenchmarkAdd measures a read of 1,000 rows without messages, and its checkpoint.
func BenchmarkAdd(b *testing.B) {
	position := scan.Fence.Behind(0)
	tracker := progress.New(progress.Start{Position: position, Counted: true}, progress.NewNotifier(), nil)
	slots := make([]rows.Slot, 1000)
	defer relaytest.ReportCPU(b)()
	for i := 0; b.Loop(); i++ {
		for k := range slots {
			slots[k] = rows.Slot{ID: int64(1000*i + k), Index: -1, End: true, Settled: true}
		}
		tracker.Add(slots, scan.Read{Inside: position, After: position, Secure: table.Beginning}, true)
		tracker.Settle(nil)
	}
}
