package natsrelay

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

func TestRefusals(t *testing.T) {
	t.Parallel()
	relaytest.Refusals(t, refusals, func(answer string, ofRow bool) error {
		var e jetstream.APIError
		switch {
		case answer == notStored, answer == longSubject:
			return refusals.Classify(errors.New(answer), answer, ofRow)
		case strings.HasPrefix(answer, "nats: "):
			return classifyFor(fmt.Errorf("publish: %w", errors.New(answer)), ofRow)
		case strings.HasPrefix(answer, "API "):
			_, _ = fmt.Sscanf(answer, "API %d/%d", &e.Code, &e.ErrorCode)
			return classifyFor(fmt.Errorf("look up the stream: %w", &e), ofRow)
		}
		_, _ = fmt.Sscanf(answer, "%d/%d", &e.Code, &e.ErrorCode)
		return classifyPubAck(&e, "S")
	})
}

// The texts of the table are those of the client.
func TestErrorsOfTheClient(t *testing.T) {
	t.Parallel()
	for err, fatal := range map[error]bool{
		nats.ErrAuthorization: true, nats.ErrAuthExpired: true, nats.ErrAuthRevoked: true, nats.ErrAccountAuthExpired: true,
		nats.ErrPermissionViolation: true, nats.ErrNkeysNotSupported: true, nats.ErrSecureConnWanted: true, nats.ErrSecureConnRequired: true,
		nats.ErrHeadersNotSupported: true, jetstream.ErrStreamNotFound: true, jetstream.ErrJetStreamNotEnabledForAccount: true,
		jetstream.ErrInvalidStreamName: true, jetstream.ErrInvalidSubject: true, jetstream.ErrConsumerNotFound: true,
		nats.ErrNoResponders: false, nats.ErrTimeout: false, nats.ErrConnectionClosed: false, nats.ErrMaxConnectionsExceeded: false,
		nats.ErrNoServers: false, nats.ErrStaleConnection: false, jetstream.ErrJetStreamNotEnabled: false,
	} {
		if got := classify(fmt.Errorf("connect: %w", err)); relay.IsFatal(got) != fatal || relay.IsPermanent(got) {
			t.Errorf("classify(%v) is fatal %t, permanent %t; want fatal %t", err, relay.IsFatal(got), relay.IsPermanent(got), fatal)
		}
	}
}
