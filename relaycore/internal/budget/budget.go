// Package budget bounds the memory that all pipelines of a process take together for what
// is between their sources and sinks. It counts bytes, and knows nothing of messages.
package budget

import (
	"cmp"
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
	waiting   atomic.Int32 // calls of AcquireLarge that wait

	mu    sync.Mutex
	used  int64
	freed chan struct{} // closed by the next release; nil if no pipeline waits
}

// New returns a budget of so many bytes, and of so many for large messages.
func New(bytes, large int64) *Budget {
	return &Budget{size: bytes, largeSize: large, large: semaphore.NewWeighted(large)}
}

// DefaultCopies are the row, its body, and a copy of the client.
const DefaultCopies = 3

// Largest returns the bytes that one message may have, of which so many copies are in
// memory while it is sent; 0 copies mean [DefaultCopies]. A nil budget has no bound, and
// Largest is 0.
func (b *Budget) Largest(copies int) int64 {
	if b == nil {
		return 0
	}
	return Largest(b.largeSize, copies)
}

// Largest returns the bytes that one message may have, of which so many copies share large
// bytes; 0 copies mean [DefaultCopies].
func Largest(large int64, copies int) int64 { return large / int64(cmp.Or(copies, DefaultCopies)) }

// AcquireLarge waits until n bytes are left for large messages, in the order of calls.
func (b *Budget) AcquireLarge(ctx context.Context, n int64) error {
	if b == nil || n == 0 || b.large.TryAcquire(n) {
		return nil
	}
	b.waiting.Add(1)
	defer b.waiting.Add(-1)
	return b.large.Acquire(ctx, n)
}

// ReleaseLarge gives n bytes back.
func (b *Budget) ReleaseLarge(n int64) {
	if b != nil && n > 0 {
		b.large.Release(n)
	}
}

// Held is what some messages of a pipeline have reserved, in bytes.
type Held struct {
	Usual int64 // within the bounds of the pipeline, and of all
	Grown int64 // what they became larger by, within the same bounds, but apart
	Large int64 // for large messages
}

// Plus adds all parts.
func (h Held) Plus(more Held) Held {
	return Held{h.Usual + more.Usual, h.Grown + more.Grown, h.Large + more.Large}
}

// Bytes is their sum.
func (h Held) Bytes() int64 { return h.Usual + h.Grown + h.Large }

// Share is what one pipeline holds of a budget. One goroutine acquires of each kind at a
// time.
type Share struct {
	budget *Budget // nil: there is no bound but the pipeline's own
	most   int64   // bytes of usual, and of grown
	usual  kind
	grown  kind
	large  atomic.Int64 // held for large messages
	asks   atomic.Int32 // 1 while it waits for more of them
}

// kind is one kind of what a share holds.
type kind struct {
	own  *semaphore.Weighted
	held int64 // guarded by the budget's mutex
}

// Share returns a share of at most so many bytes of each kind, large messages aside. It
// holds nothing.
func (b *Budget) Share(most int64) *Share {
	return &Share{
		budget: b, most: most,
		usual: kind{own: semaphore.NewWeighted(most)}, grown: kind{own: semaphore.NewWeighted(most)},
	}
}

// Acquire waits until n bytes are left. More than the share may have at all is as much as
// it may have. A pipeline that holds nothing does not wait for others. Otherwise others
// whose far end is away could stop it, for as long as they keep what they have read.
func (s *Share) Acquire(ctx context.Context, n int64) (Held, error) {
	n = min(n, s.most)
	return Held{Usual: n}, s.acquire(ctx, &s.usual, n)
}

// AcquireGrown is Acquire for messages that have become larger by n bytes. What was read
// after them has its part of the usual bytes already. If they shared one bound, they would
// wait for it, and it behind them.
func (s *Share) AcquireGrown(ctx context.Context, n int64) (Held, error) {
	n = min(n, s.most)
	return Held{Grown: n}, s.acquire(ctx, &s.grown, n)
}

func (s *Share) acquire(ctx context.Context, k *kind, n int64) error {
	if err := k.own.Acquire(ctx, n); err != nil {
		return err
	}
	if err := s.acquireOfAll(ctx, k, n); err != nil {
		k.own.Release(n)
		return err
	}
	return nil
}

func (s *Share) acquireOfAll(ctx context.Context, k *kind, n int64) error {
	b := s.budget
	if b == nil {
		return nil
	}
	for {
		b.mu.Lock()
		if k.held == 0 || b.used+n <= b.size {
			k.held += n
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

// AcquireLarge waits until n bytes are left for large messages, in the order of calls of
// all pipelines. More than there are at all is as much as there are.
func (s *Share) AcquireLarge(ctx context.Context, n int64) (Held, error) {
	if s.budget == nil || n == 0 {
		return Held{}, nil
	}
	n = min(n, s.budget.largeSize)
	s.asks.Store(1)
	defer s.asks.Store(0)
	if err := s.budget.AcquireLarge(ctx, n); err != nil {
		return Held{}, err
	}
	s.large.Add(n)
	return Held{Large: n}, nil
}

// InTheWay reports whether the share holds large messages while another pipeline waits
// for one.
func (s *Share) InTheWay() bool {
	return s.budget != nil && s.large.Load() > 0 && s.budget.waiting.Load() > s.asks.Load()
}

// Release gives back what was acquired.
func (s *Share) Release(h Held) {
	if h == (Held{}) {
		return
	}
	s.usual.own.Release(h.Usual)
	s.grown.own.Release(h.Grown)
	b := s.budget
	if b == nil {
		return
	}
	s.large.Add(-h.Large)
	b.ReleaseLarge(h.Large)
	b.mu.Lock()
	defer b.mu.Unlock()
	s.usual.held -= h.Usual
	s.grown.held -= h.Grown
	b.used -= h.Usual + h.Grown
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// Used returns the bytes that all pipelines hold, without large messages.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// HoldsLarge reports whether large messages hold a part.
func (b *Budget) HoldsLarge() bool {
	if b.large.TryAcquire(b.largeSize) {
		b.large.Release(b.largeSize)
		return false
	}
	return true
}
