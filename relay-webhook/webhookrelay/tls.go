package webhookrelay

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

func clientTLS(ca, cert, key string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if ca != "" {
		if cfg.RootCAs, err = loadCA("tls_ca", ca); err != nil {
			return nil, err
		}
	}
	if cert != "" {
		if cfg.Certificates, err = loadPair(cert, key); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// serverTLS returns nil where no certificate is configured.
func serverTLS(cert, key, clientCA string) (*tls.Config, error) {
	if cert == "" {
		return nil, nil //nolint:nilnil // no TLS is a valid answer
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if cfg.Certificates, err = loadPair(cert, key); err != nil {
		return nil, err
	}
	if clientCA != "" {
		if cfg.ClientCAs, err = loadCA("client_ca", clientCA); err != nil {
			return nil, err
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}

func loadPair(cert, key string) ([]tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, relaycfg.Errorf("tls_cert", "load certificate and key: %s", err)
	}
	return []tls.Certificate{pair}, nil
}

func loadCA(name, path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, relaycfg.Errorf(name, "%s", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, relaycfg.Errorf(name, "no certificate in %s", path)
	}
	return pool, nil
}
