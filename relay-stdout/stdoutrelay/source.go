package stdoutrelay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	errSourceClosed = errors.New("the source is closed")
	errMoved        = errors.New("rotation has just put another file there")
)

// followEvery is how often a followed file is looked at while nothing comes.
const followEvery = 100 * time.Millisecond

// reopenWithin is how long a renamed file must have been quiet before it is left,
// counted from when the next one is written to. logrotate renames a file, creates
// an empty one and only then tells the writer, and of several processes that write
// to it some open the new one later than others; a second is what is commonly
// allowed them.
const reopenWithin = 2 * time.Second

// lines cuts what it reads into lines, in a buffer that grows to the longest.
type lines struct {
	in   *bufio.Reader
	max  int
	line []byte // the beginning of a line whose end has not come yet
	over int    // bytes of it beyond max
}

// next returns a line without its end, and its length with it. At the end of
// input it returns io.EOF and keeps an unfinished line for later.
func (l *lines) next() (line []byte, length int, err error) {
	for {
		part, err := l.in.ReadSlice('\n')
		room := min(len(part), l.max+1-min(len(l.line), l.max+1))
		l.line, l.over = append(l.line, part[:room]...), l.over+len(part)-room
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		line, length = l.take()
		return line, length, nil
	}
}

// held is the length of what there is of the present line.
func (l *lines) held() int { return len(l.line) + l.over }

// take returns what there is of the present line.
func (l *lines) take() (line []byte, length int) {
	line, length = l.line, l.held()
	l.line, l.over = nil, 0
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line = line[:n-1]
	}
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, length
}

func (l *lines) message(id, origin string, line []byte, length int) relay.Message {
	m := relay.Message{ID: id, Op: relay.OpEvent, Body: line, ContentType: "application/json", Origin: origin, Time: time.Now()}
	if length > l.max+1 {
		m.Body = line[:min(len(line), l.max)]
		m.Err = relay.Permanent(fmt.Errorf("line of %d bytes is longer than max_line, %d bytes", length, l.max))
	}
	return m
}

// mark is the checkpoint of a file: the next byte to read, and of which file.
// The file is known by its inode and by how it begins, as in [position]; marks of
// old have the inode alone. generation counts the files that path has led to, so
// that the same offset of two of them makes two ids.
type mark struct {
	Inode      uint64 `json:"inode"`
	Offset     int64  `json:"offset"`
	Generation int    `json:"generation,omitempty"`
	Head       uint32 `json:"head,omitempty"`
	HeadLength int    `json:"head_length,omitempty"`
	Modified   int64  `json:"modified,omitempty"` // when it was last seen written to, in nanoseconds since 1970
}

type tailed struct {
	cfg  sourceConfig
	log  *slog.Logger
	name string // in ids
	done chan struct{}

	file  sync.Mutex // held while the file is read, not while it is waited for
	f     *os.File
	lines lines
	at    mark // of the next line
	eof   bool // without follow: all is read
	quiet quiet

	mu      sync.Mutex // Receive and Checkpoint overlap
	pending []line     // received and not settled, in order
	first   int        // the number of pending[0]
	settled mark       // everything before it is settled
	count   int64
}

type line struct {
	end     mark
	settled bool
}

func newFile(cfg sourceConfig, env relay.Env) (*tailed, error) {
	s := &tailed{cfg: cfg, log: env.Logger, name: filepath.Base(cfg.Path), done: make(chan struct{})}
	s.count = env.Checkpoint.LastID
	if len(env.Checkpoint.State) > 0 {
		if err := json.Unmarshal(env.Checkpoint.State, &s.at); err != nil {
			return nil, fmt.Errorf("checkpoint %s is not one of a file: %w", env.Checkpoint.State, err)
		}
	}
	s.settled = s.at
	if err := s.open(); err != nil && !s.awaits(err) {
		return nil, err
	}
	return s, nil
}

// awaits reports whether err is about a file that will come.
func (s *tailed) awaits(err error) bool {
	return s.cfg.Follow && (errors.Is(err, os.ErrNotExist) || errors.Is(err, errMoved))
}

