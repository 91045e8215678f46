// Package relaytls reads the certificates that backends are configured with. A
// value is the path of a PEM file, or the PEM text itself where a deployment
// passes secrets in the environment. Errors name the configuration key and what
// is wrong, and never quote a value that may be a key.
package relaytls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Client returns the configuration of a client that trusts tls_ca, else the
// system's authorities, and shows tls_cert where it is set.
func Client(ca, cert, key string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if ca != "" {
		if cfg.RootCAs, err = Authorities("tls_ca", ca); err != nil {
			return nil, err
		}
	}
	if cert != "" {
		if cfg.Certificates, err = Pair(cert, key); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// Authorities reads the certificates to trust; name is the configuration key.
func Authorities(name, value string) (*x509.CertPool, error) {
	text, err := read(name, value)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, relaycfg.Errorf(name, "holds no PEM certificate")
	}
	return pool, nil
}

// Pair reads the certificate tls_cert and its key tls_key.
func Pair(cert, key string) ([]tls.Certificate, error) {
	certText, err := read("tls_cert", cert)
	if err != nil {
		return nil, err
	}
	keyText, err := read("tls_key", key)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return nil, relaycfg.Errorf("tls_cert", "cannot be used with tls_key: %s", err)
	}
	return []tls.Certificate{pair}, nil
}

func read(name, value string) ([]byte, error) {
	if strings.Contains(value, "-----BEGIN ") {
		return []byte(value), nil
	}
	text, err := os.ReadFile(value)
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return nil, relaycfg.Errorf(name, "%s the file: %s", path.Op, path.Err)
	}
	return text, err
}
