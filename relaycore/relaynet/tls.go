package relaynet

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"

	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// TLS is the part of a client's configuration that is about TLS. Each certificate
// or key is the path of a PEM file, or the PEM text itself where a deployment passes
// secrets in the environment. Errors name the configuration key and never quote a
// value that may be a key.
type TLS struct {
	CA         string          `json:"tls_ca" relay:"pem" doc:"Authorities to trust in place of the system's: a PEM file, or the PEM text."`
	Cert       string          `json:"tls_cert" relay:"pem,needs=tls_key" doc:"Certificate of the client: a PEM file, or the PEM text."`
	Key        relaycfg.Secret `json:"tls_key" relay:"pem,needs=tls_cert" doc:"Key of tls_cert: a PEM file, or the PEM text."`
	ServerName string          `json:"tls_server_name" doc:"Name to expect in the server's certificate in place of the host's."`
}

// Configured reports whether any key is set.
func (t TLS) Configured() bool { return t != TLS{} }

// OptionalTLS is TLS for far ends whose address need not show whether they speak it.
type OptionalTLS struct {
	Use bool `json:"tls" doc:"Encrypt connections and verify the server's certificate, whatever scheme an address has; implied by the other keys of TLS."`
	TLS
}

// Configured reports whether any key asks for TLS.
func (t OptionalTLS) Configured() bool { return t != OptionalTLS{} }

// Client returns the TLS configuration of a client, or nil if no key asks for TLS.
func (t OptionalTLS) Client(read Reader) (*tls.Config, error) {
	if !t.Configured() {
		return nil, nil
	}
	return t.TLS.Client(read)
}

// Reader returns what a file of the configuration holds. It is [relay.Env.Read], which
// refuses files that the operator does not permit.
type Reader func(path string) ([]byte, error)

// Client returns the TLS configuration of a client. Without any key it trusts the
// system's authorities and shows no certificate.
func (t TLS) Client(read Reader) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	var err error
	if t.CA != "" {
		if cfg.RootCAs, err = authorities(read, "tls_ca", t.CA); err != nil {
			return nil, err
		}
	}
	if t.Cert != "" {
		if cfg.Certificates, err = keyPair(read, t.Cert, t.Key); err != nil {
			return nil, err
		}
	}
	return cfg, nil
}

// ServerTLS is the part of a listener's configuration that is about TLS. Its values
// are paths or PEM text, as in [TLS].
type ServerTLS struct {
	Cert     string          `json:"tls_cert" relay:"pem,needs=tls_key" doc:"Certificate of the server, with which it speaks TLS: a PEM file, or the PEM text."`
	Key      relaycfg.Secret `json:"tls_key" relay:"pem,needs=tls_cert" doc:"Key of tls_cert: a PEM file, or the PEM text."`
	ClientCA string          `json:"client_ca" relay:"pem,needs=tls_cert" doc:"Authorities of the clients, which must then show a certificate: a PEM file, or the PEM text."`
}

// Server returns the TLS configuration of a server, or nil if it has no
// certificate and so speaks no TLS.
func (t ServerTLS) Server(read Reader) (*tls.Config, error) {
	if t.Cert == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if cfg.Certificates, err = keyPair(read, t.Cert, t.Key); err != nil {
		return nil, err
	}
	if t.ClientCA != "" {
		if cfg.ClientCAs, err = authorities(read, "client_ca", t.ClientCA); err != nil {
			return nil, err
		}
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return cfg, nil
}

// authorities reads the certificates to trust; name is the configuration key.
func authorities(read Reader, name, value string) (*x509.CertPool, error) {
	text, err := pemText(read, name, value)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, relaycfg.Errorf(name, "holds no PEM certificate")
	}
	return pool, nil
}

// keyPair reads the certificate tls_cert and its key tls_key.
func keyPair(read Reader, cert string, key relaycfg.Secret) ([]tls.Certificate, error) {
	certText, err := pemText(read, "tls_cert", cert)
	if err != nil {
		return nil, err
	}
	keyText, err := pemText(read, "tls_key", key.Reveal())
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return nil, relaycfg.Errorf("tls_cert", "cannot be used with tls_key: %s", err)
	}
	return []tls.Certificate{pair}, nil
}

// pemText returns the PEM text that value holds or names.
func pemText(read Reader, name, value string) ([]byte, error) {
	if relaycfg.IsPEM(value) {
		return []byte(value), nil
	}
	text, err := read(value)
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, relaycfg.Errorf(name, "open the file: %s", path.Err)
	}
	if err != nil {
		return nil, relaycfg.Errorf(name, "%s", err)
	}
	return text, nil
}
