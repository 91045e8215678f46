package outbox_test

import (
	"context"
	"runtime"
	"testing"
	"time"
)

// BenchmarkDifference compares a snapshot of 1,000,000 rows of which 10 have changed, and
// receives the changes. It reports the messages, the growth of the heap, and the time of
// the refresh that wrote the snapshot.
func BenchmarkDifference(b *testing.B) {
	d := newDiffer(b, "diff")
	d.readBytes = 4 << 20
	exec(b, d.admin, `TRUNCATE public.s; INSERT INTO public.s SELECT g, 1, g, 'value ' || md5(g::text) FROM generate_series(1, 1000000) g`)
	d.open()
	d.refresh(false)
	d.drain(b, 5*time.Second)
	for _, claim := range []bool{false, true} {
		name := "inline"
		if claim {
			name = "claim check"
		}
		b.Run(name, func(b *testing.B) {
			var messages, heap int
			var refresh time.Duration
			for range b.N {
				b.StopTimer()
				exec(b, d.admin, `UPDATE public.s SET v = v || '!' WHERE k % 100000 = 0`)
				start := time.Now()
				d.refresh(claim)
				refresh += time.Since(start)
				runtime.GC()
				b.StartTimer()
				n, grown := d.drain(b, 10*time.Millisecond)
				messages, heap = messages+n, max(heap, grown)
			}
			b.ReportMetric(float64(messages)/float64(b.N), "messages")
			b.ReportMetric(float64(heap)/(1<<20), "MiB")
			b.ReportMetric(refresh.Seconds()/float64(b.N), "refresh-s")
		})
	}
}

// drain receives and commits what there is, until nothing comes for a while behind the
// first message. It returns the number of messages and the growth of the heap in bytes.
func (d *differ) drain(b *testing.B, quiet time.Duration) (messages, grown int) {
	b.Helper()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	peaks := make(chan uint64)
	go func() {
		var now runtime.MemStats
		var peak uint64
		for ctx.Err() == nil {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapInuse)
			time.Sleep(10 * time.Millisecond)
		}
		peaks <- peak
	}()
	timer := time.AfterFunc(time.Hour, cancel)
	defer timer.Stop()
	for {
		batch, err := d.src.Receive(ctx, 1000)
		if err != nil {
			return messages, int(<-peaks) - int(before.HeapInuse)
		}
		timer.Reset(quiet)
		messages += len(batch)
		d.commit(batch)
	}
}
