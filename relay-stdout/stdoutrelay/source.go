package stdoutrelay

import (
	"bufio"
	"bytes"
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
	"syscall"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/backoff"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

const (
	// followEvery is how often a followed file is read at its end.
	followEvery = 100 * time.Millisecond
	// tailSize is how many bytes before the next one are compared with each read.
	tailSize = 4096
)

func newSource(cfg sourceConfig, env relay.Env, input *stdin) (relay.Source, error) {
	if cfg.Path == "" {
		return input.open(cfg), nil
	}
	return newFileSource(cfg, env)
}

// fileSource reads a file to its end, and with follow waits there for more. The file
// must only grow. A file that is replaced, renamed, cut or overwritten is a fatal
// error, because lines that were not read may be lost.
type fileSource struct {
	cfg  sourceConfig
	env  relay.Env
	log  *slog.Logger
	name string // in ids
	done chan struct{}

	reading   sync.Mutex // guards the fields below; not held while the source waits
	f         *os.File
	lines     lines
	at        checkpoint      // of the next line
	atEnd     bool            // without follow: everything is read
	held      []relay.Message // read, and not yet received
	beginning beginning

	mu      sync.Mutex // guards the fields below: Receive and Checkpoint overlap
	acks    relay.Acks[checkpoint]
	settled checkpoint // everything before it is settled
	count   int64      // lines settled
}

// checkpoint is the next byte to read. Tail is the CRC-32 of the TailLength bytes
// before it: the last line, and some of the lines before that. Head was written
// by older versions, which wrote neither Path nor Tail. Generation counts the
// files that the pipeline has read, so that ids of two files differ.
type checkpoint struct {
	position
	Path       string `json:"path,omitempty"`
	Generation int    `json:"generation,omitempty"`
	Tail       uint32 `json:"tail,omitempty"`
	TailLength int64  `json:"tail_length,omitempty"`
}

var (
	_ relay.Checkpointer = (*fileSource)(nil)
	_ io.Reader          = (*grown)(nil)
)

func newFileSource(cfg sourceConfig, env relay.Env) (*fileSource, error) {
	s := &fileSource{
		cfg: cfg, env: env, log: env.Logger, name: filepath.Base(cfg.Path), done: make(chan struct{}), count: env.Checkpoint.LastID,
	}
	if len(env.Checkpoint.State) > 0 {
		if err := json.Unmarshal(env.Checkpoint.State, &s.at); err != nil {
			return nil, fmt.Errorf("checkpoint %s is not one of a file: %w", env.Checkpoint.State, err)
		}
	}
	if err := s.recall(); err != nil {
		return nil, err
	}
	s.settled = s.at
	if err := s.open(); err != nil && !s.awaits(err) {
		return nil, err
	}
	return s, nil
}

// awaits reports whether err is about a file that has yet to be created.
func (s *fileSource) awaits(err error) bool {
	return s.cfg.Follow && !relay.IsFatal(err) && errors.Is(err, os.ErrNotExist)
}

// open opens the file at path and moves to the next byte. A file other than that
// of the checkpoint is begun only if the checkpoint does not name this path.
func (s *fileSource) open() error {
	f, err := s.env.Open(s.cfg.Path, syscall.O_NONBLOCK) // a pipe would wait for a writer
	switch {
	case errors.Is(err, os.ErrNotExist) && s.at.Inode != 0 && s.at.Path == s.cfg.Path:
		return s.changed("is gone")
	case errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrNotExist) && !s.cfg.Follow:
		return relay.Fatal(fmt.Errorf("open %s: %w", s.cfg.Path, err))
	case err != nil:
		return fmt.Errorf("open %s: %w", s.cfg.Path, err)
	}
	if err := s.begin(f); err != nil {
		_ = f.Close()
		return err
	}
	return nil
}

func (s *fileSource) begin(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open %s: %w", s.cfg.Path, err)
	}
	if !info.Mode().IsRegular() {
		return relay.Fatal(fmt.Errorf("%s is not a regular file; feed a pipe through standard input", s.cfg.Path))
	}
	// The tail is read first, so that it was in the file together with what is compared.
	tail := make([]byte, min(tailSize, s.at.Offset))
	if _, err := f.ReadAt(tail, s.at.Offset-int64(len(tail))); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("open %s: %w", s.cfg.Path, err)
	}
	if s.at.Inode != 0 && !s.isIn(f, info) {
		if s.at.Path == s.cfg.Path {
			return s.changed("was replaced, cut or overwritten")
		}
		s.log.Warn("the checkpoint is of another file", "path", s.cfg.Path, "inode", s.at.Inode, "offset", s.at.Offset)
		s.at, tail = checkpoint{Generation: s.at.Generation + 1}, nil
	}
	s.at.Inode, s.at.Path = inode(info), s.cfg.Path
	s.f = f
	s.lines = lines{
		in:  bufio.NewReaderSize(&grown{source: s, offset: s.at.Offset, tail: tail}, 256<<10),
		max: int(s.cfg.MaxLine), sum: s.at.Tail, summed: s.at.TailLength,
	}
	return nil
}

// isIn reports whether f is the file of c and still holds what was read of it.
func (c *checkpoint) isIn(f *os.File, info os.FileInfo) bool {
	return c.position.isIn(f, info) && checksum(f, c.Offset-c.TailLength, c.TailLength) == c.Tail
}

// changed returns the error for a file that did not only grow.
func (s *fileSource) changed(how string) error {
	return relay.Fatal(fmt.Errorf("read %s: the file %s after byte %d: restore it, or set stdout_path to another name",
		s.cfg.Path, how, s.at.Offset))
}

