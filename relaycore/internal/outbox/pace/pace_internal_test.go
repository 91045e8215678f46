package pace

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: how often an outbox is read at steady rates, and how long a row waits until
// the read that returns it ends. A read takes 300 µs, a notification 100 µs.
func TestPace(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		every    time.Duration // between rows
		notified int           // rows of ten that are notified
		reads    float64       // a second, at most
		worst    time.Duration // wait of a row, at most
	}{
		"100 a second":                 {10 * time.Millisecond, 0, 780, 1800 * time.Microsecond},
		"1,000 a second":               {time.Millisecond, 0, 780, 1700 * time.Microsecond},
		"8,000 a second":               {125 * time.Microsecond, 0, 450, 2700 * time.Microsecond},
		"100 a second, notified":       {10 * time.Millisecond, 10, 350, time.Millisecond},
		"1,000 a second, notified":     {time.Millisecond, 10, 1020, time.Millisecond},
		"10,000 a second, notified":    {100 * time.Microsecond, 10, 780, 1700 * time.Microsecond},
		"1,000 a second, half of them": {time.Millisecond, 5, 900, 1700 * time.Microsecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				reads, worst := simulate(t, tc.every, tc.notified)
				t.Logf("%.0f reads a second, a row waits at most %v", reads, worst)
				if reads > tc.reads || worst > tc.worst {
					t.Errorf("%.0f reads a second and %v, want at most %.0f and %v", reads, worst, tc.reads, tc.worst)
				}
			})
		})
	}
}

// simulate reads for five seconds, and measures the last three.
func simulate(t *testing.T, every time.Duration, notified int) (reads float64, worst time.Duration) {
	wake := make(chan struct{}, 1)
	began := time.Now()
	var rows atomic.Int64 // that are written by now
	const span, warm = 5 * time.Second, 2 * time.Second
	go func() {
		for n := 1; n <= int(span/every); n++ {
			time.Sleep(time.Until(began.Add(time.Duration(n) * every)))
			if rows.Store(int64(n)); n%10 < notified {
				time.AfterFunc(100*time.Microsecond, func() {
					select {
					case wake <- struct{}{}:
					default:
					}
				})
			}
		}
	}()
	p := New(new(Crowd))
	n := 0
	for seen := 0; time.Since(began) < span-10*time.Millisecond; {
		if err := p.Wait(t.Context(), time.Second, wake); err != nil {
			t.Fatal(err)
		}
		found := int(rows.Load())
		time.Sleep(300 * time.Microsecond)
		measured := time.Since(began) > warm
		if measured {
			n++
		}
		p.Saw(found - seen)
		for ; seen < found; seen++ {
			if wait := time.Since(began.Add(time.Duration(seen+1) * every)); measured {
				worst = max(worst, wait)
			}
		}
	}
	time.Sleep(time.Second) // the writer ends
	return float64(n) / (span - warm).Seconds(), worst
}

// TestCrowds: readers of one outbox are counted together, those of another one apart.
func TestCrowds(t *testing.T) {
	t.Parallel()
	var crowds Crowds
	orders := New(crowds.For("orders"))
	orders.follow(true)
	defer orders.Leave()
	if n := crowds.For("orders").readers.Load(); n != 1 {
		t.Errorf("%d readers of the outbox, want 1", n)
	}
	if n := crowds.For("payments").readers.Load(); n != 0 {
		t.Errorf("%d readers of another outbox, want 0", n)
	}
}

// TestPaceOfManyReaders: after one row that many pipelines read, few of their reads find
// nothing. A single reader goes on reading often.
func TestPaceOfManyReaders(t *testing.T) {
	t.Parallel()
	for readers, most := range map[int]int{1: 50, 20: 50, 1000: 6} {
		t.Run(strconv.Itoa(readers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				connections := make(chan struct{}, 8)
				var reads atomic.Int64
				var crowd Crowd
				var wg sync.WaitGroup
				for range readers {
					wg.Go(func() {
						p := New(&crowd)
						p.follow(true)
						defer p.Leave()
						for found := 1; ctx.Err() == nil; found = 0 {
							connections <- struct{}{}
							time.Sleep(300 * time.Microsecond)
							<-connections
							reads.Add(1)
							p.Saw(found)
							_ = p.Wait(ctx, time.Minute, nil) // the loop looks at ctx
						}
					})
				}
				wg.Wait()
				if n := crowd.readers.Load(); n != 0 {
					t.Errorf("%d readers are counted that have returned", n)
				}
				if each := reads.Load() / int64(readers); each > int64(most) {
					t.Errorf("each of %d pipelines reads %d times in a second, want at most %d", readers, each, most)
				}
			})
		})
	}
}
