package relaycmd

import (
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
)

// gcPercent keeps a drain of small messages under 64 MiB, into every backend. Above
// heapFloor no difference to 80 could be measured, but for the memory.
const gcPercent = 60

// limitMemory returns the memory that the process may use, or 0 when nobody says.
// GOMEMLIMIT says it best; else the container's limit does, of which a tenth is
// left to what Go does not count.
func limitMemory(log *slog.Logger) int64 {
	if os.Getenv("GOGC") == "" {
		collectAbove(heapFloor)
	}
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 {
		return limit
	}
	limit := containerLimit()
	if limit > 0 {
		limit -= limit / 10
		debug.SetMemoryLimit(limit)
		log.Debug("memory limit set from the container's", "bytes", limit)
	}
	return limit
}

// heapFloor is what the heap may grow to before anything is collected. A relay
// holds little, so that a percentage alone would collect dozens of times a second
// when it is busy, and make rows wait that come one by one.
const heapFloor = 24 << 20

// collectAbove has the heap collected when it has grown by gcPercent, and to floor at
// the least. Each collection finds an object that nobody holds, and its finalizer
// sets the percentage for the next one.
func collectAbove(floor uint64) {
	debug.SetGCPercent(gcPercent)
	type mark struct{ _ *mark } // with a pointer it shares its memory with nothing
	sizes := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	var adjust func(*mark)
	adjust = func(m *mark) {
		metrics.Read(sizes)
		live, percent := sizes[0].Value.Uint64(), gcPercent
		if roots := live + sizes[1].Value.Uint64() + sizes[2].Value.Uint64(); 0 < roots && live < floor {
			percent = max(percent, int(100*(floor-live)/roots)) //nolint:gosec // a few thousand
		}
		debug.SetGCPercent(percent)
		runtime.SetFinalizer(m, adjust)
	}
	runtime.SetFinalizer(new(mark), adjust)
}

func containerLimit() int64 {
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && n > 0 && n < 1<<50 { // "max", or version 1's idea of it
			return n
		}
	}
	return 0
}
