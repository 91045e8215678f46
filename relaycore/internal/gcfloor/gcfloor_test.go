package gcfloor_test

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/gcfloor"
)

// TestSet: with a floor, a heap with little in it is collected at the floor, neither before
// nor after. Go's own least heap grows with the percentage, and must not take its place.
func TestSet(t *testing.T) {
	const percent, floor, garbage = 60, 64 << 20, 256 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(percent))
	without := collections(garbage)

	gcfloor.Set(percent, floor)
	goal := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}}
	for deadline := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		time.Sleep(time.Millisecond) // the finalizer has a goroutine of its own
		metrics.Read(goal)
		got := goal[0].Value.Uint64()
		if got > floor*9/10 && got < floor*11/10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the heap is collected at %d bytes, want about %d", got, floor)
		}
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
