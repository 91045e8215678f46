package stdoutrelay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errSourceClosed = errors.New("the source is closed")

// followEvery is how often a followed file is looked at while nothing comes.
const followEvery = 100 * time.Millisecond

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

// take returns what there is of the present line.
func (l *lines) take() (line []byte, length int) {
	line, length = l.line, len(l.line)+l.over
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
// generation counts the files that path has led to, so that the same offset of
// two of them makes two ids.
type mark struct {
	Inode      uint64 `json:"inode"`
	Offset     int64  `json:"offset"`
	Generation int    `json:"generation,omitempty"`
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
	if err := s.open(); err != nil && (!cfg.Follow || !errors.Is(err, os.ErrNotExist)) {
		return nil, err
	}
	return s, nil
}

// open opens the file of s.at, under whatever name rotation has given it, or,
// where that is gone, the oldest that cannot have been read.
func (s *tailed) open() error {
	path := s.cfg.Path
	if s.at.Inode != 0 {
		if n := s.find(s.at.Inode); n >= 0 {
			path = rotated(s.cfg.Path, n)
		} else {
			s.log.Warn("the file that was being read is gone; beginning with the one that has its name", "path", path)
			s.at = mark{Generation: s.at.Generation + 1}
		}
	}
	return s.openAt(path)
}

func (s *tailed) openAt(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return classifySource(fmt.Errorf("open %s: %w", path, err), s.cfg.Follow)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = relay.Fatal(fmt.Errorf("%s is not a regular file; feed a pipe through standard input", path))
	}
	if err == nil {
		if s.at.Inode != 0 && info.Size() < s.at.Offset { // emptied in place
			s.at.Offset = 0
			s.at.Generation++
		}
		_, err = f.Seek(s.at.Offset, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
		return fmt.Errorf("open %s: %w", path, err)
	}
	s.at.Inode = inode(info)
	s.f, s.lines = f, lines{in: bufio.NewReaderSize(f, 256<<10), max: int(s.cfg.MaxLine)}
	return nil
}

// find returns n where path.n is the file with the inode, 0 for path, -1 for none.
func (s *tailed) find(id uint64) int {
	for n := 0; n == 0 || exists(rotated(s.cfg.Path, n)); n++ {
		if info, err := os.Stat(rotated(s.cfg.Path, n)); err == nil && inode(info) == id {
			return n
		}
	}
	return -1
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
			if s.cfg.Follow && errors.Is(err, os.ErrNotExist) {
				return nil, nil // it will come
			}
			return nil, err
		}
	}
	var batch []relay.Message
	for len(batch) < limit {
		text, length, err := s.lines.next()
		if errors.Is(err, io.EOF) {
			if len(batch) > 0 {
				return batch, nil
			}
			more, err := s.atEnd()
			if err != nil || !more {
				return nil, err
			}
			if text, length = s.lines.take(); length == 0 {
				continue
			}
		} else if err != nil {
			if len(batch) > 0 {
				return batch, nil // what comes with an error is not delivered; the next call meets it
			}
			_ = s.f.Close()
			s.f = nil
			return nil, fmt.Errorf("read %s: %w", s.cfg.Path, err)
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

// atEnd decides what the end of the file means: more is true when an unfinished
// line is all there will be of it, or when another file has been opened.
func (s *tailed) atEnd() (more bool, err error) {
	unfinished := len(s.lines.line) > 0
	if !s.cfg.Follow {
		return unfinished, nil
	}
	info, err := os.Stat(s.cfg.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false, nil // between two files
	case err != nil:
		return false, fmt.Errorf("follow %s: %w", s.cfg.Path, err)
	case inode(info) != s.at.Inode:
		if unfinished {
			return true, nil // nobody will finish it
		}
		if grown, err := s.f.Stat(); err == nil && grown.Size() > s.at.Offset {
			return true, nil
		}
		next := s.cfg.Path // the one that was begun after this one
		if n := s.find(s.at.Inode); n > 1 {
			next = rotated(s.cfg.Path, n-1)
		}
		return s.goOn(next)
	case info.Size() < s.at.Offset: // emptied in place
		return s.goOn(s.cfg.Path)
	}
	return false, nil
}

func (s *tailed) goOn(path string) (bool, error) {
	_ = s.f.Close()
	s.f = nil
	s.at = mark{Generation: s.at.Generation + 1}
	return true, s.openAt(path)
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
