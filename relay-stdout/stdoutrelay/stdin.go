package stdoutrelay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// stdin is a process's standard input. It outlives the sources that read it, so
// that a pipeline that is reloaded loses nothing of it; what is read and not
// settled when the process dies is gone.
type stdin struct {
	in    io.Reader
	start sync.Once
	lines chan relay.Message
	err   chan error

	mu      sync.Mutex
	pending []relay.Message // received and not settled, in order
}

func newStdin(in io.Reader) *stdin {
	return &stdin{in: in, lines: make(chan relay.Message, 1000), err: make(chan error, 1)}
}

// open returns a source that begins with what an earlier one left unsettled.
func (s *stdin) open(cfg sourceConfig) *piped {
	// A read of standard input cannot be interrupted, so nobody waits for this
	// goroutine: it ends with the input or with the process.
	s.start.Do(func() { go s.pump(lines{in: bufio.NewReaderSize(s.in, 256<<10), max: int(cfg.MaxLine)}) })
	s.mu.Lock()
	defer s.mu.Unlock()
	return &piped{stdin: s, left: append([]relay.Message(nil), s.pending...), quit: make(chan struct{})}
}

func (s *stdin) pump(in lines) {
	for offset := 0; ; {
		text, length, err := in.next()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.err <- fmt.Errorf("read standard input: %w", err)
				return
			}
			if text, length = in.take(); length == 0 {
				return
			}
		}
		if len(text) > 0 {
			// Another run reads other input at the same offset, so the offset alone
			// would not tell one line from another.
			id := fmt.Sprintf("stdin:%d:%08x", offset, crc32.ChecksumIEEE(text))
			m := in.message(id, "stdin", text, length)
			m.Token = offset
			s.lines <- m
		}
		offset += length
	}
}

func (s *stdin) settle(batch []relay.Message) {
	settled := make(map[any]bool, len(batch))
	for i := range batch {
		settled[batch[i].Token] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.pending[:0]
	for i := range s.pending {
		if !settled[s.pending[i].Token] {
			kept = append(kept, s.pending[i])
		}
	}
	clear(s.pending[len(kept):])
	s.pending = kept
}

// piped is one source on standard input.
type piped struct {
	stdin *stdin
	left  []relay.Message
	quit  chan struct{}
	shut  sync.Once
}

// Receive implements [relay.Source]. At the end of input it waits for its
// context, as any source that has nothing to give.
func (s *piped) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	if n := min(limit, len(s.left)); n > 0 {
		batch := s.left[:n:n]
		s.left = s.left[n:]
		return batch, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.quit:
		return nil, errSourceClosed
	case err := <-s.stdin.err:
		return nil, err
	case m := <-s.stdin.lines:
		return s.fill([]relay.Message{m}, limit), nil
	}
}

// fill adds what is there without waiting, up to limit.
func (s *piped) fill(batch []relay.Message, limit int) []relay.Message {
	for len(batch) < limit && len(s.stdin.lines) > 0 {
		batch = append(batch, <-s.stdin.lines)
	}
	s.stdin.mu.Lock()
	defer s.stdin.mu.Unlock()
	s.stdin.pending = append(s.stdin.pending, batch...)
	return batch
}

// Ack implements [relay.Source].
func (s *piped) Ack(_ context.Context, batch []relay.Message) error {
	s.stdin.settle(batch)
	return nil
}

// Close implements [relay.Source].
func (s *piped) Close() error {
	s.shut.Do(func() { close(s.quit) })
	return nil
}

// Guarantee implements [relay.Guarantor].
func (s *piped) Guarantee() relay.Guarantee {
	return relay.Guarantee{
		Delivery: "at most once across a crash: standard input cannot be read again",
		Dedup:    "the envelope's dedup_key, else offset and checksum of the line",
		Order:    "as in the input",
		Weakest:  "lines that were read and not stored when the process dies",
	}
}
