package relaynet

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// Secure does the TLS handshake of a client, and returns the connection above it. It
// expects the certificate of address's host, unless config names a server.
//
// With TLS 1.3 a server refuses the client's certificate after the client's handshake: it
// sends an alert and closes. The client's first Write may find the connection closed. It
// then returns the alert, as Read does, because "broken pipe" could mean anything.
func Secure(ctx context.Context, conn net.Conn, config *tls.Config, address string) (net.Conn, error) {
	if config.ServerName == "" {
		config = config.Clone()
		config.ServerName = address
		if host, _, err := net.SplitHostPort(address); err == nil {
			config.ServerName = host
		}
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return &secured{Conn: secure}, nil
}

// secured is a connection after its handshake.
type secured struct {
	*tls.Conn
	answered atomic.Bool // the server has sent data, so it has accepted the client
}

func (c *secured) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.answered.Store(true)
	}
	return n, err
}

func (c *secured) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.answered.Load() || !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return n, err
	}
	// The peer has closed the connection, so this does not block.
	if _, alert := c.Read(make([]byte, 1)); isAlert(alert) {
		err = alert
	}
	return n, err
}
