package adversary

import (
	"sync"
	"time"
)

// book is the ledger: it knows what was committed and what was delivered.
type book struct {
	mu        sync.Mutex
	keys      map[int64]*account
	committed int64
	delivered int64
	repeated  int64
	inverted  int64
	last      time.Time // of the latest new delivery
	waits     []time.Duration
	pending   map[event]time.Time // a sample of commits not yet delivered
}

// account is one key's: flags by number, beginning at 1.
type account struct {
	flags []uint8
	high  int64 // highest number delivered
}

const (
	isCommitted = 1
	isDelivered = 2
)

type event struct{ key, seq int64 }

func newBook() *book {
	return &book{keys: make(map[int64]*account), pending: make(map[event]time.Time), last: time.Now()}
}

func (b *book) flag(e event, flag uint8) (was uint8, a *account) {
	a = b.keys[e.key]
	if a == nil {
		a = &account{}
		b.keys[e.key] = a
	}
	for int64(len(a.flags)) <= e.seq {
		a.flags = append(a.flags, 0)
	}
	was = a.flags[e.seq]
	a.flags[e.seq] |= flag
	return was, a
}

func (b *book) commit(events []event) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, e := range events {
		was, _ := b.flag(e, isCommitted)
		b.committed++
		if i == len(events)-1 {
			if was&isDelivered != 0 {
				b.waits = append(b.waits, 0) // overtook the commit's reply
			} else {
				b.pending[e] = now
			}
		}
	}
}

func (b *book) deliver(e event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was, a := b.flag(e, isDelivered)
	if was&isDelivered != 0 {
		b.repeated++
		return
	}
	b.delivered++
	b.last = time.Now()
	if e.seq < a.high {
		b.inverted++
	}
	a.high = max(a.high, e.seq)
	if at, ok := b.pending[e]; ok {
		b.waits = append(b.waits, b.last.Sub(at))
		delete(b.pending, e)
	}
}

// progress returns the counts, and how long ago the last new delivery was.
func (b *book) progress() (committed, delivered int64, idle time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.committed, b.delivered, time.Since(b.last)
}

// close fills in the report.
func (b *book) close(r *Report) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r.Committed, r.Repeated, r.Inversions, r.Wait = b.committed, b.repeated, b.inverted, b.waits
	for _, a := range b.keys {
		for _, f := range a.flags {
			switch f {
			case isCommitted:
				r.Lost++
			case isDelivered:
				r.Phantom++
			case isCommitted | isDelivered:
				r.Delivered++
			}
		}
	}
}
