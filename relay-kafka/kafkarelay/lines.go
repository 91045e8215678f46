package kafkarelay

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// lines are the connections of a consumer group. The client waits for a broker's
// answer whatever becomes of the group, and for a place in the group as long as
// the members there take to rejoin. Only a connection that ends makes it stop.
type lines struct {
	dialer net.Dialer
	tls    *tls.Config // nil without TLS

	mu    sync.Mutex
	alive context.Context //nolint:containedctx // the life of the connections dialled under it
	end   context.CancelFunc
}

func newLines(config *tls.Config) *lines {
	l := &lines{dialer: net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}, tls: config}
	l.alive, l.end = context.WithCancel(context.Background())
	return l
}

// dial is for [kafka.Dialer], which would leave a connection open, and alive hold
// on to it, whose TLS handshake failed. So the handshake is made here.
func (l *lines) dial(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	alive := l.alive
	l.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(alive, cancel)()
	conn, err := l.dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &line{conn, context.AfterFunc(alive, func() { _ = conn.Close() })}
	if l.tls == nil {
		return c, nil
	}
	secure := tls.Client(c, l.config(address))
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, err
	}
	return secure, nil
}

// config names the broker whose certificate is asked for, unless one name for all
// was configured.
func (l *lines) config(address string) *tls.Config {
	if l.tls.ServerName != "" {
		return l.tls
	}
	config := l.tls.Clone()
	config.ServerName = address
	if host, _, err := net.SplitHostPort(address); err == nil {
		config.ServerName = host
	}
	return config
}

// cut ends the connections that there are. New ones may be made.
func (l *lines) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
	l.alive, l.end = context.WithCancel(context.Background())
}

// close ends the connections that there are, and lets none be made.
func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.end()
}

// line is one of lines.
type line struct {
	net.Conn
	forget func() bool
}

// Close ends the connection.
func (c *line) Close() error {
	c.forget()
	return c.Conn.Close()
}
