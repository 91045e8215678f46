package supervisor

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/grove/pgtrickle-relay/relaycore/internal/lease"
	"github.com/grove/pgtrickle-relay/relaycore/internal/observe"
)

// A lock that is not released makes a pipeline unhealthy, and is logged once. The time
// lost before, without a database for example, does not count.
func TestLockThatIsHeldLong(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := observe.NewMetrics(registry, "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	healthy := func() float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "pgtrickle_relay_pipeline_healthy" {
				return f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return -1
	}
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := &runner{meter: metrics.Pipeline(testPipeline("a", "1").Key), log: slog.New(slog.NewTextHandler(&log, nil))}
		held := func() {
			r.set(observe.StateWaiting, nil)
			r.warnOfHeldLock()
		}
		for _, step := range []struct {
			after   time.Duration
			do      func()
			healthy float64
			logged  int
		}{
			{0, func() { r.set(observe.StateWaiting, errors.New("no session")) }, 1, 0},
			{time.Minute, held, 1, 0},
			{heldLong, held, 1, 0},
			{time.Second, held, 0, 1},
			{time.Minute, held, 0, 1},
			{0, func() { r.set(observe.StateRunning, nil) }, 1, 1},
			{time.Minute, held, 1, 1},
			{heldLong + time.Second, held, 0, 2},
		} {
			time.Sleep(step.after)
			step.do()
			if got, logged := healthy(), strings.Count(log.String(), "another process keeps the pipeline's lock"); got != step.healthy || logged != step.logged {
				t.Errorf("%s later: healthy %v, logged %d times; want %v, %d", step.after, got, logged, step.healthy, step.logged)
			}
		}
	})
}

// TestHeldLockIsTriedSoon: the server releases the locks of a killed process one by one. So
// a lock that is held is tried again at once, and rarely once that has been in vain.
func TestHeldLockIsTriedSoon(t *testing.T) {
	t.Parallel()
	metrics, err := observe.NewMetrics(prometheus.NewRegistry(), "b", "v", "g")
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{meter: metrics.Pipeline(testPipeline("a", "1").Key), log: slog.New(slog.DiscardHandler)}
	retry := newRetries()
	var delays []time.Duration
	for range 8 {
		delays = append(delays, r.failed(lease.ErrHeld, &retry))
	}
	if first, last := delays[0], delays[7]; first > heldAgain || last < heldRetry/2 || last > heldRetry {
		t.Errorf("delays %v, want up to %s at first and about %s at last", delays, heldAgain, heldRetry)
	}
	r.failed(lease.ErrLost, &retry)
	if again := r.failed(lease.ErrHeld, &retry); again > heldAgain {
		t.Errorf("%s after the lock was held here, want up to %s", again, heldAgain)
	}
}
