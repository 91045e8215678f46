package engine

import (
	"context"
	"sync"
)

// Budget bounds the bytes that all pipelines of a process hold between source and
// sink.
type Budget struct {
	size int64

	mu    sync.Mutex
	used  int64
	freed chan struct{} // closed by the next release; nil if no pipeline waits
}

// NewBudget returns a budget of so many bytes.
func NewBudget(bytes int64) *Budget { return &Budget{size: bytes} }

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
