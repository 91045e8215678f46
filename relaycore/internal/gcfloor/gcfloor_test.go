package gcfloor_test

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/gcfloor"
)

// TestSet: with a floor, a small heap is collected a few times where a percentage alone
// collects it often.
func TestSet(t *testing.T) {
	const percent, garbage = 60, 256 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(percent))
	without := collections(garbage)

	gcfloor.Set(percent, 64<<20)
	now := percent
	for deadline := time.Now().Add(10 * time.Second); now == percent && time.Now().Before(deadline); {
		runtime.GC()
		time.Sleep(time.Millisecond) // the finalizer has a goroutine of its own
		now = debug.SetGCPercent(-1)
		debug.SetGCPercent(now)
	}

	if with := collections(garbage); with > without/3 {
		t.Errorf("%d collections for %d bytes of garbage with a floor of 64 MiB, and %d without", with, garbage, without)
	}
}

// collections allocates so many bytes and returns how often the heap was collected.
func collections(bytes int) uint32 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range bytes / 4096 {
		sink = make([]byte, 4096)
	}
	runtime.ReadMemStats(&after)
	return after.NumGC - before.NumGC
}

// sink keeps the compiler from leaving the garbage out.
var sink []byte
