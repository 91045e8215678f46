// Package backoff spaces retries: one delay that doubles, one jitter and one
// sleep for the engine, the supervisor and every backend. Outlive gives them a grace
// after a cancellation.
//
// It is public because backends use it. The engine retries their publishes, but a
// backend may wait for its server, for example until a new topic can be used.
package backoff

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of a [Backoff] that sets none.
const (
	DefaultMin = 10 * time.Millisecond
	DefaultMax = time.Second
)

// Backoff counts the failures in a row of one step. The zero value is ready. It
// is used by one goroutine.
type Backoff struct {
	Min time.Duration // the first delay; DefaultMin if 0
	Max time.Duration // the longest delay; DefaultMax if 0

	delay time.Duration
}

// Next returns the delay before the next try. It doubles with every call, from
// Min to Max, and is jittered.
func (b *Backoff) Next() time.Duration {
	first, longest := b.Min, b.Max
	if first == 0 {
		first = DefaultMin
	}
	if longest == 0 {
		longest = DefaultMax
	}
	b.delay = min(max(2*b.delay, first), longest)
	return Jitter(b.delay)
}

// Reset makes the next delay the first again. Call it after a success.
func (b *Backoff) Reset() { b.delay = 0 }

// Jitter takes a random part of up to a half from d, so that many callers that
// failed together do not retry together.
func Jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }

// Sleep returns nil after d, or the cause of ctx's end if that comes first.
func Sleep(ctx context.Context, d time.Duration) error { return Wait(ctx, d, nil) }

// Wait is a Sleep that a value or a close of wake ends early, with nil.
func Wait(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-wake:
	case <-timer.C:
	}
	return nil
}

// Outlive returns a context that ends grace after ctx, or when it is cancelled. It is
// for work that should be finished after a cancellation, and must not hold it up.
func Outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	lasting, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if Sleep(lasting, grace) == nil {
			cancel(context.Cause(ctx))
		}
	})
	return lasting, func() {
		stop()
		cancel(nil)
	}
}
