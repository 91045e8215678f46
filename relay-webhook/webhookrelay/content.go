package webhookrelay

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Streams implements [relay.Streamer]. The arrays of mode batch are made in memory.
func (s *sink) Streams() bool { return s.cfg.Mode == modeEvent }

// content is the body of a request: bytes, or a stream that each attempt opens again.
type content struct {
	bytes  []byte
	stream *relay.Stream
	moved  func() // called when a part of the stream was read; nil before deadline
}

// copyTo writes all of a stream to w.
func (c content) copyTo(ctx context.Context, w io.Writer) error {
	body, err := c.stream.Open(ctx)
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = io.Copy(w, body)
	return err
}

// deadline bounds a request by the time from its beginning to its answer. The answer to a
// stream has that time from the last part of it that the endpoint took.
func (c *content) deadline(parent context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if c.stream == nil {
		return context.WithTimeout(parent, timeout)
	}
	ctx, cancel := context.WithCancel(parent)
	timer := time.AfterFunc(timeout, cancel)
	c.moved = func() { timer.Reset(timeout) }
	return ctx, func() {
		timer.Stop()
		cancel()
	}
}

// attach makes c the body of r. It copies bytes, because the transport may read them after
// the request has been answered. The transport knows that the bytes of a bytes.Reader are
// in memory, and sends them in one packet with the header.
func (c content) attach(ctx context.Context, r *http.Request) (err error) {
	if stream := c.stream; stream != nil {
		moved := c.moved
		r.ContentLength = stream.Length()
		r.GetBody = func() (io.ReadCloser, error) {
			body, err := stream.Open(ctx)
			return &watched{body, moved}, err
		}
	} else {
		body := bytes.Clone(c.bytes)
		r.ContentLength = int64(len(body))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	}
	r.Body, err = r.GetBody()
	return err
}

// watched calls moved after each read.
type watched struct {
	io.ReadCloser
	moved func()
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.ReadCloser.Read(p)
	w.moved()
	return n, err
}
