package webhookrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// source turns requests into messages. A request waits until each of its events
// has been acknowledged.
type source struct {
	cfg      sourceConfig
	pipeline string
	shared   *listeners
	verify   verifier

	stop    chan struct{} // closed by Close
	arrived chan struct{} // holds a token when the queue may have grown

	mu       sync.Mutex
	closed   bool
	queue    []*item          // not yet received
	inFlight map[string]*item // not yet acknowledged, by id
	reserved int64            // bytes of bodies being read and of events in flight
}

// eventOverhead is about what an event takes beside its body: the message, its
// item, its places in the queue and among those in flight, and the channel that
// its request waits on. A body of small events is the least part of what they take.
const eventOverhead = 1 << 10

// item is one event on its way. More than one request may wait for it, when a
// sender repeats itself.
type item struct {
	message relay.Message
	size    int64
	done    chan struct{} // closed when it is acknowledged
}

func newSource(ctx context.Context, env relay.Env, raw json.RawMessage, shared *listeners) (relay.Source, error) {
	cfg := sourceDefaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	s := &source{
		cfg: cfg, pipeline: env.Pipeline, shared: shared, verify: newVerifier(&cfg),
		stop: make(chan struct{}), arrived: make(chan struct{}, 1), inFlight: make(map[string]*item),
	}
	if err := shared.add(ctx, s, env.Logger); err != nil {
		return nil, err
	}
	if cfg.Auth == authNone && cfg.ClientCA == "" {
		env.Logger.Warn("webhook takes events from anyone who can reach it; set auth", "bind", cfg.Bind, "path", cfg.Path)
	}
	return s, nil
}

// Receive waits for events.
func (s *source) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, errors.New("receive from webhook: source is closed")
		}
		if n := min(limit, len(s.queue)); n > 0 {
			batch := make([]relay.Message, n)
			for i, it := range s.queue[:n] {
				batch[i] = it.message
				batch[i].Token = it
			}
			s.queue = s.queue[n:]
			if len(s.queue) == 0 {
				s.queue = nil
			}
			s.mu.Unlock()
			return batch, nil
		}
		s.mu.Unlock()
		select {
		case <-s.arrived:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.stop:
		}
	}
}

// Ack answers the requests of which every event is now settled.
func (s *source) Ack(_ context.Context, batch []relay.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		it, ok := batch[i].Token.(*item)
		if !ok || s.inFlight[it.message.ID] != it {
			continue
		}
		delete(s.inFlight, it.message.ID)
		s.reserved -= it.size
		close(it.done)
	}
	return nil
}

// Close answers what waits with 503.
func (s *source) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.queue = nil
	close(s.stop)
	s.mu.Unlock()
	return s.shared.remove(s)
}

// Ping reports whether the source takes requests.
func (s *source) Ping(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("webhook source is closed")
	}
	return nil
}

var (
	errClosed   = errors.New("the pipeline is stopping or restarting")
	errSlow     = errors.New("the inbox has not confirmed the event in time; it will, or the event may be sent again")
	errFull     = errors.New("too many events wait for the inbox")
	errConflict = errors.New("an event with this id and another body is on its way")
)

// reserve makes room for bytes that have come or are about to be taken.
func (s *source) reserve(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.reserved+size > int64(s.cfg.MaxPending) {
		return errFull
	}
	s.reserved += size
	return nil
}

func (s *source) unreserve(size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved -= size
}

// enqueue takes all of messages or none, and returns what to wait for.
func (s *source) enqueue(messages []relay.Message) ([]*item, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	for i := range messages {
		if it := s.inFlight[messages[i].ID]; it != nil && !bytes.Equal(it.message.Body, messages[i].Body) {
			return nil, errConflict
		}
	}
	items := make([]*item, len(messages))
	for i := range messages {
		it := s.inFlight[messages[i].ID]
		if it == nil {
			it = &item{message: messages[i], size: int64(len(messages[i].Body)) + eventOverhead, done: make(chan struct{})}
			s.inFlight[it.message.ID] = it
			s.queue = append(s.queue, it)
			s.reserved += it.size
		}
		items[i] = it
	}
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	return items, nil
}

// wait returns when all items are acknowledged.
func (s *source) wait(ctx context.Context, items []*item) error {
	timeout := time.NewTimer(s.cfg.AckTimeout.D())
	defer timeout.Stop()
	for _, it := range items {
		select {
		case <-it.done:
		case <-s.stop:
			return errClosed
		case <-timeout.C:
			return errSlow
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
