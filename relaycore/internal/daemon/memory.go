package daemon

import (
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/internal/budget"
	"github.com/grove/pgtrickle-relay/relaycore/internal/gcfloor"
)

// The heap is collected when it has grown by gcPercent, which keeps the memory of a
// drain within 64 MiB. It is not collected below heapFloor bytes: see [gcfloor].
const (
	gcPercent = 60
	heapFloor = 22 << 20
)

// returnIdleEvery is how often memory that a burst has left is returned to the system.
const returnIdleEvery = 20 * time.Second

// limitMemory returns how many bytes the process may use, or 0 if nothing limits
// it. GOGC and GOMEMLIMIT override what it sets.
func limitMemory(log *slog.Logger) int64 {
	if os.Getenv("GOGC") == "" {
		gcfloor.Set(gcPercent, heapFloor)
	}
	limit := memoryLimit()
	if limit > 0 {
		debug.SetMemoryLimit(limit)
		log.Debug("memory limit set", "bytes", limit)
	}
	return limit
}

// skipHeapProfile ends the sampling of allocations, which only /debug/pprof shows. It costs a
// hundredth of the CPU where a message is many allocations.
var skipHeapProfile = sync.OnceFunc(func() { runtime.MemProfileRate = 0 })

// LargestRow returns the bytes that a row may have, of which so many copies are in memory
// while it is sent. The memory limit is that of this process.
func LargestRow(copies int) int64 { return budget.Largest(largeBudget(memoryLimit()), copies) }

// Budget returns that of a command, with the memory limit of this process.
func Budget() *budget.Budget {
	limit := memoryLimit()
	return budget.New(usualBudget(0, limit), largeBudget(limit))
}

// memoryLimit returns GOMEMLIMIT, or else the container's limit, less a tenth for memory
// that Go does not count. It returns 0 if there is neither.
func memoryLimit() int64 {
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 {
		return limit
	}
	limit := containerLimit("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
	return limit - limit/10
}

// containerLimit returns the limit in the first file that has one. Version 2 of
// cgroups writes "max" if there is none, version 1 a number close to 1<<63.
func containerLimit(files ...string) int64 {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err == nil && n > 0 && n < 1<<50 {
			return n
		}
	}
	return 0
}

const (
	maxBudget = 256 << 20
	minBudget = 4 << 20
)

// noLimit is the budget for large messages of a process whose memory nothing limits.
const noLimit = 1 << 30

// largeBudget returns how many bytes all pipelines together may hold of large messages:
// half of the limit. A quarter is for usual messages, and a quarter for all else.
func largeBudget(memoryLimit int64) int64 {
	if memoryLimit > 0 {
		return memoryLimit / 2
	}
	return noLimit
}

// usualBudget returns how many bytes all pipelines together may hold between source and
// sink. A limit of 0 is none.
func usualBudget(configured, memoryLimit int64) int64 {
	switch {
	case configured > 0:
		return configured
	case memoryLimit > 0:
		return min(max(memoryLimit/4, minBudget), maxBudget)
	}
	return maxBudget
}
