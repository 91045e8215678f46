package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestMemoryLimitOfTheUserIsRespected(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	const limit = 1 << 40 // as GOMEMLIMIT sets it
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(limit))
	t.Setenv("GOGC", "100")

	if got := limitMemory(slog.New(slog.DiscardHandler)); got != limit {
		t.Errorf("the memory limit is %d, want GOMEMLIMIT's %d", got, limit)
	}
	if got := debug.SetMemoryLimit(-1); got != limit {
		t.Errorf("GOMEMLIMIT was changed to %d", got)
	}
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC was changed to %d", got)
	}
}

func TestContainerLimit(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"max\n": 0, "9223372036854771712\n": 0, "268435456\n": 256 << 20, "": 0} {
		file := filepath.Join(t.TempDir(), "memory.max")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := containerLimit("/nowhere", file); got != want {
			t.Errorf("a file with %q limits the memory to %d, want %d", text, got, want)
		}
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ flag, limit, want int64 }{
		{0, 0, maxBudget},
		{0, 200 << 20, 50 << 20},
		{0, 1 << 20, minBudget},
		{0, 64 << 30, maxBudget},
		{1 << 30, 200 << 20, 1 << 30},
	} {
		if got := usualBudget(c.flag, c.limit); got != c.want {
			t.Errorf("with --max-in-flight-bytes %d and a memory limit of %d the budget is %d, want %d", c.flag, c.limit, got, c.want)
		}
	}
}
