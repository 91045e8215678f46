package relaycmd

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestSmallHeapIsLeftAlone(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	const garbage = 256 << 20
	before := collections(garbage)

	collectAbove(64 << 20)
	percent := gcPercent
	for deadline := time.Now().Add(10 * time.Second); percent == gcPercent && time.Now().Before(deadline); {
		runtime.GC()
		time.Sleep(time.Millisecond) // the finalizer has a goroutine of its own
		percent = debug.SetGCPercent(-1)
		debug.SetGCPercent(percent)
	}
	after := collections(garbage)

	if after > before/3 {
		t.Errorf("%d collections for %d bytes of garbage with a floor of 64 MiB, and %d without", after, garbage, before)
	}
}

// collections makes so many bytes of garbage and counts what that costs.
func collections(bytes int) uint32 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range bytes / 4096 {
		sinkhole = make([]byte, 4096)
	}
	runtime.ReadMemStats(&after)
	return after.NumGC - before.NumGC
}

var sinkhole []byte //nolint:gochecknoglobals // keeps the compiler from leaving the garbage out
