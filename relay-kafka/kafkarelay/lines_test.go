package kafkarelay

import (
	"net"
	"testing"
	"time"
)

// A far end that never answers is waited for until the lines are cut.
func TestLines(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	l := newLines()
	dial := func() net.Conn {
		t.Helper()
		c, err := l.dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatalf("dial = %v", err)
		}
		return c
	}
	ends := func(c net.Conn, within time.Duration) bool {
		_ = c.SetReadDeadline(time.Now().Add(within))
		_, err := c.Read(make([]byte, 1))
		timeout, ok := err.(net.Error) //nolint:errorlint // as it comes
		return !ok || !timeout.Timeout()
	}
	first := dial()
	time.AfterFunc(10*time.Millisecond, l.cut)
	if !ends(first, 5*time.Second) {
		t.Error("a connection outlives the cut")
	}
	second := dial()
	if ends(second, 50*time.Millisecond) {
		t.Error("a connection that was made after the cut has ended, too")
	}
	if err := dial().Close(); err != nil {
		t.Errorf("Close = %v", err)
	}
	l.close()
	if !ends(second, 5*time.Second) {
		t.Error("a connection outlives the end")
	}
	if _, err := l.dial(t.Context(), "tcp", ln.Addr().String()); err == nil {
		t.Error("dial after the end = nil, want an error")
	}
}
