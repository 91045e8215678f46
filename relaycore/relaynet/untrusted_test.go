package relaynet_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/tlstest"
)

func TestClassify(t *testing.T) {
	ca, other := tlstest.New(t), tlstest.New(t)
	cert, key := ca.Issue(t, "relay")
	foreignCert, foreignKey := other.Issue(t, "relay")
	address := serveTLS(t, ca.Server(t))
	for name, tc := range map[string]struct {
		cfg  relaynet.TLS
		want string
	}{
		"trusted":               {relaynet.TLS{CA: ca.File, Cert: cert, Key: relaycfg.Secret(key)}, ""},
		"unknown authority":     {relaynet.TLS{CA: other.File, Cert: cert, Key: relaycfg.Secret(key)}, "set kafka_tls_ca"},
		"another name":          {relaynet.TLS{CA: ca.File, Cert: cert, Key: relaycfg.Secret(key), ServerName: "elsewhere"}, "set kafka_tls_server_name"},
		"no client certificate": {relaynet.TLS{CA: ca.File}, "check kafka_tls_cert and kafka_tls_key"},
		"foreign certificate":   {relaynet.TLS{CA: ca.File, Cert: foreignCert, Key: relaycfg.Secret(foreignKey)}, "check kafka_tls_cert and kafka_tls_key"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := tc.cfg.Client(os.ReadFile)
			if err != nil {
				t.Fatal(err)
			}
			err = exchange(t.Context(), &relaynet.Dialer{TLS: config}, address)
			got := relaynet.Classify("kafka", err)
			if tc.want == "" {
				if err != nil || got != nil {
					t.Errorf("exchange = %v, want nil", err)
				}
				return
			}
			if !relay.IsFatal(got) || !strings.Contains(got.Error(), tc.want) || !errors.Is(got, err) {
				t.Errorf("Classify(%v) = %v, want a fatal error with %q", err, got, tc.want)
			}
		})
	}
	for _, err := range []error{nil, io.EOF, &net.OpError{Op: "dial", Err: errors.New("connection refused")}} {
		if got := relaynet.Classify("kafka", err); got != err { //nolint:errorlint // identity, not a chain
			t.Errorf("Classify(%v) = %v, want it as it is", err, got)
		}
	}
	wrong := fmt.Errorf("connect: %w", relaynet.Peer{Name: "Kafka broker"}.Wrong([]byte("SSH-")))
	if got := relaynet.Classify("kafka", wrong); !relay.IsFatal(got) || !errors.Is(got, wrong) {
		t.Errorf("Classify(%v) = %v, want a fatal error", wrong, got)
	}
}

// serveTLS echoes what it receives.
func serveTLS(t *testing.T, config *tls.Config) (address string) {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, listener)
	return listener.Addr().String()
}

// exchange sends a line and reads it back: in TLS 1.3 a server refuses a client's
// certificate after the handshake.
func exchange(ctx context.Context, d *relaynet.Dialer, address string) error {
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 5))
	return err
}

func ExampleClassify() {
	err := relaynet.Classify("kafka", fmt.Errorf("connect to broker:4222: %w", x509.UnknownAuthorityError{}))
	fmt.Println(err)
	// Output: connect to broker:4222: x509: certificate signed by unknown authority; set kafka_tls_ca to the authority that signed the server's certificate
}