// open opens the file of s.at, under whatever name rotation has given it, or,
// where that is gone, the oldest that cannot have been read. A mark of old does not
// say which files those are: then it is path, and not all that rotation keeps.
func (s *tailed) open() error {
	if s.at.Inode == 0 {
		return s.openAt(candidate{}, s.at)
	}
	if c := s.find(s.at); c.info != nil {
		return s.openAt(c, s.at)
	}
	var c candidate
	if s.cfg.Follow && s.at.Modified != 0 {
		c = s.oldestSince(s.at.Modified)
	}
	gone := s.at
	if err := s.openAt(c, mark{Generation: gone.Generation + 1}); err != nil {
		return err
	}
	s.log.Warn("the file that was being read is gone or was emptied; whatever it held behind offset, and files between it and path, are lost; "+
		"going on with path", "path", rotated(s.cfg.Path, c.n), "inode", gone.Inode, "offset", gone.Offset)
	return nil
}

// openAt opens a file to read on from at. Where rotation has put another one in
// the place of the one that was found, the caller has to look again; without info
// any will do.
func (s *tailed) openAt(c candidate, at mark) error {
	path := rotated(s.cfg.Path, c.n)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for a writer
	if err != nil {
		return classifySource(fmt.Errorf("open %s: %w", path, err), s.cfg.Follow)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = relay.Fatal(fmt.Errorf("%s is not a regular file; feed a pipe through standard input", path))
	case c.info != nil && !os.SameFile(info, c.info):
		err = errMoved
	default:
		_, err = f.Seek(at.Offset, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open %s: %w", path, err)
	}
	if s.f != nil {
		_ = s.f.Close()
	}
	at.Inode = inode(info)
	s.f, s.at, s.quiet = f, at, quiet{}
	s.lines = lines{in: bufio.NewReaderSize(f, 256<<10), max: int(s.cfg.MaxLine)}
	return nil
}

// is reports whether the file at path is the one that m was made of, and holds
// what was read of it. A deleted file's inode is soon given to another one.
func (m mark) is(path string, info os.FileInfo) bool {
	if inode(info) != m.Inode || info.Size() < m.Offset {
		return false
	}
	if m.HeadLength == 0 {
		return true
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // opened for reading
	head := make([]byte, m.HeadLength)
	_, err = io.ReadFull(f, head)
	return err == nil && crc32.ChecksumIEEE(head) == m.Head
}

// lost closes the open file after err, so that the next call opens it anew: what
// a network's disk has forgotten (ESTALE) never comes back under the same handle.
func (s *tailed) lost(err error) error {
	_ = s.f.Close()
	s.f = nil
	return fmt.Errorf("read %s: %w", s.cfg.Path, err)
}

// note takes down what tells the open file from another one.
func (s *tailed) note() error {
	info, err := s.f.Stat()
	if err != nil {
		return s.lost(err)
	}
	s.at.Modified = info.ModTime().UnixNano()
	length := min(info.Size(), headSize)
	if int64(s.at.HeadLength) >= length {
		return nil
	}
	head := make([]byte, length)
	if _, err := io.ReadFull(io.NewSectionReader(s.f, 0, length), head); err != nil {
		return s.lost(err)
	}
	s.at.Head, s.at.HeadLength = crc32.ChecksumIEEE(head), int(length)
	return nil
}

// each calls do with path, path.1, path.2 and so on, those that exist, until it
// returns false. Rotation renames the last one first, so that there is one gap at
// most, and a file that is renamed meanwhile is met again but never missed.
func (s *tailed) each(do func(n int, info os.FileInfo) bool) {
	for n, missing := 0, 0; missing < 2; n++ {
		info, err := os.Stat(rotated(s.cfg.Path, n))
		switch {
		case err == nil:
			missing = 0
		case n > 0:
			missing++
		}
		if err == nil && (n == 0 || info.Mode().IsRegular()) && !do(n, info) {
			return
		}
	}
}

// candidate is a file that was found at path.n; info is nil where there was none.
type candidate struct {
	n    int
	info os.FileInfo
}

// find returns the file that m was made of.
func (s *tailed) find(m mark) (c candidate) {
	s.each(func(n int, info os.FileInfo) bool {
		if m.is(rotated(s.cfg.Path, n), info) {
			c = candidate{n, info}
		}
		return c.info == nil
	})
	return c
}

// oldestSince returns the oldest file that was written to since then. One that was
// last written to in the same tick of the clock counts: better a line twice than
// not at all.
func (s *tailed) oldestSince(modified int64) (c candidate) {
	s.each(func(n int, info os.FileInfo) bool {
		if info.ModTime().UnixNano() >= modified {
			c = candidate{n, info}
		}
		return true
	})
	return c
}

// after returns the file that was begun after the one that is open, and whether
// that one still has a name that rotation gives. It returns no file while the open
// one is the newest. What is put in the place of a file that is gone comes next
// however old it says it is, as one does that was prepared, copied or restored.
func (s *tailed) after(open os.FileInfo) (next candidate, kept bool) {
	var atPath candidate
	s.each(func(n int, info os.FileInfo) bool {
		if kept = os.SameFile(info, open); kept {
			return false
		}
		if next = (candidate{n, info}); n == 0 {
			atPath = next
		}
		return true
	})
	if kept {
		return next, true
	}
	if next = s.oldestSince(open.ModTime().UnixNano()); next.info == nil {
		next = atPath
	}
	return next, false
}

func classifySource(err error, follow bool) error {
	if errors.Is(err, os.ErrPermission) || (errors.Is(err, os.ErrNotExist) && !follow) {
		return relay.Fatal(err)
	}
	return err
}

// Receive implements [relay.Source].
func (s *tailed) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		if err := s.usable(ctx); err != nil {
			return nil, err
		}
		batch, err := s.read(limit)
		if len(batch) > 0 || err != nil {
			return batch, err
		}
		if !s.cfg.Follow {
			if !s.eof {
				s.eof = true
				s.log.Info("everything in the file has been read", "path", s.cfg.Path, "bytes", s.at.Offset)
			}
			select {
			case <-ctx.Done():
			case <-s.done:
			}
			continue
		}
		again := time.NewTimer(followEvery)
		select {
		case <-ctx.Done():
		case <-s.done:
		case <-again.C:
		}
		again.Stop()
	}
}

