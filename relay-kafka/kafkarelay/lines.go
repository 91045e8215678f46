package kafkarelay

import (
	"context"
	"net"
	"sync"
	"time"
)

// lines are the connections of a consumer group. The client waits for a broker's
// answer whatever becomes of the group, and for a place in the group as long as
// the members there take to rejoin. Only a connection that ends makes it stop.
type lines struct {
	dialer net.Dialer

	mu    sync.Mutex
	alive context.Context //nolint:containedctx // the life of the connections dialled under it
	end   context.CancelFunc
}

func newLines() *lines {
	l := &lines{dialer: net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}}
	l.alive, l.end = context.WithCancel(context.Background())
	return l
}

// dial is for [kafka.Dialer].
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
	return &line{conn, context.AfterFunc(alive, func() { _ = conn.Close() })}, nil
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
