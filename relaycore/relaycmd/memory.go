package relaycmd

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// gcPercent keeps a drain of small messages under 64 MiB. At 50 collecting costs a
// sixth of what a drain does more.
const gcPercent = 80

// limitMemory returns the memory that the process may use, or 0 when nobody says.
// GOMEMLIMIT says it best; else the container's limit does, of which a tenth is
// left to what Go does not count.
func limitMemory(log *slog.Logger) int64 {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
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

const (
	mostBudget  = 256 << 20
	leastBudget = 4 << 20
)

// budget is what all pipelines together may hold between source and sink.
func (o *options) budget(limit int64) (int64, error) {
	if o.maxInFlight != "" {
		var size relaycfg.Size
		if err := size.UnmarshalJSON([]byte(strconv.Quote(o.maxInFlight))); err != nil || size <= 0 {
			return 0, fmt.Errorf("--max-in-flight-bytes is %q; must be a size such as 67108864 or 64MiB", o.maxInFlight)
		}
		return int64(size), nil
	}
	if limit == 0 {
		return mostBudget, nil
	}
	return min(max(limit/4, leastBudget), mostBudget), nil
}
