package rabbitmqrelay

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// Refusals that are no exception of a channel.
const (
	unroutable = "312 NO_ROUTE" // a returned message
	rejected   = "basic.nack"
	longText   = "a routing key, id or header name of more than 255 bytes"
)

// refusals are the codes and texts with which the broker closes a channel or connection,
// returns a message or rejects it.
var refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "406 *message size *", Note: "max_message_size"},
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: longText, Note: "refused by the relay"},
	{Kind: relay.KindInvalid, Note: "a body is any bytes"},
	{Kind: relay.KindBadName, Note: "a routing key is any text of up to 255 bytes"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "404 *is down or inaccessible*", Note: "the node of a queue"},
	{Kind: relay.KindMissing, Blame: relay.BlameDestination, Answer: unroutable, Note: "no queue is bound with the routing key"},
	{Kind: relay.KindMissing, Blame: relay.BlamePipeline, Answer: "404 *", Note: "the exchange; the queue of a source"},
	{Kind: relay.KindDenied, Blame: relay.BlameDestination, Answer: "403 *access to topic *", Note: "the user's topic permissions"},
	{Kind: relay.KindDenied, Blame: relay.BlamePipeline, Answer: "403 *access to *", Note: "the exchange; the queue of a source"},
	{Kind: relay.KindWrongType, Blame: relay.BlamePipeline, Answer: "406 *inequivalent arg*|403 *internal exchange*"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: rejected, Note: "a queue of overflow reject-publish"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "530 *connection limit*"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "320 *|405 *|501 *|505 *|541 *", Note: "shutdown, a lock"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "406 *timed out*|406 *delivery tag*", Note: "a source consumes again"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "403 *", Note: "user or password"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "402 *|406 *|503 *|530 *|540 *", Note: "virtual host, exchange type"},
}

// code returns the reply code of the broker's refusal, or 0.
func code(err error) int {
	if reply, ok := errors.AsType[*amqp.Error](err); ok {
		return reply.Code
	}
	return 0
}

// explainMissing adds the cure to the error for an exchange or queue that does not exist.
func explainMissing(err error) error {
	if code(err) == amqp.NotFound && !strings.Contains(err.Error(), "is down or inaccessible") {
		return fmt.Errorf("%w; create it, or set rabbitmq_create_if_missing to true", err)
	}
	return err
}

// classify marks err, which has closed a channel or connection, with its class. It is
// transient for the other messages if one message or its routing key is to blame.
func classify(err error) error {
	if errors.Is(err, amqp.ErrSASL) {
		return relay.Fatal(err)
	}
	if blamed := classifyFor(err, false); relay.IsFatal(blamed) {
		return blamed
	}
	return relaynet.Classify("rabbitmq", err)
}

// classifyFor marks err for the message that it is about. It leaves the client's own
// errors, for a connection that broke, as they are.
func classifyFor(err error, ofRow bool) error {
	reply, ok := errors.AsType[*amqp.Error](err)
	if !ok || !reply.Server {
		return err
	}
	return refusals.Classify(err, fmt.Sprintf("%d %s", reply.Code, reply.Reason), ofRow)
}

var (
	topicReply = regexp.MustCompile(`access to topic '(.*)' in exchange`)
	sizeReply  = regexp.MustCompile(`message size \d+ .*max size (\d+)`)
)

// deniedKey returns the routing key to which the user may not publish, and whether err
// is about one.
func deniedKey(err error) (string, bool) { return stated(err, amqp.AccessRefused, topicReply) }

// tooLarge returns the limit in the broker's reply when it closed a channel because
// of a message's size, else 0.
func tooLarge(err error) int {
	text, _ := stated(err, amqp.PreconditionFailed, sizeReply)
	limit, _ := strconv.Atoi(text)
	return limit
}

// stated returns what form finds in the broker's reply with a code.
func stated(err error, code int, form *regexp.Regexp) (string, bool) {
	if reply, ok := errors.AsType[*amqp.Error](err); ok && reply.Code == code {
		if m := form.FindStringSubmatch(reply.Reason); m != nil {
			return m[1], true
		}
	}
	return "", false
}
