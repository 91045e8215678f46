package webhookrelay

import (
	"crypto/tls"

	"github.com/grove/pgtrickle-relay/relaycore/relaytls"
)

// serverTLS returns nil where no certificate is configured.
func serverTLS(cert, key, clientCA string) (*tls.Config, error) {
	if cert == "" {
		return nil, nil //nolint:nilnil // no TLS is a valid answer
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if cfg.Certificates, err = relaytls.Pair(cert, key); err != nil {
		return nil, err
	}
	if clientCA != "" {
		if cfg.ClientCAs, err = relaytls.Authorities("client_ca", clientCA); err != nil {
			return nil, err
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}
