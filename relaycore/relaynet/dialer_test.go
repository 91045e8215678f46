package relaynet_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

// listen returns a listener that ends with the test.
func listen(t *testing.T) net.Listener {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return listener
}

// echo sends back what it receives, until the test ends.
func echo(t *testing.T, listener net.Listener) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		all.Wait()
	})
}

func dial(t *testing.T, d *relaynet.Dialer, address string) net.Conn {
	t.Helper()
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func clientOf(t *testing.T, ca *tlstest.Authority) *tls.Config {
	t.Helper()
	config, err := relaynet.TLS{CA: ca.File}.Client(os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// blocked reads from conn and returns the channel with the read's error.
func blocked(conn net.Conn) <-chan error {
	err := make(chan error, 1)
	go func() {
		_, e := conn.Read(make([]byte, 1))
		err <- e
	}()
	return err
}

func TestCutAfterFreesABlockedRead(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	plain := listen(t)
	echo(t, plain)
	mutual := ca.Server(t)
	mutual.ClientAuth = 0
	secure := serveTLS(t, mutual)
	for name, tc := range map[string]struct {
		dialer  *relaynet.Dialer
		address string
	}{
		"plain": {&relaynet.Dialer{}, plain.Addr().String()},
		"TLS":   {&relaynet.Dialer{TLS: clientOf(t, ca)}, secure},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, tc.dialer, tc.address)
			ctx, cancel := context.WithCancel(t.Context())
			stop := tc.dialer.CutAfter(ctx, 50*time.Millisecond)
			read := blocked(conn)
			began := time.Now()
			cancel()
			if err := <-read; err == nil {
				t.Error("Read = nil after the cut, want an error")
			}
			if took := time.Since(began); took < 50*time.Millisecond {
				t.Errorf("the connection was cut after %s, before the grace was over", took)
			}
			if _, err := tc.dialer.DialContext(t.Context(), "tcp", tc.address); !errors.Is(err, relaynet.ErrCut) {
				t.Errorf("DialContext = %v after the cut, want ErrCut", err)
			}
			stop()
			stop() // again: no effect
			if err := exchange(t.Context(), tc.dialer, tc.address); err != nil {
				t.Errorf("after stop: %v, want a connection", err)
			}
			if err := conn.Close(); name == "plain" && err != nil {
				t.Errorf("Close = %v behind the cut, want nil", err)
			}
		})
	}
}

func TestCutAfterThatIsStoppedCutsNothing(t *testing.T) {
	t.Parallel()
	listener := listen(t)
	echo(t, listener)
	for name, order := range map[string]func(cancel, stop func()){
		"stopped first":            func(cancel, stop func()) { stop(); cancel() },
		"stopped within the grace": func(cancel, stop func()) { cancel(); stop() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := &relaynet.Dialer{}
			conn := dial(t, d, listener.Addr().String())
			ctx, cancel := context.WithCancel(t.Context())
			order(cancel, d.CutAfter(ctx, 20*time.Millisecond))
			_ = conn.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
			if _, err := conn.Read(make([]byte, 1)); !isTimeout(err) {
				t.Errorf("Read = %v, want a timeout on a connection that is open", err)
			}
		})
	}
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// A server that accepts and sends nothing holds up a TLS handshake.
func TestCutCancelsADialUnderWay(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	for name, cut := range map[string]func(d *relaynet.Dialer){
		"Cut":   (*relaynet.Dialer).Cut,
		"Close": (*relaynet.Dialer).Close,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			listener := listen(t)
			accepted := make(chan net.Conn, 2)
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						close(accepted)
						return
					}
					accepted <- conn
				}
			}()
			t.Cleanup(func() {
				_ = listener.Close()
				for conn := range accepted {
					_ = conn.Close()
				}
			})
			d := &relaynet.Dialer{TLS: clientOf(t, ca)}
			failed := make(chan error, 1)
			go func() {
				_, err := d.DialContext(t.Context(), "tcp", listener.Addr().String())
				failed <- err
			}()
			conn := <-accepted
			defer conn.Close()
			cut(d)
			if err := <-failed; !errors.Is(err, relaynet.ErrCut) {
				t.Errorf("DialContext = %v, want ErrCut", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := d.DialContext(ctx, "tcp", listener.Addr().String())
			if closed := errors.Is(err, relaynet.ErrCut); closed != (name == "Close") {
				t.Errorf("DialContext = %v after %s", err, name)
			}
		})
	}
}

