package stdoutrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// headSize is how much of a file's beginning identifies it.
const headSize = 64

// file appends to a file, and syncs after each batch. It removes what a failed write
// leaves before it writes anything else.
type file struct {
	writer
	cfg    sinkConfig
	f      *os.File
	id     uint64 // of the file: its inode
	head   []byte // its first bytes, up to headSize
	size   int64  // of what is whole and synced
	dirty  int64  // bytes that a failed write left after size
	closed bool
}

var (
	_ relay.Pinger    = (*file)(nil)
	_ relay.Router    = (*file)(nil)
	_ relay.Guarantor = (*file)(nil)
)

func (s *file) open() (err error) {
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return classify(fmt.Errorf("open %s: %w", s.cfg.Path, err))
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			s.f, err = nil, classify(fmt.Errorf("open %s: %w", s.cfg.Path, err))
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errNotFile
	}
	s.f, s.id, s.size, s.dirty = f, inode(info), info.Size(), 0
	if err := s.cutTorn(); err != nil {
		return fmt.Errorf("cut the torn end off: %w", err)
	}
	s.head = make([]byte, min(headSize, s.size))
	_, err = io.ReadFull(io.NewSectionReader(f, 0, s.size), s.head)
	return err
}

// cutTorn removes a message that a crash left unfinished at the file's end.
func (s *file) cutTorn() error {
	for window := int64(64 << 10); ; window *= 4 {
		window = min(window, s.size)
		tail := make([]byte, window)
		if _, err := s.f.ReadAt(tail, s.size-window); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		keep := intact(s.cfg.Format, tail)
		if keep == len(tail) {
			return nil
		}
		if keep > 0 || window == s.size {
			s.size += int64(keep - len(tail))
			return s.f.Truncate(s.size)
		}
	}
}

// Publish implements [relay.Sink].
func (s *file) Publish(ctx context.Context, batch []relay.Message) error {
	if s.closed {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.ready(); err != nil {
		return err
	}
	s.render(batch, s.size == 0)
	if s.cfg.RotateBytes > 0 && s.size > 0 && s.size+int64(len(s.buf)) > int64(s.cfg.RotateBytes) {
		if err := s.rotate(); err != nil {
			return classify(fmt.Errorf("rotate %s: %w", s.cfg.Path, err))
		}
		s.render(batch, true)
	}
	if err := s.write(); err != nil {
		return classify(fmt.Errorf("write to %s: %w", s.cfg.Path, err))
	}
	s.outcome.ConfirmRest()
	return s.outcome.Err()
}

// ready makes sure that the file is open, is still the one at path, and ends
// where the last batch ended.
func (s *file) ready() error {
	if s.f != nil {
		info, err := os.Stat(s.cfg.Path)
		if err != nil || inode(info) != s.id { // logrotate has moved it
			_ = s.f.Close()
			s.f = nil
		} else if info.Size() != s.size+s.dirty {
			s.size, s.dirty = info.Size(), 0 // another process cut it or wrote to it
		}
	}
	if s.f == nil {
		return s.open()
	}
	if s.dirty > 0 {
		if err := s.f.Truncate(s.size); err != nil {
			return classify(fmt.Errorf("cut an unfinished batch off %s: %w", s.cfg.Path, err))
		}
		s.dirty = 0
	}
	return nil
}

func (s *file) write() error {
	if len(s.buf) == 0 {
		return nil
	}
	n, err := s.f.Write(s.buf)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		s.dirty = int64(n)
		return errors.Join(err, s.ready()) // removes what was written
	}
	s.head = append(s.head, s.buf[:min(headSize-len(s.head), len(s.buf))]...)
	s.size += int64(len(s.buf))
	return nil
}

// rotate renames path to path.1, that to path.2, and so on, and begins a new file.
func (s *file) rotate() error {
	last := 1
	for exists(s.rotated(last)) {
		last++
	}
	for n := last; n > 0; n-- {
		if s.cfg.Keep > 0 && n > s.cfg.Keep {
			if err := os.Remove(s.rotated(n - 1)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		} else if err := os.Rename(s.rotated(n-1), s.rotated(n)); err != nil {
			return err
		}
	}
	_ = s.f.Close()
	s.f = nil
	if err := s.open(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.cfg.Path))
}

func (s *file) rotated(n int) string {
	if n == 0 {
		return s.cfg.Path
	}
	return fmt.Sprintf("%s.%d", s.cfg.Path, n)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // opened for reading
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// Close implements [relay.Sink].
func (s *file) Close() error {
	s.closed = true
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

// Ping implements [relay.Pinger].
func (s *file) Ping(context.Context) error { return s.ready() }

// Destination implements [relay.Router].
func (s *file) Destination(*relay.Message) (string, error) { return s.cfg.Path, nil }

// Guarantee implements [relay.Guarantor].
func (s *file) Guarantee() relay.Guarantee {
	g := Backend().SinkGuarantee
	switch s.cfg.Format {
	case "raw":
		g.Delivery, g.Dedup = "at least once", "none: raw bytes carry no id"
		g.Weakest = "what was written last before a crash is written again; a message that a crash cut stays cut"
	case "csv":
		g.Delivery = "effectively once"
	}
	return g
}