func (s *tailed) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-s.done:
		return errSourceClosed
	default:
		return nil
	}
}

// read returns the lines that are there, up to limit.
func (s *tailed) read(limit int) ([]relay.Message, error) {
	s.file.Lock()
	defer s.file.Unlock()
	if s.f == nil {
		if err := s.open(); err != nil {
			if s.awaits(err) {
				return nil, nil
			}
			return nil, err
		}
	}
	if err := s.note(); err != nil {
		return nil, err
	}
	var batch []relay.Message
	for len(batch) < limit {
		text, length, err := s.lines.next()
		if errors.Is(err, io.EOF) {
			if len(batch) > 0 {
				return batch, nil
			}
			what, err := s.atEnd()
			if err != nil || what == wait {
				return nil, err
			}
			if what == again {
				continue
			}
			text, length = s.lines.take()
		} else if err != nil {
			if len(batch) > 0 {
				return batch, nil // what comes with an error is not delivered; the next call meets it
			}
			return nil, s.lost(err)
		}
		if len(batch) == 0 && s.at.HeadLength == 0 {
			// The first line of a file that was opened on the way, or was empty until now.
			if err := s.note(); err != nil {
				return nil, err
			}
		}
		start := s.at
		s.at.Offset += int64(length)
		m := s.lines.message(s.id(start), "file:"+s.name, text, length)
		empty := len(text) == 0 && m.Err == nil // it says nothing
		m.Token = s.received(line{end: s.at, settled: empty})
		if empty {
			continue
		}
		batch = append(batch, m)
	}
	return batch, nil
}

// received files a line and returns its number.
func (s *tailed) received(l line) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, l)
	return s.first + len(s.pending) - 1
}

