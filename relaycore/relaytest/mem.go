package relaytest

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Queue is an in-memory broker: the reference implementation of the contract.
// The zero Queue is ready. It keeps every message that was published, in order.
type Queue struct {
	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a message arrives
	log     []relay.Message
	acked   map[int]bool
	ids     map[string]bool
	dups    int
	lose    bool // the answer to the next Publish
}

// ErrRefused is why a [Queue] refuses a message whose body is "refused".
var ErrRefused = errors.New("refused by the queue")

var errLost = errors.New("the answer was lost")

// Sink returns a sink that appends to q and drops IDs it has seen.
func (q *Queue) Sink() relay.Sink { return &memSink{q: q} }

// Source returns a source that delivers what has not been acknowledged in q.
func (q *Queue) Source() relay.Source { return &memSource{q: q} }

// Messages returns all messages in the order in which they arrived.
func (q *Queue) Messages() []relay.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.log)
}

// LoseAnswer makes the next Publish return an error although all of its messages
// arrive, as if the connection were lost before the answer.
func (q *Queue) LoseAnswer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lose = true
}

// losesAnswer reports whether the answer to the present Publish is lost.
func (q *Queue) losesAnswer() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	lose := q.lose
	q.lose = false
	return lose
}

func (q *Queue) arrived() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.changed == nil {
		q.changed = make(chan struct{})
	}
	return q.changed
}

func (q *Queue) append(m relay.Message) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ids == nil {
		q.ids = make(map[string]bool)
	}
	if q.ids[m.ID] {
		q.dups++
		return
	}
	q.ids[m.ID] = true
	m.Body = slices.Clone(m.Body)
	m.Row = slices.Clone(m.Row)
	m.Headers = slices.Clone(m.Headers)
	m.Origin = "mem:queue"
	m.Token = nil
	q.log = append(q.log, m)
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
}

type memSink struct {
	q       *Queue
	outcome relay.Outcome
}

func (s *memSink) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	defer s.outcome.Reset(nil)
	for i := range batch {
		m := &batch[i]
		switch {
		case s.outcome.Held(i):
		case string(m.Body) == "refused":
			s.outcome.Fail(i, relay.Permanent(ErrRefused))
		default:
			s.q.append(*m)
			s.outcome.Confirm(i)
		}
	}
	if s.q.losesAnswer() {
		return relay.Unknown(errLost)
	}
	return s.outcome.Err()
}

func (s *memSink) Close() error { s.outcome.Close(); return nil }

func (s *memSink) TakeDuplicates() int {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	n := s.q.dups
	s.q.dups = 0
	return n
}

func (s *memSink) Position(context.Context) (string, error) {
	return strconv.Itoa(len(s.q.Messages())), nil
}

func (s *memSink) Resume(_ context.Context, position string, seen func(id string)) error {
	from, err := strconv.Atoi(position)
	if err != nil {
		return err
	}
	for _, m := range s.q.Messages()[from:] {
		seen(m.ID)
	}
	return nil
}

type memSource struct {
	q    *Queue
	next int
}

func (s *memSource) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		arrived := s.q.arrived()
		if batch := s.take(limit); len(batch) > 0 {
			return batch, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-arrived:
		}
	}
}

func (s *memSource) take(limit int) (batch []relay.Message) {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	for ; s.next < len(s.q.log) && len(batch) < limit; s.next++ {
		if !s.q.acked[s.next] {
			m := s.q.log[s.next]
			m.Token = s.next
			batch = append(batch, m)
		}
	}
	return batch
}

func (s *memSource) Ack(_ context.Context, batch []relay.Message) error {
	s.q.mu.Lock()
	defer s.q.mu.Unlock()
	if s.q.acked == nil {
		s.q.acked = make(map[int]bool)
	}
	for i := range batch {
		s.q.acked[batch[i].Token.(int)] = true
	}
	return nil
}

func (s *memSource) Close() error { return nil }
