package stdoutrelay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errNotFile = errors.New("is not a regular file")

// file appends to a file, and syncs after each batch. Whatever a failed write
// leaves behind is cut off again before anything else is written.
type file struct {
	writer
	cfg    sinkConfig
	f      *os.File
	id     uint64 // of the file: its inode
	head   []byte // how it begins, up to headSize bytes
	size   int64  // of what is whole and synced
	dirty  int64  // bytes that a failed write left behind size
	closed bool
}

// headSize is how much of a file's beginning tells it from another one that has
// got the same inode since.
const headSize = 64

func (s *file) open() error {
	f, err := os.OpenFile(s.cfg.Path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return classify(fmt.Errorf("open %s: %w", s.cfg.Path, err))
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s %w", s.cfg.Path, errNotFile)
	}
	if err != nil {
		_ = f.Close()
		return classify(err)
	}
	s.f, s.id, s.size, s.dirty = f, inode(info), info.Size(), 0
	if err := s.cutTorn(); err != nil {
		_ = f.Close()
		s.f = nil
		return classify(fmt.Errorf("cut the torn end off %s: %w", s.cfg.Path, err))
	}
	s.head = make([]byte, min(headSize, s.size))
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, s.size), s.head); err != nil {
		_ = f.Close()
		s.f = nil
		return fmt.Errorf("read %s: %w", s.cfg.Path, err)
	}
	return nil
}

func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
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
	bad := s.render(batch, s.size == 0)
	if s.cfg.RotateBytes > 0 && s.size > 0 && s.size+int64(len(s.buf)) > int64(s.cfg.RotateBytes) {
		if err := s.rotate(); err != nil {
			return err
		}
		if s.format == "csv" {
			bad = s.render(batch, true)
		}
	}
	if err := s.write(); err != nil {
		return classify(fmt.Errorf("write to %s: %w", s.cfg.Path, err))
	}
	return bad.Err()
}

