package engine

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// maxAsked bounds the delay that a far end may ask for.
const maxAsked = 5 * time.Minute

// nextDelay returns how long to wait after err: what the far end asked for, or b's
// next delay. The longest of these is a second, which bounds how long a pipeline
// takes to notice that its far end is back.
func nextDelay(b *backoff.Backoff, err error) time.Duration {
	delay := b.Next()
	if asked, ok := relay.RetryDelay(err); ok {
		return min(asked, maxAsked)
	}
	return delay
}

// failures counts the steps of a pipeline that are failing. It reports the first
// failure, and nil once all steps work again.
type failures struct {
	log    *slog.Logger
	report func(error)

	mu      sync.Mutex
	failing int
}

// step is one step of a pipeline that is retried. It logs its first failure and its
// recovery, and nothing between. It is used by one goroutine.
type step struct {
	*failures
	name  string
	since time.Time
	count int // of failures in a row
	delay backoff.Backoff
}

// failed records a failure and returns how long to wait.
func (s *step) failed(err error) time.Duration {
	if s.count++; s.count == 1 {
		s.since = time.Now()
		s.log.Warn("step fails and is retried", "step", s.name, "err", err)
		s.add(1, fmt.Errorf("%s: %w", s.name, err))
	}
	return nextDelay(&s.delay, err)
}

// recovered records that the step works.
func (s *step) recovered() {
	s.delay.Reset()
	if s.count == 0 {
		return
	}
	after := time.Since(s.since).Round(time.Millisecond)
	s.log.Info("step works again", "step", s.name, "failures", s.count, "after", after.String())
	s.count = 0
	s.add(-1, nil)
}

// add counts a step that starts or stops failing. It reports every start.
func (f *failures) add(n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing += n; err != nil || f.failing == 0 {
		f.report(err)
	}
}
