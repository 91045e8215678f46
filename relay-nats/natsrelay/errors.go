package natsrelay

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var (
	errNotSent        = errors.New("not sent: an earlier message of the batch failed")
	errConfirmTimeout = errors.New("the server did not confirm in time")
	errLimitsChanged  = errors.New("the server's limits have changed; connecting again")
	errNoResponders   = errors.New("no stream answered")
)

// Answers by which the sink itself refuses a message, because the server would end the
// connection or be silent.
const (
	notStored   = "the stream does not store the subject"
	badSubject  = "nats: invalid subject"
	longSubject = "the subject is too long"
	longLine    = "nats: maximum control line exceeded" // of a server with a lower limit
)

// refusals are the errors of the client, and the codes of the stream's answer to a
// message: HTTP's and JetStream's own. "API" stands before the codes of the answer to a
// question about a stream or a consumer.
var refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "nats: maximum payload exceeded|400/10054|400/10097|413/*"},
	{Kind: relay.KindBadName, Blame: relay.BlameMessage, Answer: badSubject, Note: "a space, a wildcard, an empty part"},
	{Kind: relay.KindBadName, Blame: relay.BlameMessage, Answer: longSubject, Note: "max_control_line"},
	{Kind: relay.KindBadName, Blame: relay.BlameNothing, Answer: longLine, Note: "the relay learns the limit"},
	{Kind: relay.KindMissing, Blame: relay.BlamePipeline, Answer: "404/10059|API 404/10059", Note: "no such stream"},
	{Kind: relay.KindMissing, Blame: relay.BlameDestination, Answer: notStored},
	{Kind: relay.KindDenied, Blame: relay.BlameDestination, Answer: "nats: permissions violation: *ublish to *"},
	{Kind: relay.KindWrongType, Blame: relay.BlamePipeline, Answer: "400/10109", Note: "the stream is sealed"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "400/10002|API 400/10002", Note: "the limits of the account"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "503/10077|503/10023|500/10047|500/10028", Note: "discard new, disk"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "nats: *maximum *connections exceeded"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "503/10008|500/10009|429/*|409/10158|nats: no responders*"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "400/*|nats: message could not decode headers*", Note: "a header"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "nats: permissions violation*", Note: "to subscribe, or $JS.API"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "nats: auth*|nats: account authentication expired"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "nats: secure connection *|nats: nkeys not supported*"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "503/10039|API 503/10039", Note: "no JetStream in the account"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "nats: headers not supported by this server|nats: invalid *"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "API 40*|API 41*", Note: "a stream or consumer of other settings"},
}

// codes returns an answer of JetStream as the table has it.
func codes(e *jetstream.APIError) string { return fmt.Sprintf("%d/%d", e.Code, e.ErrorCode) }

// classifyPubAck classifies the refusal of one message by its stream.
func classifyPubAck(e *jetstream.APIError, stream string) error {
	return refusals.Classify(fmt.Errorf("stream %q refused the message: %s (%d)", stream, e.Description, e.ErrorCode), codes(e), false)
}

// classify marks an error of the client, where the configuration names the destination.
func classify(err error) error { return classifyFor(err, false) }

func classifyFor(err error, ofRow bool) error {
	if refused := relaynet.Classify("nats", err); relay.IsFatal(refused) {
		return refused
	}
	if errors.Is(err, os.ErrNotExist) {
		return relay.Fatal(err)
	}
	if apiErr, ok := errors.AsType[*jetstream.APIError](err); ok {
		return refusals.Classify(err, "API "+codes(apiErr), ofRow)
	}
	// The client passes on some texts of the server as they are, others as its own.
	if _, text, ok := strings.Cut(err.Error(), "nats: "); ok {
		return refusals.Classify(err, "nats: "+strings.ToLower(text), ofRow)
	}
	return err
}

var deniedSubject = regexp.MustCompile(`ublish to "(.*)"$`)

// denied returns the subject to which the user may not publish, or "".
func denied(err error) string {
	m := deniedSubject.FindStringSubmatch(err.Error())
	if m == nil || !errors.Is(err, nats.ErrPermissionViolation) {
		return ""
	}
	return m[1]
}
