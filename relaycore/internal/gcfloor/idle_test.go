package gcfloor

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// resident returns the memory that the process has of the system, in MiB.
func resident(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("no /proc here: %v", err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}

// TestReturnIdle: the memory of a burst goes back to the system although nothing is
// allocated after it, and that of pools, too.
func TestReturnIdle(t *testing.T) {
	before := resident(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		ReturnIdle(ctx, time.Second)
	}()
	defer func() { cancel(); <-done }()

	var pool sync.Pool
	most := 0
	for range 20 {
		burst := make([]byte, 10<<20)
		for i := range burst {
			burst[i] = 1
		}
		pool.Put(&burst)
		most = max(most, resident(t))
	}
	if most < before+60 {
		t.Fatalf("%d MiB were resident in a burst, %d before it", most, before)
	}
	for deadline := time.Now().Add(10 * time.Second); resident(t) > before+32; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d MiB are resident 10 s after a burst, %d before it", resident(t), before)
		}
	}
}
