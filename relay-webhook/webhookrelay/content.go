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
	moved  func() // called when a part of the stream was read; nil before limit.begin
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

// limit bounds the requests of one worker in one Publish, one after the other, by the time
// from a request's beginning to its answer. Most are answered long before, so they share a
// context and a timer: those of each request were a sixth of the sink's garbage.
type limit struct {
	parent, ctx context.Context //nolint:containedctx // those of one call
	cancel      context.CancelFunc
	timer       *time.Timer
	timeout     time.Duration
}

func newLimit(parent context.Context, timeout time.Duration) *limit {
	return &limit{parent: parent, cancel: func() {}, timeout: timeout}
}

// begin starts the time of a request with body c. The answer to a stream has that time from
// the last part of it that the endpoint took. A stream has a context and a timer of its own:
// the transport may read it after the answer, and so start the timer again.
func (l *limit) begin(c *content) (ctx context.Context, end func()) {
	if c.stream != nil {
		ctx, cancel := context.WithCancel(l.parent)
		timer := time.AfterFunc(l.timeout, cancel)
		c.moved = func() { timer.Reset(l.timeout) }
		return ctx, func() {
			timer.Stop()
			cancel()
		}
	}
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancel(l.parent)
		l.timer = time.AfterFunc(l.timeout, l.cancel)
	} else {
		l.timer.Reset(l.timeout)
	}
	return l.ctx, l.end
}

// end stops the timer. If it has fired, even after the answer, the next request gets another
// context: this one ends, or has ended.
func (l *limit) end() {
	if !l.timer.Stop() {
		l.cancel()
		l.ctx = nil
	}
}

func (l *limit) close() { l.cancel() }

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
