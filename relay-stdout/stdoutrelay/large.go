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
	if line {
		body = unbroken{body}
	}
	if s.inLine {
		if _, err := s.Write([]byte{'\n'}); err != nil {
			return err
		}
	}
	if _, err := io.CopyBuffer(s, body, make([]byte, 256<<10)); err != nil || !line {
		return err
	}
	_, err := s.Write([]byte{'\n'})
	return err
}

// unbroken leaves line breaks out. In JSON they mean nothing.
type unbroken struct{ io.Reader }

// Read implements [io.Reader]. slices.DeleteFunc would take three times as long.
func (u unbroken) Read(p []byte) (kept int, err error) {
	n, err := u.Reader.Read(p)
	for _, c := range p[:n] {
		if c != '\n' && c != '\r' {
			p[kept] = c
			kept++
		}
	}
	return kept, err
}
