package gcfloor

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// worthwhile is how many bytes the heap must have grown by before they are returned.
const worthwhile = 16 << 20

// ReturnIdle returns memory to the system, until ctx ends. Each time that every has passed
// it compares what the heap holds with what was allocated meanwhile. A heap that holds much
// more is that of a burst that is over. Go collects it only after two minutes without an
// allocation, and then keeps most of it for the next burst.
func ReturnIdle(ctx context.Context, every time.Duration) {
	sizes := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	measure := func() (allocated, held uint64) {
		metrics.Read(sizes)
		return sizes[0].Value.Uint64(), sizes[1].Value.Uint64() + sizes[2].Value.Uint64() + sizes[3].Value.Uint64()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()

	before, least := measure()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		allocated, held := measure()
		busy := allocated-before > held/2
		before = allocated
		least = min(least, held)
		if busy || held < least+worthwhile {
			continue
		}
		runtime.GC() // pools keep what they have until the second collection
		debug.FreeOSMemory()
		before, least = measure()
	}
}
