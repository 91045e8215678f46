package stdoutrelay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// stdin is a process's standard input. It outlives the sources that read it, so
// that a pipeline that is reloaded loses nothing of it. What is read and not
// settled when the process dies is lost.
type stdin struct {
	in    io.Reader
	start sync.Once
	lines chan relay.Message // made by start: it takes 350 KiB
	err   chan error

	mu      sync.Mutex
	pending []relay.Message // received and not settled, in order
}

func newStdin(in io.Reader) *stdin {
	return &stdin{in: in, err: make(chan error, 1)}
}

// open returns a source that begins with what an earlier one left unsettled.
func (s *stdin) open(cfg sourceConfig) *piped {
	// A read of standard input cannot be interrupted, so this goroutine has no
	// owner: it ends with the input or with the process.
	s.start.Do(func() {
		s.lines = make(chan relay.Message, 1000)
		go s.pump(lines{in: bufio.NewReaderSize(s.in, 256<<10), max: int(cfg.MaxLine)})
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return &piped{stdin: s, left: slices.Clone(s.pending), done: make(chan struct{})}
}

func (s *stdin) pump(in lines) {
	for offset := 0; ; {
		text, length, err := in.next()
		if errors.Is(err, io.EOF) {
			if text, length = in.take(); length == 0 {
				return
			}
		} else if err != nil {
			s.err <- fmt.Errorf("read standard input: %w", err)
			return
		}
		if len(text) > 0 {
			// Another run reads other input at the same offset, so the id needs more.
			m := in.message(fmt.Sprintf("stdin:%d:%08x", offset, crc32.ChecksumIEEE(text)), "stdin", text, length)
			m.Token = offset
			s.lines <- m
		}
		offset += length
	}
}

// piped is one source on standard input.
type piped struct {
	stdin *stdin
	left  []relay.Message
	done  chan struct{}
	close sync.Once
}

var _ relay.Guarantor = (*piped)(nil)

// Receive implements [relay.Source]. At the end of input it waits for its context.
func (s *piped) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	if n := min(limit, len(s.left)); n > 0 {
		batch := s.left[:n:n]
		s.left = s.left[n:]
		return batch, nil
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.done:
		return nil, relay.ErrClosed
	case err := <-s.stdin.err:
		return nil, err
	case m := <-s.stdin.lines:
		batch := []relay.Message{m}
		for len(batch) < limit && len(s.stdin.lines) > 0 {
			batch = append(batch, <-s.stdin.lines)
		}
		s.stdin.mu.Lock()
		defer s.stdin.mu.Unlock()
		s.stdin.pending = append(s.stdin.pending, batch...)
		return batch, nil
	}
}

// Ack implements [relay.Source].
func (s *piped) Ack(_ context.Context, batch []relay.Message) error {
	settled := make(map[any]bool, len(batch))
	for i := range batch {
		settled[batch[i].Token] = true
	}
	s.stdin.mu.Lock()
	defer s.stdin.mu.Unlock()
	s.stdin.pending = slices.DeleteFunc(s.stdin.pending, func(m relay.Message) bool { return settled[m.Token] })
	return nil
}

// Close implements [relay.Source].
func (s *piped) Close() error {
	s.close.Do(func() { close(s.done) })
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
