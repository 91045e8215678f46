package redisrelay

import (
	"errors"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// fatalCodes are the first words of replies that only an operator can cure. All other
// replies are transient: OOM, READONLY, LOADING, MISCONF, NOREPLICAS, MASTERDOWN,
// CLUSTERDOWN, TRYAGAIN, BUSY, MOVED, ASK and those of later servers.
var fatalCodes = []string{
	"WRONGTYPE", "NOPERM", "WRONGPASS", "NOAUTH", "CROSSSLOT", "DENIED", "NOPROTO",
	"ERR unknown command", "ERR unknown subcommand", "ERR invalid password", "ERR DB index",
	"ERR AUTH", "ERR Client sent AUTH", "ERR SELECT is not allowed", "ERR invalid DB index",
}

// classify marks err as fatal or permanent; others are transient.
func classify(err error) error {
	reply, ok := errors.AsType[redis.Error](err)
	if !ok {
		if _, wrong := errors.AsType[*relaynet.WrongPeerError](err); wrong {
			return relay.Fatal(err)
		}
		if refused := relaynet.Untrusted(err); refused != nil {
			return refused
		}
		return err
	}
	text := reply.Error()
	switch {
	case slices.ContainsFunc(fatalCodes, func(code string) bool { return strings.HasPrefix(text, code) }):
		return relay.Fatal(err)
	case strings.Contains(text, "Protocol error: invalid bulk length"):
		return relay.Permanent(err)
	}
	return err
}

// isReply reports whether err is an answer of the server. Then it is known what the
// server did.
func isReply(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}

// classify is that for messages: a key that is no stream, and whose name comes from a
// row, stops only the messages with that name.
func (s *sink) classify(err error) error {
	if s.cfg.Stream.PerMessage() && isWrongType(err) {
		return relay.Permanent(err)
	}
	return classify(err)
}

func isWrongType(err error) bool {
	reply, ok := errors.AsType[redis.Error](err)
	return ok && strings.HasPrefix(reply.Error(), "WRONGTYPE")
}
