package relaytest

import (
	"syscall"
	"testing"
	"time"
)

// ReportCPU makes b count allocations and returns a function that reports the CPU time
// of the process since, as cpu-ns/op. On a machine with other work this varies less
// than time by the clock. Defer the function before the loop.
func ReportCPU(b *testing.B) func() {
	b.ReportAllocs()
	start := cpuTime(b)
	return func() { b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op") }
}

func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal("reading the CPU time of the process:", err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
