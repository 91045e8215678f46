package stdoutrelay

import (
	"bufio"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// lines cuts its input into lines, in a buffer that grows to the longest.
type lines struct {
	in   *bufio.Reader
	max  int
	line []byte // the beginning of a line whose end is yet to come
	over int    // bytes of it beyond max

	sum    uint32 // CRC-32 of the last line, and of some lines before it
	summed int64  // the length of those
}

// next returns a line without its end, and its length with it. At the end of
// input it returns io.EOF and keeps an unfinished line.
func (l *lines) next() (line []byte, length int, err error) {
	if l.summed > tailSize && l.held() == 0 {
		l.sum, l.summed = 0, 0
	}
	for {
		part, err := l.in.ReadSlice('\n')
		l.sum, l.summed = crc32.Update(l.sum, crc32.IEEETable, part), l.summed+int64(len(part))
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

// held is the length of the line that is not finished.
func (l *lines) held() int { return len(l.line) + l.over }

// take returns the line as far as it has come.
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
