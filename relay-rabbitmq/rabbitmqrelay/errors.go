package rabbitmqrelay

import (
	"errors"
	"regexp"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

var (
	errClosed       = errors.New("the sink is closed")
	errSourceClosed = errors.New("the source is closed")
)

// classify marks err with its class.
func classify(err error) error {
	if untrusted := relaynet.Untrusted(err); untrusted != nil {
		return untrusted
	}
	if _, wrong := errors.AsType[*relaynet.WrongPeerError](err); wrong {
		return relay.Fatal(err)
	}
	var reply *amqp.Error
	if !errors.As(err, &reply) {
		return err
	}
	if errors.Is(err, amqp.ErrSASL) {
		return relay.Fatal(err)
	}
	if !reply.Server {
		return err // the client's own error for a connection that broke
	}
	switch reply.Code {
	case amqp.NotFound, amqp.AccessRefused, amqp.NotAllowed, amqp.CommandInvalid, amqp.NotImplemented, amqp.InvalidPath:
		if strings.Contains(reply.Reason, "is down or inaccessible") || strings.Contains(reply.Reason, "connection limit") {
			return err // passes by itself
		}
		return relay.Fatal(err)
	case amqp.PreconditionFailed:
		// A consumer that was too slow, or acknowledged twice, only has to consume again.
		if strings.Contains(reply.Reason, "timed out") || strings.Contains(reply.Reason, "delivery tag") || tooLarge(err) > 0 {
			return err
		}
		return relay.Fatal(err)
	}
	return err
}

var sizeReply = regexp.MustCompile(`message size \d+ .*max size (\d+)`)

// tooLarge returns the limit in the broker's reply when it closed a channel because
// of a message's size, else 0.
func tooLarge(err error) int {
	var reply *amqp.Error
	if !errors.As(err, &reply) || reply.Code != amqp.PreconditionFailed {
		return 0
	}
	m := sizeReply.FindStringSubmatch(reply.Reason)
	if m == nil {
		return 0
	}
	limit, _ := strconv.Atoi(m[1])
	return limit
}
