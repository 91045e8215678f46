package relaynet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// Bounds of a [Dialer] that sets none.
const (
	DefaultTimeout   = 5 * time.Second
	DefaultKeepAlive = 15 * time.Second
)

// ErrCut is the error of a dial that was cancelled by [Dialer.CutAfter],
// [Dialer.Cut] or [Dialer.Close].
var ErrCut = errors.New("the connection is no longer wanted")

// Dialer dials for a client library, and can disconnect it. Many libraries wait for
// an answer even if their context ends; only a connection that is closed makes them
// return. The zero Dialer is ready, and must not be copied.
type Dialer struct {
	Timeout   time.Duration // of a dial with its TLS handshake; DefaultTimeout if 0
	KeepAlive time.Duration // between probes of an idle connection; DefaultKeepAlive if 0
	// TLS makes the dialer do the TLS handshake, with the dialled host as the
	// server's name unless it sets one. nil leaves TLS to the client.
	TLS *tls.Config
	// Control is [net.Dialer]'s: it can refuse a resolved address.
	Control func(network, address string, c syscall.RawConn) error
	// Wrap returns what the client gets in place of conn, above TLS: for example a
	// connection that bounds what a peer may send.
	Wrap func(conn net.Conn) net.Conn

	mu      sync.Mutex
	open    map[*conn]struct{}
	dialing map[*dial]struct{}
	refuse  int  // calls of CutAfter that have disconnected and not been stopped
	closed  bool // no connection may be made any longer
}

// dial is one call of DialContext that has not returned.
type dial struct{ cancel context.CancelCauseFunc }

// conn is a connection that its dialer knows. TLS and Wrap lie above it.
type conn struct {
	net.Conn
	dialer *Dialer
}

// Close closes the connection. It is no error that the dialer was faster.
func (c *conn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.open, c)
	c.dialer.mu.Unlock()
	if err := c.Conn.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// Dial is DialContext without a context, for clients that have none.
func (d *Dialer) Dial(network, address string) (net.Conn, error) {
	return d.DialContext(context.Background(), network, address)
}

// DialContext connects to address, and does the TLS handshake if TLS is set.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, done, err := d.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	made, err := d.connect(ctx, network, address)
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, ErrCut) {
			return nil, cause
		}
		return nil, err
	}
	return made, nil
}

// begin registers a dial, so that it can be cancelled.
func (d *Dialer) begin(ctx context.Context) (context.Context, func(), error) {
	timeout := d.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancelTimeout := context.WithTimeout(ctx, timeout)
	ctx, cancel := context.WithCancelCause(ctx)
	current := &dial{cancel}
	done := func() {
		d.mu.Lock()
		delete(d.dialing, current)
		d.mu.Unlock()
		cancel(nil)
		cancelTimeout()
	}

	d.mu.Lock()
	refused := d.closed || d.refuse > 0
	if !refused {
		if d.dialing == nil {
			d.dialing = make(map[*dial]struct{})
		}
		d.dialing[current] = struct{}{}
	}
	d.mu.Unlock()
	if refused {
		done()
		return nil, nil, ErrCut
	}
	return ctx, done, nil
}

func (d *Dialer) connect(ctx context.Context, network, address string) (net.Conn, error) {
	keepAlive := d.KeepAlive
	if keepAlive == 0 {
		keepAlive = DefaultKeepAlive
	}
	raw, err := (&net.Dialer{KeepAlive: keepAlive, Control: d.Control}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tracked, err := d.track(ctx, raw)
	if err != nil {
		return nil, err
	}
	made := net.Conn(tracked)
	if d.TLS != nil {
		if made, err = Secure(ctx, tracked, d.TLS, address); err != nil {
			_ = tracked.Close()
			return nil, explainHandshake(err)
		}
	}
	if d.Wrap != nil {
		made = d.Wrap(made)
	}
	return made, nil
}

// explainHandshake adds a hint to the error of a handshake that a peer without TLS did
// not answer, ended, or answered with something else.
func explainHandshake(err error) error {
	_, garbage := errors.AsType[tls.RecordHeaderError](err)
	if garbage || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, io.EOF) {
		return fmt.Errorf("TLS handshake: %w; does the server speak TLS at this port?", err)
	}
	return err
}

// track registers a connection, unless its dial was cancelled meanwhile.
func (d *Dialer) track(ctx context.Context, raw net.Conn) (*conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil {
		return nil, errors.Join(context.Cause(ctx), raw.Close())
	}
	if d.open == nil {
		d.open = make(map[*conn]struct{})
	}
	tracked := &conn{raw, d}
	d.open[tracked] = struct{}{}
	return tracked, nil
}

// CutAfter disconnects the client once ctx has ended and grace has passed, so that
// what it has sent can still be answered. All connections are closed, dials that
// are under way are cancelled, and new ones are refused until stop is called. The
// caller calls stop when the client has returned; after that nothing is closed.
func (d *Dialer) CutAfter(ctx context.Context, grace time.Duration) (stop func()) {
	stopped := make(chan struct{})
	cut := false // under mu, as the close of stopped
	cancel := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-stopped:
			return
		case <-timer.C:
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		select {
		case <-stopped: // the connections are the next call's
			return
		default:
		}
		cut = true
		d.refuse++
		d.disconnect()
	})
	return sync.OnceFunc(func() {
		cancel()
		d.mu.Lock()
		defer d.mu.Unlock()
		close(stopped)
		if cut {
			d.refuse--
		}
	})
}

// Cut closes all connections and cancels the dials under way. New connections may
// be made.
func (d *Dialer) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disconnect()
}

// Close is Cut, after which every dial is refused.
func (d *Dialer) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.disconnect()
}

// disconnect closes the connections below TLS, which would wait to send an alert. The
// caller holds mu.
func (d *Dialer) disconnect() {
	for c := range d.open {
		_ = c.Conn.Close()
	}
	clear(d.open)
	for current := range d.dialing {
		current.cancel(ErrCut)
	}
}
