package engine

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

// Budget bounds the bytes that all pipelines of a process hold between source and
// sink. Large messages have a budget of their own. A pipeline waits for its turn before
// it reads one. Meanwhile others go on with messages of the usual size.
type Budget struct {
	size      int64
	largeSize int64
	large     *semaphore.Weighted
	waiting   atomic.Int32 // calls of acquireLarge that wait

	mu    sync.Mutex
	used  int64
	freed chan struct{} // closed by the next release; nil if no pipeline waits
}

// NewBudget returns a budget of so many bytes, and of so many for large messages.
func NewBudget(bytes, large int64) *Budget {
	return &Budget{size: bytes, largeSize: large, large: semaphore.NewWeighted(large)}
}

// Largest returns the bytes that one message may have, of which so many copies are in
// memory while it is sent. A nil budget has no bound, and Largest is 0.
func (b *Budget) Largest(copies int) int64 {
	if b == nil {
		return 0
	}
	return b.largeSize / int64(copies)
}

// acquireLarge waits until n bytes are left for large messages, in the order of calls.
func (b *Budget) acquireLarge(ctx context.Context, n int64) error {
	if b == nil || n == 0 || b.large.TryAcquire(n) {
		return nil
	}
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	return b.large.Acquire(ctx, n)
}

func (b *Budget) releaseLarge(n int64) {
	if b != nil && n > 0 {
		b.large.Release(n)
	}
}

// wanted reports whether more than so many pipelines wait for a large message.
func (b *Budget) wanted(beyond int32) bool { return b != nil && b.waiting.Load() > beyond }

// held is what a chunk has reserved, in bytes.
type held struct {
	usual int64 // within the limits on what is in flight
	large int64 // for a large message
}

func (h held) plus(more held) held { return held{h.usual + more.usual, h.large + more.large} }

// share is what one pipeline holds of a budget.
type share struct {
	budget *Budget // nil: there is no bound
	held   int64
}

// acquire waits until n bytes are left. A pipeline that holds nothing does not wait.
// Otherwise others whose far end is away could stop it, for as long as they keep what
// they have read.
func (s *share) acquire(ctx context.Context, n int64) error {
	b := s.budget
	if b == nil {
		return nil
	}
	for {
		b.mu.Lock()
		if s.held == 0 || b.used+n <= b.size {
			s.held += n
			b.used += n
			b.mu.Unlock()
			return nil
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *share) release(n int64) {
	b := s.budget
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.held -= n
	b.used -= n
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}
