// Package relaytls is the old form of package relaynet, for backends that have not
// moved to it yet.
package relaytls

import (
	"crypto/tls"
	"crypto/x509"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// Client is [relaynet.TLS.Client].
func Client(ca, cert, key string) (*tls.Config, error) {
	return relaynet.TLS{CA: ca, Cert: cert, Key: relaycfg.Secret(key)}.Client()
}

// Authorities reads the certificates to trust; name is the configuration key.
func Authorities(name, value string) (*x509.CertPool, error) {
	return relaynet.Authorities(name, value)
}

// Pair reads the certificate tls_cert and its key tls_key.
func Pair(cert, key string) ([]tls.Certificate, error) {
	cfg, err := relaynet.TLS{Cert: cert, Key: relaycfg.Secret(key)}.Client()
	if err != nil {
		return nil, err
	}
	return cfg.Certificates, nil
}