func TestDialTimeout(t *testing.T) {
	t.Parallel()
	listener := listen(t) // accepts nothing, so that a handshake gets no answer
	defer listener.Close()
	d := &relaynet.Dialer{Timeout: 50 * time.Millisecond, TLS: clientOf(t, tlstest.New(t))}
	began := time.Now()
	_, err := d.DialContext(t.Context(), "tcp", listener.Addr().String())
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 5*time.Second {
		t.Errorf("DialContext = %v after %s, want a timeout after 50ms", err, time.Since(began))
	}
}

// bounded returns an error once more than left bytes have come.
type bounded struct {
	net.Conn
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if b.left -= n; b.left < 0 {
		return 0, errors.New("the peer sent too much")
	}
	return n, err
}

// TestHandshakeWithoutTLS: whatever a server without TLS does, the error hints at it.
func TestHandshakeWithoutTLS(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(net.Conn){
		"silence": func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) },
		"hang-up": func(conn net.Conn) { _, _ = conn.Read(make([]byte, 4096)) },
		"garbage": func(conn net.Conn) {
			_, _ = conn.Write([]byte("-ERR unknown command\r\n"))
			_, _ = io.Copy(io.Discard, conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := relaytest.Serve(t, serve)
			d := relaynet.Dialer{Timeout: 500 * time.Millisecond, TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
			_, err := d.DialContext(t.Context(), "tcp", address)
			if err == nil || !strings.HasSuffix(err.Error(), "does the server speak TLS at this port?") {
				t.Errorf("DialContext = %v, want a hint at TLS", err)
			}
		})
	}
}

// With TLS 1.3 a server refuses the client's certificate after the client's handshake. The
// client that writes to the closed connection gets the server's alert.
func TestAlertAfterTheHandshake(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	config := ca.Server(t)
	refused := make(chan struct{})
	address := relaytest.Serve(t, func(conn net.Conn) {
		if err := tls.Server(conn, config).Handshake(); err == nil {
			t.Error("the server accepts a client without a certificate")
		}
		_ = conn.Close()
		close(refused)
	})
	d := relaynet.Dialer{TLS: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: ca.Pool}}
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	<-refused
	for err == nil { // the first may be sent before the peer's reset arrives
		_, err = conn.Write([]byte("PING\r\n"))
	}
	if !relay.IsFatal(relaynet.Classify("redis", err)) {
		t.Errorf("Write = %v, want the server's alert", err)
	}
}

func TestWrapIsAboveTLS(t *testing.T) {
	t.Parallel()
	ca := tlstest.New(t)
	server := ca.Server(t)
	server.ClientAuth = 0
	d := &relaynet.Dialer{TLS: clientOf(t, ca), Wrap: func(conn net.Conn) net.Conn { return &bounded{conn, 8} }}
	conn := dial(t, d, serveTLS(t, server))
	for i, want := range []string{"", "the peer sent too much"} {
		_, _ = conn.Write([]byte("hello"))
		if _, err := io.ReadFull(conn, make([]byte, 5)); (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("read %d = %v, want %q", i, err, want)
		}
	}
}

func TestControlRefusesAnAddress(t *testing.T) {
	t.Parallel()
	refused := errors.New("not a public address")
	d := &relaynet.Dialer{Control: func(string, string, syscall.RawConn) error { return refused }}
	if _, err := d.Dial("tcp", "127.0.0.1:1"); !errors.Is(err, refused) {
		t.Errorf("Dial = %v, want what Control returned", err)
	}
}

func ExampleDialer_CutAfter() {
	dialer := &relaynet.Dialer{} // given to a client library
	client, server := silentServer(dialer)
	defer server.Close()
	defer client.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	stop := dialer.CutAfter(ctx, 0)
	defer stop()
	_, err := client.Read(make([]byte, 1)) // as a library reads that has no context
	fmt.Println(err != nil)
	// Output: true
}

// silentServer returns a connection made by dialer, and its server, which sends
// nothing.
func silentServer(dialer *relaynet.Dialer) (client, server net.Conn) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	if client, err = dialer.Dial("tcp", listener.Addr().String()); err != nil {
		panic(err)
	}
	if server, err = listener.Accept(); err != nil {
		panic(err)
	}
	return client, server
}
