package kafkarelay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// A far end that never answers is waited for until the lines are cut.
func TestLines(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	l := newLines(nil)
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

// A connection whose handshake fails is closed, and not when the source is.
func TestLineWithoutHandshake(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	c, err := newCluster(&connection{Brokers: []string{ln.Addr().String()}, TLS: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.lines.close()
	ended := make(chan error, 1)
	go func() {
		far, err := ln.Accept()
		if err != nil {
			ended <- err
			return
		}
		defer func() { _ = far.Close() }()
		_ = far.(*net.TCPConn).CloseWrite() // as a proxy without a broker behind it, which still sees our end
		_ = far.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = io.Copy(io.Discard, far)
		ended <- err
	}()
	if _, err := c.dialer.DialContext(t.Context(), "tcp", ln.Addr().String()); !errors.Is(err, io.EOF) {
		t.Errorf("dial = %v, want %v", err, io.EOF)
	}
	if err := <-ended; err != nil {
		t.Errorf("the far end waits for the connection's end: %v", err)
	}
}

// Each broker is asked for the certificate of its own name.
func TestLinesNameTheBroker(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	names := make(chan string, 1)
	server := ca.Server(t)
	server.ClientAuth = tls.NoClientCert
	server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- hello.ServerName
		return nil, nil //nolint:nilnil // server it is
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	go func() {
		for far, err := ln.Accept(); err == nil; far, err = ln.Accept() {
			_ = far.(*tls.Conn).Handshake()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	l := newLines(&tls.Config{RootCAs: ca.Pool})
	named := newLines(&tls.Config{RootCAs: ca.Pool, ServerName: "localhost"})
	defer l.close()
	defer named.close()
	for _, tc := range []struct {
		lines      *lines
		host, want string
	}{
		{l, "127.0.0.1", ""}, // an address is not asked for; the certificate has it all the same
		{l, "localhost", "localhost"},
		{named, "127.0.0.1", "localhost"},
	} {
		c, err := tc.lines.dial(t.Context(), "tcp", net.JoinHostPort(tc.host, port))
		if err != nil {
			t.Errorf("dial(%s) = %v", tc.host, err)
			continue
		}
		if got := <-names; got != tc.want {
			t.Errorf("dial(%s) asked for %q, want %q", tc.host, got, tc.want)
		}
		_ = c.Close()
	}
}
