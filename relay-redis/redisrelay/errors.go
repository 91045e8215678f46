package redisrelay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// fatalCodes are the first words of replies that only an operator can answer.
// Replies that are not listed are transient: OOM, READONLY, LOADING, MISCONF,
// NOREPLICAS, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, BUSY, MOVED, ASK and whatever a
// later server may invent.
var fatalCodes = []string{ //nolint:gochecknoglobals // a constant table
	"WRONGTYPE", "NOPERM", "WRONGPASS", "NOAUTH", "CROSSSLOT", "DENIED", "NOPROTO",
	"ERR unknown command", "ERR unknown subcommand", "ERR invalid password", "ERR DB index",
	"ERR AUTH", "ERR Client sent AUTH", "ERR SELECT is not allowed", "ERR invalid DB index",
}

// classify marks err with its class.
func classify(err error) error {
	var reply redis.Error
	if errors.As(err, &reply) {
		text := reply.Error()
		for _, code := range fatalCodes {
			if strings.HasPrefix(text, code) {
				return relay.Fatal(err)
			}
		}
		if strings.Contains(text, "Protocol error: invalid bulk length") {
			return relay.Permanent(err)
		}
		return err
	}
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	if errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &hostname) {
		return relay.Fatal(err)
	}
	return err
}

// isReply reports whether the server itself answered, so that it is known what
// it did.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}
