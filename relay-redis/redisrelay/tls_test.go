package redisrelay

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// certificates writes an authority's certificate and one that it has signed, for
// 127.0.0.1 and for clients, and returns their files and the key's.
func certificates(t testing.TB) (ca, cert, key string) {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	sign := func(template, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if signer == nil {
			signer = own
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &own.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return own, der
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, caDER := sign(authority, authority, nil)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafKey, leafDER := sign(leaf, authority, caKey)
	keyDER, err := x509.MarshalECPrivateKey(leafKey)
	if err != nil {
		t.Fatal(err)
	}
	return write("ca.pem", "CERTIFICATE", caDER), write("cert.pem", "CERTIFICATE", leafDER), write("key.pem", "EC PRIVATE KEY", keyDER)
}

// terminateTLS puts TLS with client certificates in front of target.
func terminateTLS(t testing.TB, target, ca, cert, key string) (addr string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pemCA, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pemCA)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", target)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); out.Close() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return listener.Addr().String()
}

func TestTLSAndACL(t *testing.T) {
	srv := startServer(t)
	raw := srv.client(t)
	if err := raw.Do(t.Context(), "acl", "setuser", "relay", "on", ">secret", "~pgtrickle:*", "+xadd", "+xrange", "+xrevrange", "+ping", "+time", "+multi", "+exec", "+wait").Err(); err != nil {
		t.Fatal(err)
	}
	ca, cert, key := certificates(t)
	addr := terminateTLS(t, srv.addr, ca, cert, key)
	config := fmt.Sprintf(`"username":"relay","password":"secret","tls_ca":%q,"tls_cert":%q,"tls_key":%q`, ca, cert, key)
	s := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"rediss://%s",%s}`, addr, config))
	if err := s.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); err != nil {
		t.Fatal(err)
	}
	if position, err := s.(relay.Resumer).Position(t.Context()); err != nil || position == "" {
		t.Errorf("Position() = %q, %v", position, err)
	}
	if got := ids(t, raw, "pgtrickle:orders"); len(got) != 1 {
		t.Errorf("stream has %d entries, want 1", len(got))
	}
	// Another stream is not the user's, which is for an operator.
	other := mustSink(t, testEnv(t), fmt.Sprintf(`{"url":"redis://%s","stream":"other",%s}`, addr, config))
	if err := other.Publish(t.Context(), []relay.Message{relaytest.Message(1, "k")}); !relay.IsFatal(err) {
		t.Errorf("Publish to a stream that is forbidden = %v, want a fatal error", err)
	}
	// So is a server whose authority is not trusted.
	if _, err := Backend().NewSink(t.Context(), testEnv(t), fmt.Appendf(nil, `{"url":"redis://%s","tls":true}`, addr)); !relay.IsFatal(err) {
		t.Errorf("NewSink without tls_ca = %v, want a fatal error", err)
	}
}
