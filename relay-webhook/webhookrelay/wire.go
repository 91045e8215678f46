package webhookrelay

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	wireBuffer  = 16 << 10
	maxHead     = 64 << 10 // bytes of an answer's header
	longestIdle = 90 * time.Second
)

// wire is a worker's own connection to an endpoint without TLS. The request is
// written and its answer read by the worker itself, where a transport has two
// goroutines for each connection: that is half of what a small request costs.
// Both are still in the words of net/http.
//
// Not for requests that do not fit the kernel's buffers: nobody reads while it
// writes, so an endpoint that answers without reading would not be heard.
type wire struct {
	dialer *net.Dialer
	addr   string

	mu   sync.Mutex
	conn net.Conn // nil when not connected
	cut  bool     // for good

	raw   syscall.RawConn
	head  io.LimitedReader // of conn
	in    *bufio.Reader    // of head
	out   *bufio.Writer
	used  time.Time
	look  func(fd uintptr) bool
	stale bool // what look has found
}

func newWire(dialer *net.Dialer, addr string) *wire {
	w := &wire{dialer: dialer, addr: addr, in: bufio.NewReader(nil), out: bufio.NewWriterSize(nil, wireBuffer)}
	w.look = w.peek
	return w
}

// exchange sends a request and returns its answer. The body of the answer is to
// be read, and then keep or hangUp be called.
func (w *wire) exchange(ctx context.Context, req *http.Request, rewind func(), deadline time.Time) (*http.Response, error) {
	for {
		fresh := !w.idle(deadline)
		if fresh {
			if err := w.dial(ctx, deadline); err != nil {
				return nil, err
			}
		}
		rewind()
		resp, err := w.attempt(req)
		if err == nil {
			return resp, nil
		}
		answered := w.in.Buffered() > 0 || w.head.N < maxHead
		w.hangUp()
		// An endpoint may close a connection that it finds idle just when a request is
		// on its way. The request can be repeated: it has an Idempotency-Key.
		if fresh || answered || ctx.Err() != nil || !time.Now().Before(deadline) {
			return nil, err
		}
	}
}

func (w *wire) attempt(req *http.Request) (*http.Response, error) {
	w.head.N = maxHead
	if err := req.Write(w.out); err != nil {
		return nil, err
	}
	if err := w.out.Flush(); err != nil {
		return nil, err
	}
	for {
		resp, err := http.ReadResponse(w.in, req)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue // to be followed by the answer proper
		}
		w.head.N = math.MaxInt64
		return resp, nil
	}
}

func (w *wire) dial(ctx context.Context, deadline time.Time) error {
	w.hangUp()
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := w.dialer.DialContext(ctx, "tcp", w.addr)
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.conn = conn
	w.mu.Unlock()
	w.raw, err = conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		w.hangUp()
		return err
	}
	w.head.R = conn
	w.in.Reset(&w.head)
	w.out.Reset(conn)
	return w.arm(deadline)
}

// idle makes sure that nothing has come on the connection since the last answer:
// neither its end nor what would be taken for the next answer.
func (w *wire) idle(deadline time.Time) bool {
	if w.conn == nil || w.in.Buffered() > 0 || time.Since(w.used) > longestIdle || w.arm(deadline) != nil {
		return false
	}
	return w.raw.Read(w.look) == nil && !w.stale
}

// peek is called with a descriptor that does not block.
func (w *wire) peek(fd uintptr) bool {
	var b [1]byte
	_, err := syscall.Read(int(fd), b[:])
	w.stale = !errors.Is(err, syscall.EAGAIN)
	return true
}

// keep says that the answer has been read to its end.
func (w *wire) keep() { w.used = time.Now() }

func (w *wire) hangUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

func (w *wire) arm(deadline time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return context.Canceled
	}
	return w.conn.SetDeadline(deadline)
}

// breakOff ends what is under way, and the use of w.
func (w *wire) breakOff() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	if w.conn != nil {
		_ = w.conn.SetDeadline(time.Unix(1, 0))
	}
}
