// Package gcfloor lets a small heap grow to a floor before it is collected.
//
// Go collects a heap when it has grown by a percentage of what is live. A busy relay
// holds a few MiB, so a percentage alone collects it dozens of times a second. A larger
// percentage would let a relay that holds much take too much memory. Go has a soft
// limit for memory, but no least size of the heap.
//
// Measured with make bench on two busy cores, drains of 200,000 rows, runs in turn. With
// 60 percent alone a drain to a file took 2.0 to 2.5 s of CPU per million rows. With 150
// percent it took 1.5 to 1.7, but drains to NATS, Kafka and inboxes took 73 to 84 MiB,
// where 64 are wanted. With 60 percent and a floor of 24 MiB it took 1.5 to 2.1, and no
// drain took more than 61 MiB. On a quiet machine it took up to 66, and with a floor of 22
// MiB up to 64, for as much CPU. Go's least heap was above the floor then, while little was
// live. Without that most drains take 50 to 58.
package gcfloor

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// minHeap is Go's least heap at 100 percent, defaultHeapMinimum in runtime/mgcpacer.go. It
// grows with the percentage, so one of 1,000 percent would be 40 MiB.
const minHeap = 4 << 20

// sentinel is an object that nothing refers to, so that each collection finds it. With a
// pointer in it, it shares its memory with no other object.
type sentinel struct{ _ *sentinel }

// Set lets the heap be collected when it has grown by percent, but not before it has
// floor bytes. The finalizer of a sentinel sets the percentage after each collection,
// because the percentage that leads to the floor depends on what is live.
func Set(percent int, floor uint64) {
	debug.SetGCPercent(percent)
	sizes := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}

	var adjust func(*sentinel)
	adjust = func(s *sentinel) {
		metrics.Read(sizes)
		live := sizes[0].Value.Uint64()
		roots := live + sizes[1].Value.Uint64() + sizes[2].Value.Uint64() // what Go takes the percentage of

		next := percent
		if 0 < roots && live < floor {
			next = max(percent, int(min(100*(floor-live)/roots, 100*floor/minHeap)))
		}
		debug.SetGCPercent(next)
		runtime.SetFinalizer(s, adjust)
	}
	runtime.SetFinalizer(new(sentinel), adjust)
}