func (s *tailed) id(at mark) string {
	if at.Generation == 0 {
		return "file:" + s.name + ":" + strconv.FormatInt(at.Offset, 10)
	}
	return "file:" + s.name + ":" + strconv.Itoa(at.Generation) + ":" + strconv.FormatInt(at.Offset, 10)
}

// atEnd says what the end of the file means.
func (s *tailed) atEnd() (step, error) {
	if !s.cfg.Follow {
		if s.lines.held() > 0 {
			return cut, nil
		}
		return wait, nil
	}
	if _, err := os.Stat(s.cfg.Path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return wait, fmt.Errorf("follow %s: %w", s.cfg.Path, err)
	}
	open, err := s.f.Stat()
	if err != nil {
		return wait, s.lost(err)
	}
	read := s.at.Offset + int64(s.lines.held())
	next, kept := s.after(open)
	if kept && next.info == nil && open.Size() < read { // emptied in place
		return s.goOn(candidate{0, open})
	}
	if next.info == nil || !s.left(next, open.Size()) {
		return wait, nil
	}
	if open, err = s.f.Stat(); err != nil {
		return wait, s.lost(err)
	}
	if open.Size() > read { // it has grown since its end was met
		return again, nil
	}
	if s.lines.held() > 0 {
		return cut, nil // nobody will finish it
	}
	what, err := s.goOn(next)
	if what == again && !kept && next.n > 0 {
		s.log.Warn("the file that was read to its end has been deleted by rotation, and perhaps others between it and path, which are lost; "+
			"going on with path, the oldest that was written to since", "path", rotated(s.cfg.Path, next.n))
	}
	return what, err
}

// step is what follows the end of a file.
type step int

const (
	wait  step = iota // nothing more for now
	again             // there is more to read
	cut               // the unfinished line is all there will be of it
)

// quiet is since when a file that was renamed has had its size.
type quiet struct {
	size  int64
	since time.Time
}

// left reports whether whoever wrote to the open file has left it for next. As
// long as nothing is in next, nothing is won by going there. Next has been renamed
// itself where its n is above 0: then its writer rotates faster than one that is
// signalled could, and closes a file before it renames it, and to wait would give
// rotation the time to delete files unread.
func (s *tailed) left(next candidate, size int64) bool {
	switch {
	case next.n > 0:
		return true
	case next.info.Size() == 0:
		s.quiet = quiet{}
		return false
	case s.quiet.since.IsZero() || s.quiet.size != size:
		s.quiet = quiet{size, time.Now()}
	}
	return time.Since(s.quiet.since) >= reopenWithin
}

func (s *tailed) goOn(next candidate) (step, error) {
	err := s.openAt(next, mark{Generation: s.at.Generation + 1})
	switch {
	case err == nil:
		return again, nil
	case s.awaits(err):
		return wait, nil
	}
	return wait, err
}

// Checkpoint implements [relay.Checkpointer].
func (s *tailed) Checkpoint(batch []relay.Message) (relay.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		number, ok := batch[i].Token.(int)
		if at := number - s.first; ok && at >= 0 && at < len(s.pending) {
			s.pending[at].settled = true
		}
	}
	n := 0
	for n < len(s.pending) && s.pending[n].settled {
		s.settled = s.pending[n].end
		n++
	}
	s.pending = s.pending[n:]
	s.first += n
	s.count += int64(n)
	state, err := json.Marshal(s.settled)
	return relay.Checkpoint{State: state, LastID: s.count}, err
}

// Committed implements [relay.Checkpointer]; nothing waits for it.
func (s *tailed) Committed(context.Context, relay.Checkpoint) error { return nil }

// Ack implements [relay.Source]; Checkpoint takes its place.
func (s *tailed) Ack(context.Context, []relay.Message) error { return nil }

// Close implements [relay.Source].
func (s *tailed) Close() error {
	select {
	case <-s.done:
		return nil
	default:
		close(s.done)
	}
	s.file.Lock()
	defer s.file.Unlock()
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}