// ready makes sure that the file is open, is still the one at path, and ends
// where the last batch ended.
func (s *file) ready() error {
	if s.f != nil {
		info, err := os.Stat(s.cfg.Path)
		if err != nil || inode(info) != s.id { // moved away, by logrotate for one
			_ = s.f.Close()
			s.f = nil
		} else if info.Size() != s.size+s.dirty {
			s.size, s.dirty = info.Size(), 0 // somebody else cut it or wrote to it
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
		return errors.Join(err, s.ready()) // cut off what is there of it
	}
	if missing := headSize - len(s.head); missing > 0 {
		s.head = append(s.head, s.buf[:min(missing, len(s.buf))]...)
	}
	s.size += int64(len(s.buf))
	return nil
}

// rotate moves path to path.1, that to path.2, and so on, and begins a new file.
func (s *file) rotate() error {
	last := 1
	for exists(s.rotated(last)) {
		last++
	}
	for n := last; n > 0; n-- {
		if s.cfg.Keep > 0 && n > s.cfg.Keep {
			if err := os.Remove(s.rotated(n - 1)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return classify(fmt.Errorf("rotate %s: %w", s.cfg.Path, err))
			}
			continue
		}
		if err := os.Rename(s.rotated(n-1), s.rotated(n)); err != nil {
			return classify(fmt.Errorf("rotate %s: %w", s.cfg.Path, err))
		}
	}
	_ = s.f.Close()
	s.f = nil
	if err := s.open(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(s.cfg.Path))
}

func (s *file) rotated(n int) string { return rotated(s.cfg.Path, n) }

func rotated(path string, n int) string {
	if n == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, n)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	defer d.Close() //nolint:errcheck // opened for reading
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("sync directory %s: %w", dir, err)
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

// position is where a file ended. The file is known by its inode and by how it
// begins, and found again under another name after rotation.
type position struct {
	Inode  uint64 `json:"inode"`
	Head   uint32 `json:"head"`
	Length int    `json:"head_length"`
	Offset int64  `json:"offset"`
}

// Position implements [relay.Resumer].
func (s *file) Position(context.Context) (string, error) {
	text, err := json.Marshal(position{s.id, crc32.ChecksumIEEE(s.head), len(s.head), s.size})
	return string(text), err
}

// Resume implements [relay.Resumer]. It reads what was written behind position:
// the rest of that file, and every file that has followed it.
func (s *file) Resume(ctx context.Context, text string, seen func(id string)) error {
	var at position
	if err := json.Unmarshal([]byte(text), &at); err != nil {
		return fmt.Errorf("position %q is not one of a file: %w", text, err)
	}
	if s.cfg.Format == "raw" {
		return nil
	}
	if err := s.ready(); err != nil {
		return err
	}
	oldest := 0
	for exists(s.rotated(oldest + 1)) {
		oldest++
	}
	begin := oldest // the whole of what is left, when position's file is gone
	offset := int64(0)
	for n := 0; n <= oldest; n++ {
		if at.is(s.rotated(n)) {
			begin, offset = n, at.Offset
			break
		}
	}
	for n := begin; n >= 0; n-- {
		if err := s.readIDs(ctx, s.rotated(n), offset, seen); err != nil {
			return fmt.Errorf("read back %s: %w", s.rotated(n), err)
		}
		offset = 0
	}
	return nil
}

func (p position) is(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // opened for reading
	info, err := f.Stat()
	if err != nil || inode(info) != p.Inode || info.Size() < p.Offset {
		return false
	}
	head := make([]byte, p.Length)
	_, err = io.ReadFull(f, head)
	return err == nil && crc32.ChecksumIEEE(head) == p.Head
}

// readIDs calls seen with the id of each message in the file from offset on. It
// goes line by line, so that a stranger's line hides nothing but itself.
func (s *file) readIDs(ctx context.Context, path string, offset int64, seen func(id string)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	read := (&jsonIDs{seen: seen}).line
	if s.cfg.Format == "csv" {
		read = func(line []byte) { csvID(line, seen) }
	}
	for in := bufio.NewReaderSize(f, 64<<10); ctx.Err() == nil; {
		line, err := in.ReadBytes('\n')
		read(bytes.TrimRight(line, "\r\n"))
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// jsonIDs finds ids in JSON values, each on a line or indented over several.
type jsonIDs struct {
	seen  func(id string)
	value []byte // the beginning of an indented one
}

func (j *jsonIDs) line(line []byte) {
	begun := len(j.value) > 0
	switch {
	case string(line) == "{", string(line) == "[":
		j.value = append(j.value[:0], line...)
	case begun && len(line) > 0 && line[0] == ' ':
		j.value = append(j.value, line...)
	case begun && len(line) > 0 && (line[0] == '}' || line[0] == ']'):
		j.values(append(j.value, line...))
		j.value = j.value[:0]
	default:
		j.value = j.value[:0]
		j.values(line)
	}
}

// values takes as many values from text as there are: a stranger may have left
// out the line's end behind one of its own.
func (j *jsonIDs) values(text []byte) {
	for dec := json.NewDecoder(bytes.NewReader(text)); ; {
		var body json.RawMessage
		if dec.Decode(&body) != nil {
			return
		}
		var m struct {
			DedupKey string `json:"dedup_key"`
			ID       string `json:"id"`
			Spec     string `json:"specversion"`
		}
		if json.Unmarshal(body, &m) != nil {
			continue
		}
		if m.DedupKey != "" {
			j.seen(m.DedupKey)
		} else if m.Spec != "" && m.ID != "" {
			j.seen(m.ID)
		}
	}
}

// csvID finds the id in a line as [appendCSV] writes it. A reader of CSV would
// take a quote that a stranger has left open for the beginning of many lines.
func csvID(line []byte, seen func(id string)) {
	if id := firstField(line); id != "" && id != "dedup_key" {
		seen(id)
	}
}

// firstField undoes [appendField]; of a line that it did not write it may return
// anything.
func firstField(line []byte) string {
	if len(line) == 0 || line[0] != '"' {
		field, _, _ := bytes.Cut(line, []byte{','})
		return string(field)
	}
	var field []byte
	for rest := line[1:]; ; {
		text, behind, closed := bytes.Cut(rest, []byte{'"'})
		field = append(field, text...)
		if !closed || len(behind) == 0 || behind[0] != '"' {
			return string(field)
		}
		field, rest = append(field, '"'), behind[1:]
	}
}