// grown reads a file that must only grow. Each read compares the bytes before it
// with those that were read there. It does so after it has read, so that what it
// returns was in the file together with those bytes.
type grown struct {
	source *fileSource
	offset int64
	tail   []byte // the bytes before offset, up to tailSize
	same   [tailSize]byte
}

func (g *grown) Read(b []byte) (int, error) {
	n, err := g.source.f.ReadAt(b, g.offset)
	if n > 0 {
		err = nil // io.EOF is for a later read, which may find more
	}
	same := g.same[:len(g.tail)]
	if _, err := g.source.f.ReadAt(same, g.offset-int64(len(same))); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	} else if err != nil || !bytes.Equal(same, g.tail) {
		return 0, g.source.changed("was cut or overwritten")
	}
	g.offset += int64(n)
	g.tail = append(g.tail, b[max(0, n-tailSize):n]...)
	g.tail = append(g.tail[:0], g.tail[max(0, len(g.tail)-tailSize):]...)
	return n, err
}

// Receive implements [relay.Source].
func (s *fileSource) Receive(ctx context.Context, limit int) ([]relay.Message, error) {
	for {
		batch, err := s.read(ctx, limit)
		if len(batch) > 0 || err != nil {
			return batch, err
		}
		wait := followEvery
		if !s.cfg.Follow {
			wait = time.Hour // only ctx or Close ends the wait
		}
		if backoff.Wait(ctx, wait, s.done) != nil {
			return nil, ctx.Err()
		}
	}
}

// read returns the lines that are there, up to limit.
func (s *fileSource) read(ctx context.Context, limit int) (batch []relay.Message, err error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	select {
	case <-s.done:
		return nil, relay.ErrClosed
	default:
	}
	if s.f == nil {
		if err := s.open(); s.awaits(err) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	if len(s.held) == 0 {
		if s.held, err = s.cut(limit); err != nil || len(s.held) == 0 {
			return nil, err
		}
	}
	if err := s.meet(ctx); err != nil {
		return nil, err
	}
	n := min(limit, len(s.held))
	batch, s.held = s.held[:n:n], s.held[n:]
	return batch, nil
}

// cut makes messages of the lines that are there, up to limit.
func (s *fileSource) cut(limit int) (batch []relay.Message, err error) {
	for len(batch) < limit {
		text, length, err := s.lines.next()
		if errors.Is(err, io.EOF) && len(batch) == 0 && !s.cfg.Follow && s.lines.held() > 0 {
			text, length = s.lines.take() // the last line has no end
		} else if err != nil {
			if len(batch) > 0 {
				return batch, nil // the next call meets the error again
			}
			return nil, s.stopped(err)
		}
		start := s.at
		s.at.Offset += int64(length)
		s.at.Tail, s.at.TailLength = s.lines.sum, s.lines.summed

		m := s.lines.message(s.id(start), "file:"+s.name, text, length)
		empty := len(text) == 0 && m.Err == nil
		ticket := s.received(empty)
		if !empty {
			m.Token = ticket
			batch = append(batch, m)
		}
	}
	return batch, nil
}

// stopped handles what ended a read. At the end of a followed file, path must
// still lead to that file. After any other error the file is opened again,
// because a network's disk never recovers a stale handle (ESTALE).
func (s *fileSource) stopped(err error) error {
	if errors.Is(err, io.EOF) && !s.cfg.Follow {
		if !s.atEnd {
			s.atEnd = true
			s.log.Info("file read to its end", "path", s.cfg.Path, "bytes", s.at.Offset)
		}
		return nil
	}
	if errors.Is(err, io.EOF) {
		var open, there os.FileInfo
		if open, err = s.f.Stat(); err == nil {
			there, err = os.Stat(s.cfg.Path)
		}
		if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(open, there) {
			return s.changed("was renamed, deleted or replaced")
		}
		if err == nil {
			return nil
		}
	}
	if relay.IsFatal(err) {
		return err
	}
	_ = s.f.Close()
	s.f = nil
	return fmt.Errorf("read %s: %w", s.cfg.Path, err)
}

// received takes up the line before s.at. An empty one is settled at once.
func (s *fileSource) received(empty bool) (ticket uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ticket = s.acks.Add(s.at)
	if empty {
		s.settle(ticket)
	}
	return ticket
}

func (s *fileSource) id(at checkpoint) string {
	if at.Generation == 0 {
		return "file:" + s.name + ":" + strconv.FormatInt(at.Offset, 10)
	}
	return "file:" + s.name + ":" + strconv.Itoa(at.Generation) + ":" + strconv.FormatInt(at.Offset, 10)
}

// Checkpoint implements [relay.Checkpointer].
func (s *fileSource) Checkpoint(batch []relay.Message) (relay.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range batch {
		ticket, _ := batch[i].Token.(uint64)
		s.settle(ticket)
	}
	state, err := json.Marshal(s.settled)
	return relay.Checkpoint{State: state, LastID: s.count}, err
}

// settle needs mu to be held.
func (s *fileSource) settle(ticket uint64) {
	open := s.acks.Open()
	if at, moved := s.acks.Done(ticket); moved {
		s.settled, s.count = at, s.count+int64(open-s.acks.Open())
	}
}

// Committed implements [relay.Checkpointer]; nothing waits for it.
func (s *fileSource) Committed(context.Context, relay.Checkpoint) error { return nil }

// Ack implements [relay.Source]; Checkpoint takes its place.
func (s *fileSource) Ack(context.Context, []relay.Message) error { return nil }

// Close implements [relay.Source].
func (s *fileSource) Close() error {
	select {
	case <-s.done:
		return nil
	default:
		close(s.done)
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}
