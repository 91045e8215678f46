package kafkarelay

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// A connection whose handshake fails is closed, and not when the source is.
func TestConnectionWithoutHandshake(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	c, err := newCluster(relay.Env{}, &connection{Brokers: []string{ln.Addr().String()}, OptionalTLS: relaynet.OptionalTLS{Use: true}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.net.Close()
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
func TestTLSNamesTheBroker(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	names := make(chan string, 1)
	server := ca.Server(t)
	server.ClientAuth = tls.NoClientCert
	server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		names <- hello.ServerName
		return nil, nil
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
	connect := func(serverName string) *cluster {
		c, err := newCluster(relay.Env{}, &connection{Brokers: []string{"unused:1"}, OptionalTLS: relaynet.OptionalTLS{TLS: relaynet.TLS{CA: ca.File, ServerName: serverName}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.net.Close)
		return c
	}
	plain, named := connect(""), connect("localhost")
	for _, tc := range []struct {
		cluster    *cluster
		host, want string
	}{
		{plain, "127.0.0.1", ""}, // TLS asks for names only; the certificate has the address too
		{plain, "localhost", "localhost"},
		{named, "127.0.0.1", "localhost"},
	} {
		c, err := tc.cluster.dialer.DialContext(t.Context(), "tcp", net.JoinHostPort(tc.host, port))
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
