package natsrelay

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var (
	errSinkClosed     = errors.New("the sink is closed")
	errSourceClosed   = errors.New("the source is closed")
	errNotSent        = errors.New("not sent: an earlier message of the batch failed")
	errConfirmTimeout = errors.New("the server did not confirm in time")
	errLimitsChanged  = errors.New("the server's limits have changed; connecting again")
	errNoResponders   = errors.New("no stream answered")
)

// Error codes of the server that the client does not name.
const (
	codeAccountResources jetstream.ErrorCode = 10002 // the account's limits are reached
	codeSealed           jetstream.ErrorCode = 10109 // the stream is read-only for ever
)

// classifyPubAck classifies the refusal of one message by its stream.
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
		return relay.Permanent(err) // too large, or a header that the stream refuses
	default:
		return err // full, overloaded, without a leader, out of disk
	}
}

// classifyDial marks what an operator has to cure: credentials, permissions and
// certificates. An unreachable server is transient.
func classifyDial(err error) error {
	if refused := relaynet.Untrusted(err); refused != nil {
		return refused
	}
	if _, wrong := errors.AsType[*relaynet.WrongPeerError](err); wrong {
		return relay.Fatal(err)
	}
	fatal := []error{
		nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrPermissionViolation,
		nats.ErrNkeysNotSupported, nats.ErrSecureConnWanted, nats.ErrSecureConnRequired, nats.ErrHeadersNotSupported, os.ErrNotExist,
	}
	if slices.ContainsFunc(fatal, func(target error) bool { return errors.Is(err, target) }) {
		return relay.Fatal(err)
	}
	return err
}

// classifyAPI classifies JetStream's answer about a stream or a consumer.
func classifyAPI(err error) error {
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) ||
		errors.Is(err, jetstream.ErrInvalidStreamName) || errors.Is(err, jetstream.ErrInvalidSubject) {
		return relay.Fatal(err)
	}
	apiErr, ok := errors.AsType[*jetstream.APIError](err)
	if ok && apiErr.Code >= 400 && apiErr.Code < 429 && apiErr.ErrorCode != codeAccountResources {
		return relay.Fatal(err)
	}
	return classifyDial(err)
}
