package stdoutrelay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// headSize is how much of a file's beginning identifies it.
const headSize = 64

// file appends to a file, and syncs after each batch. It removes what a failed write
// leaves before it writes anything else. It opens the file when the engine first asks
// for its position, so that the check command changes nothing.
type file struct {
	writer
	cfg    sinkConfig
	f      *os.File
	id     uint64 // of the file: its inode
	head   []byte // its first bytes, up to headSize
	size   int64  // of what is whole and synced
	dirty  int64  // bytes after size that are not synced, or that a failed write left
	begun  []byte // the first of these, up to headSize
	inLine bool   // the file ends within another writer's line, or within a torn one
}

var (
	_ relay.Pinger    = (*file)(nil)
	_ relay.Router    = (*file)(nil)
	_ relay.Guarantor = (*file)(nil)
)

// open opens the file, or creates it. It cuts nothing off: see [file.cutTorn].
func (s *file) open() (err error) {
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return classify(err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			err = classify(fmt.Errorf("open %s: %w", s.cfg.Path, err))
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errNotFile
	}
	id, size := inode(info), info.Size()
	head, last := make([]byte, min(headSize, size)), make([]byte, min(1, size))
	_, err = f.ReadAt(head, 0)
	if _, err2 := f.ReadAt(last, size-int64(len(last))); err != nil || err2 != nil {
		return errors.Join(err, err2)
	}
	s.f, s.id, s.size, s.dirty, s.head = f, id, size, 0, head
	s.inLine = s.cfg.Format != "raw" && size > 0 && last[0] != '\n'
	return nil
}

// cutTorn removes a message that a crash left unfinished after at. The file must be
// that of at by some of its bytes: another program's may have the inode of a deleted
// file. Such a file keeps all its bytes, and the first message begins on a new line.
func (s *file) cutTorn(at *position) error {
	info, err := s.f.Stat()
	if err != nil || at.HeadLength == 0 || !at.isIn(s.f, info) {
		return err
	}
	end := s.size
	if s.cfg.Format == "json_pretty" {
		end, err = s.prettyEnd(at.Offset)
	} else if s.cfg.Format != "raw" { // nothing separates its messages
		end, err = s.lineEnd(at.Offset)
	}
	if err != nil || end == s.size {
		return err
	}
	if err := s.f.Truncate(end); err != nil {
		return err
	}
	return s.ready()
}

// lineEnd returns the offset after the last line that is whole, from from on. A message
// that was streamed may be larger than memory, so lineEnd does not hold what follows.
func (s *file) lineEnd(from int64) (int64, error) {
	part := make([]byte, 64<<10)
	for end := s.size; end > from; {
		part = part[:min(int64(len(part)), end-from)]
		if _, err := s.f.ReadAt(part, end-int64(len(part))); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return end - int64(len(part)-i-1), nil
		}
		end -= int64(len(part))
	}
	return from, nil
}

// prettyEnd returns the offset after the last message that is whole, from from on.
func (s *file) prettyEnd(from int64) (int64, error) {
	for window := int64(64 << 10); ; window *= 4 {
		window = min(window, s.size-from)
		tail := make([]byte, window)
		if _, err := s.f.ReadAt(tail, s.size-window); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if keep := intact(tail); keep > 0 || window == s.size-from {
			return s.size - window + int64(keep), nil
		}
	}
}

// Publish implements [relay.Sink].
func (s *file) Publish(ctx context.Context, batch []relay.Message) error {
	if err := s.outcome.Begin(ctx, batch); err != nil {
		return err
	}
	if err := s.ready(); err != nil {
		return err
	}
	if batch[0].Payload.Stream != nil {
		return s.publishStream(ctx, batch[0].Payload.Stream)
	}
	defer s.forget()
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
		info, err := os.Lstat(s.cfg.Path)
		if err != nil || inode(info) != s.id || info.Size() != s.size+s.dirty { // logrotate moved it, or another process wrote to it
			_ = s.f.Close()
			s.f = nil
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
	if s.inLine {
		s.buf = slices.Insert(s.buf, 0, '\n')
	}
	_, err := s.Write(s.buf)
	return s.commit(err)
}

// Write writes b after the bytes of the batch that are written already.
func (s *file) Write(b []byte) (int, error) {
	n, err := s.f.Write(b)
	s.dirty += int64(n)
	s.begun = append(s.begun, b[:min(headSize-len(s.begun), n)]...)
	return n, err
}

// commit syncs what was added, unless err or the sync fails. Then it removes it.
func (s *file) commit(err error) error {
	begun := s.begun
	s.begun = s.begun[:0]
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return errors.Join(err, s.ready()) // removes what was written
	}
	s.head = append(s.head, begun[:min(headSize-len(s.head), len(begun))]...)
	s.size, s.dirty = s.size+s.dirty, 0
	s.inLine = false
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
	s.outcome.Close()
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

// Ping implements [relay.Pinger].
func (s *file) Ping(context.Context) error {
	_, err := look(s.cfg.Path)
	return err
}

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
