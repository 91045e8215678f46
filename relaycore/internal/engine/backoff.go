package engine

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	firstDelay = 10 * time.Millisecond
	// maxDelay is how long a pipeline may take to notice that its far end is
	// back. A try a second costs a broker nothing.
	maxDelay = time.Second
	// maxAsked bounds the delay that a far end may ask for.
	maxAsked = 5 * time.Minute
)

// backoff counts the failures in a row. The zero backoff is ready.
type backoff struct{ delay time.Duration }

// next returns how long to wait after err: what the far end asked for, or a
// delay that doubles each time, less a random part of up to a half, so that many
// pipelines do not come back as one.
func (b *backoff) next(err error) time.Duration {
	b.delay = min(max(2*b.delay, firstDelay), maxDelay)
	if asked, ok := relay.RetryDelay(err); ok {
		return min(asked, maxAsked)
	}
	return b.delay - rand.N(b.delay/2+1)
}

func (b *backoff) reset() { b.delay = 0 }

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// trouble knows which steps of a pipeline are failing. It tells the world when
// the first begins and when the last is over.
type trouble struct {
	log     *slog.Logger
	changed func(error)

	mu      sync.Mutex
	failing int
}

// outage is a run of failures of one step. It logs its beginning and its end and
// nothing between. It is used by one goroutine.
type outage struct {
	*trouble
	step  string
	since time.Time
	count int
}

func (o *outage) begin(err error) {
	if o.count++; o.count > 1 {
		return
	}
	o.since = time.Now()
	o.log.Warn("failing, will retry until it works", "step", o.step, "err", err)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failing++
	o.changed(fmt.Errorf("%s: %w", o.step, err))
}

func (o *outage) over() {
	if o.count == 0 {
		return
	}
	o.log.Info("works again", "step", o.step, "failures", o.count, "after", time.Since(o.since).Round(time.Millisecond).String())
	o.count = 0
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failing--; o.failing == 0 {
		o.changed(nil)
	}
}
