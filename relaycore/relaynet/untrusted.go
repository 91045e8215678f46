package relaynet

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Classify returns err. It is fatal if the server is of another kind, or if one side of the
// connection refused the other's certificate. Then it names the cure. prefix is that of
// the backend's keys.
func Classify(prefix string, err error) error {
	if cure := cureOf(prefix, err); cure != "" {
		return relay.Fatal(fmt.Errorf("%w; %s", err, cure))
	}
	if Refused(err) {
		return relay.Fatal(err)
	}
	return err
}

func cureOf(prefix string, err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "set " + prefix + "_tls_ca to the authority that signed the server's certificate"
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return "set " + prefix + "_tls_server_name to a name in the server's certificate"
	}
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return "the server needs a valid certificate"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "check the server's certificate, and " + prefix + "_tls_ca"
	}
	// The peer refused the handshake by an alert. An internal error is the peer's
	// own and may pass.
	if isAlert(err) && !strings.Contains(err.Error(), "tls: internal error") {
		return "the server refused the handshake: check " + prefix + "_tls_cert and " + prefix + "_tls_key"
	}
	return ""
}

// isAlert reports whether err is an alert that the peer sent.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}
