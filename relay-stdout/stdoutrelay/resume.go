package stdoutrelay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var _, _ = relay.Resumer((*file)(nil)), relay.Immediate((*file)(nil))

// position is a place in a file. The file is known by its inode and by its first
// bytes, because a deleted file's inode is soon given to another one.
type position struct {
	Inode      uint64 `json:"inode"`
	Head       uint32 `json:"head"` // CRC-32 of the first HeadLength bytes
	HeadLength int64  `json:"head_length"`
	Offset     int64  `json:"offset"`
}

// isIn reports whether f is the file of p, and at least as long as p.
func (p *position) isIn(f *os.File, info os.FileInfo) bool {
	return inode(info) == p.Inode && info.Size() >= p.Offset && checksum(f, 0, p.HeadLength) == p.Head
}

// checksum returns the CRC-32 of n bytes of f. It is another one, with all
// likelihood, if f has fewer or cannot be read.
func checksum(f io.ReaderAt, from, n int64) uint32 {
	sum := crc32.NewIEEE()
	_, _ = io.Copy(sum, io.NewSectionReader(f, from, n))
	return sum.Sum32()
}

func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// Position implements [relay.Resumer].
func (s *file) Position(context.Context) (string, error) {
	if s.f == nil {
		if err := s.open(); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(position{s.id, crc32.ChecksumIEEE(s.head), int64(len(s.head)), s.size})
	return string(text), err
}

// Immediate implements [relay.Immediate].
func (s *file) Immediate() {}

// Resume implements [relay.Resumer]. It reads the rest of the position's file and
// all files after it. If that file is gone, it reads all files.
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
	if err := s.cutTorn(&at); err != nil {
		return fmt.Errorf("cut the torn end of %s: %w", s.cfg.Path, err)
	}
	for n, found := 0, false; !found && exists(s.rotated(n)); n++ {
		var err error
		if found, err = s.readIDs(ctx, s.rotated(n), at, seen); err != nil {
			return fmt.Errorf("read back %s: %w", s.rotated(n), err)
		}
	}
	return nil
}

// readIDs calls seen with the id of each message in the file at path. If at is in that
// file, it begins after it. It reads line by line, so that a line of another writer
// hides no other line.
func (s *file) readIDs(ctx context.Context, path string, at position, seen func(id string)) (found bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if found = at.isIn(f, info); found {
		if _, err := f.Seek(at.Offset, io.SeekStart); err != nil {
			return false, err
		}
	}

	ids := &jsonIDs{seen: seen}
	for in := bufio.NewReaderSize(f, 64<<10); ctx.Err() == nil; {
		line, whole, err := readLine(in)
		switch {
		case s.cfg.Format == "csv":
			csvID(line, whole, seen)
		case whole:
			ids.line(line)
		default:
			ids.head(line)
		}
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return false, err
		}
	}
	return false, ctx.Err()
}

// maxLine bounds the line that is held to be read back. A message that was streamed may be
// larger than memory; its id stands in front of its row.
const maxLine = 1 << 20

// readLine returns the next line without its end, and whether it is whole. Of a line of more
// than maxLine bytes it returns the beginning.
func readLine(in *bufio.Reader) (line []byte, whole bool, err error) {
	for whole = true; ; {
		part, err := in.ReadSlice('\n')
		if whole = whole && len(line) < maxLine; whole {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimRight(line, "\r\n"), whole, err
		}
	}
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

// values reads all values of text: another writer may have left out the end of
// its line.
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

// head finds the id in the beginning of a line that is too long to be held.
func (j *jsonIDs) head(text []byte) {
	j.value = j.value[:0]
	dec := json.NewDecoder(bytes.NewReader(text))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return
	}
	cloudEvent := false
	for {
		name, err := dec.Token()
		if err != nil {
			return
		}
		value, err := dec.Token()
		text, isText := value.(string)
		if _, nested := value.(json.Delim); err != nil || nested {
			return
		}
		cloudEvent = cloudEvent || name == "specversion"
		if isText && text != "" && (name == "dedup_key" || cloudEvent && name == "id") {
			j.seen(text)
			return
		}
	}
}

// csvID finds the id in a line that [appendCSV] wrote, or in its beginning. It reads each
// line as a file of its own, because another writer may have left a quote open.
func csvID(line []byte, whole bool, seen func(id string)) {
	in := csv.NewReader(bytes.NewReader(line))
	in.LazyQuotes = !whole
	if fields, err := in.Read(); err == nil && fields[0] != "" && fields[0] != "dedup_key" {
		seen(fields[0])
	}
}
