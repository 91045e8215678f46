package stdoutrelay

import (
	"context"
	"fmt"
	"io"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Streams implements [relay.Streamer]. The other formats change the body in ways that need
// all of it.
func (s *file) Streams() bool { return s.cfg.Format == "jsonl" || s.cfg.Format == "raw" }

var _ relay.Streamer = (*file)(nil)

// publishStream writes a message while it is read.
func (s *file) publishStream(ctx context.Context, m *relay.Stream) error {
	if s.cfg.RotateBytes > 0 && s.size > 0 && s.size+m.Length() > int64(s.cfg.RotateBytes) {
		if err := s.rotate(); err != nil {
			return classify(fmt.Errorf("rotate %s: %w", s.cfg.Path, err))
		}
	}
	body, err := m.Open(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	err = s.copy(body)
	if err := s.commit(err); err != nil {
		return classify(fmt.Errorf("write to %s: %w", s.cfg.Path, err))
	}
	return nil
}

func (s *file) copy(body io.Reader) error {
	line := s.cfg.Format == "jsonl"
	if s.inLine {
		if err := s.add([]byte{'\n'}); err != nil {
			return err
		}
	}
	for part := make([]byte, 256<<10); ; {
		n, err := body.Read(part)
		kept := part[:n]
		if line {
			kept = withoutBreaks(kept)
		}
		if err := s.add(kept); err != nil {
			return err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if line {
		return s.add([]byte{'\n'})
	}
	return nil
}

// withoutBreaks removes line breaks from b in place. In JSON they mean nothing.
func withoutBreaks(b []byte) []byte {
	n := 0
	for _, c := range b {
		if c != '\n' && c != '\r' {
			b[n] = c
			n++
		}
	}
	return b[:n]
}
