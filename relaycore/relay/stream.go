package relay

import (
	"bytes"
	"context"
	"io"
)

// Payload is what travels in place of a message's Row. At most one field is set.
type Payload struct {
	// JSON is what a pipeline's transform has made. An encoder puts it into Body.
	JSON []byte
	// Stream is a row that is too large for memory. The message's Row has its small
	// members then, and its Body is empty.
	Stream *Stream
}

// Streamer is a [Sink] that can send a body while it is read.
type Streamer interface {
	// Streams reports whether Publish sends messages with a [Stream]. Such a message is
	// alone in its batch. Publish opens the stream once for each attempt, reads it to its
	// end, and closes it. An error of the stream fails the message.
	Streams() bool
}

// StreamMemory is the number of bytes that an open stream holds at most.
const StreamMemory = 6 << 20

// Stream is a body that is read while it is sent.
type Stream struct {
	// Before and After surround the row in the body. An encoder sets them.
	Before, After []byte
	// RowLength is the length of the row in bytes.
	RowLength int64
	// OpenRow returns the row from its beginning. It does no I/O before the first Read. A
	// Read fails if the row has changed since RowLength was found, or is gone; that error
	// is permanent.
	OpenRow func(ctx context.Context) (io.ReadCloser, error)
}

// Length returns the length of the body in bytes.
func (s *Stream) Length() int64 { return int64(len(s.Before)) + s.RowLength + int64(len(s.After)) }

// BodyLength returns the length of the message's body in bytes, in memory or not.
func (m *Message) BodyLength() int {
	if m.Payload.Stream != nil {
		return int(m.Payload.Stream.Length())
	}
	return len(m.Body)
}

// Open returns the body from its beginning. Reads fail when ctx ends. The caller closes
// the body, which it may do during a Read.
func (s *Stream) Open(ctx context.Context) (io.ReadCloser, error) {
	row, err := s.OpenRow(ctx)
	if err != nil {
		return nil, err
	}
	return &body{io.MultiReader(bytes.NewReader(s.Before), row, bytes.NewReader(s.After)), row}, nil
}

type body struct {
	io.Reader
	io.Closer
}
