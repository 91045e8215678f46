// Package steps counts the steps of a pipeline that fail and are retried. A pipeline is
// healthy when none of them fails.
package steps

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

// Delay returns how long to wait after err: what the far end asked for, or b's next
// delay. The longest of these is a second, which bounds how long a pipeline takes to
// notice that its far end is back.
func Delay(b *backoff.Backoff, err error) time.Duration {
	delay := b.Next()
	if asked, ok := relay.RetryDelay(err); ok {
		return min(asked, maxAsked)
	}
	return delay
}

// Failures counts the steps that are failing. It may be used by several goroutines.
type Failures struct {
	log    *slog.Logger
	report func(error)

	mu      sync.Mutex
	failing int
}

// New returns a count that calls report with the failure of each step that starts to
// fail, and with nil once all steps work again. It calls report from one goroutine at a
// time.
func New(log *slog.Logger, report func(error)) *Failures {
	return &Failures{log: log, report: report}
}

// Step is one step that is retried. It logs its first failure and its recovery, and
// nothing between. It is used by one goroutine.
type Step struct {
	*Failures
	name  string
	since time.Time
	count int // of failures in a row
	delay backoff.Backoff
}

// Step returns the step called name, such as "publish".
func (f *Failures) Step(name string) Step { return Step{Failures: f, name: name} }

// Failed records a failure and returns how long to wait.
func (s *Step) Failed(err error) time.Duration {
	if s.count++; s.count == 1 {
		s.since = time.Now()
		s.log.Warn("step fails and is retried", "step", s.name, "err", err)
		s.add(1, fmt.Errorf("%s: %w", s.name, err))
	}
	return Delay(&s.delay, err)
}

// Progressed makes the next delay the first again. Call it when some of the step worked.
func (s *Step) Progressed() { s.delay.Reset() }

// Recovered records that the step works.
func (s *Step) Recovered() {
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
func (f *Failures) add(n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing += n; err != nil || f.failing == 0 {
		f.report(err)
	}
}
