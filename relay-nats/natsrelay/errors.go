package natsrelay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// What a stream answers with, beside what the client names itself.
const (
	codeAccountResources jetstream.ErrorCode = 10002 // the account's limits are reached
	codeSealed           jetstream.ErrorCode = 10109 // the stream takes no message ever again
)

// classifyPubAck marks the refusal of one message by its stream.
func classifyPubAck(apiErr *jetstream.APIError, stream string) error {
	err := fmt.Errorf("stream %q refused the message: %s (%d)", stream, apiErr.Description, apiErr.ErrorCode)
	switch {
	case apiErr.ErrorCode == codeSealed,
		apiErr.ErrorCode == jetstream.JSErrCodeStreamNotFound,
		apiErr.ErrorCode == jetstream.JSErrCodeJetStreamNotEnabledForAccount:
		return relay.Fatal(err)
	case apiErr.ErrorCode == codeAccountResources:
		return err
	case apiErr.Code == 400 || apiErr.Code == 413:
		return relay.Permanent(err) // too large, or a header that asks for what the stream will not do
	default:
		return err // full, overloaded, without a leader, out of disk
	}
}

// classifyDial marks what an operator has to cure: credentials, permissions,
// certificates, addresses that are none. An unreachable server is transient.
func classifyDial(err error) error {
	var (
		unknownCA x509.UnknownAuthorityError
		badHost   x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		remote    *net.OpError
	)
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked),
		errors.Is(err, nats.ErrAccountAuthExpired), errors.Is(err, nats.ErrPermissionViolation),
		errors.Is(err, nats.ErrNkeysNotSupported), errors.Is(err, nats.ErrSecureConnWanted), errors.Is(err, nats.ErrSecureConnRequired),
		errors.Is(err, nats.ErrHeadersNotSupported), errors.Is(err, os.ErrNotExist),
		errors.As(err, &unknownCA), errors.As(err, &badHost), errors.As(err, &invalid), errors.As(err, &verify),
		errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert: it does not want our certificate
		return relay.Fatal(err)
	}
	return err
}

// classifyAPI marks the answer of the JetStream API about a stream or a consumer.
func classifyAPI(err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) ||
		errors.Is(err, jetstream.ErrInvalidStreamName) || errors.Is(err, jetstream.ErrInvalidSubject) {
		return relay.Fatal(err)
	}
	var apiErr *jetstream.APIError
	if errors.As(err, &apiErr) && apiErr.Code >= 400 && apiErr.Code < 429 && apiErr.ErrorCode != codeAccountResources {
		return relay.Fatal(err)
	}
	return classifyDial(err)
}
