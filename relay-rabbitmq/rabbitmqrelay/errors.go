package rabbitmqrelay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"regexp"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// classify marks err with its class.
func classify(err error) error {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	if errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &hostname) {
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
		return err // the client's own words for a connection that broke
	}
	switch reply.Code {
	case amqp.NotFound, amqp.AccessRefused, amqp.NotAllowed, amqp.CommandInvalid, amqp.NotImplemented, amqp.InvalidPath:
		if strings.Contains(reply.Reason, "is down or inaccessible") || strings.Contains(reply.Reason, "connection limit") {
			return err // passes by itself
		}
		return relay.Fatal(err)
	case amqp.PreconditionFailed:
		// A consumer that was too slow, or acknowledged twice, has only to begin anew.
		if strings.Contains(reply.Reason, "timed out") || strings.Contains(reply.Reason, "delivery tag") || tooLarge(err) > 0 {
			return err
		}
		return relay.Fatal(err)
	}
	return err
}

var sizeReply = regexp.MustCompile(`message size \d+ .*max size (\d+)`)

// tooLarge returns the limit of which the broker spoke when it closed a channel
// because of a message's size, else 0.
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
