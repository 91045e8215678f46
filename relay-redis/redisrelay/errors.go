package redisrelay

import (
	"errors"

	"github.com/redis/go-redis/v9"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaynet"
)

// refusals are the replies of Redis, by their beginning. Those of a later server that are
// not listed are transient.
var refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "ERR Protocol error: invalid *bulk length*", Note: "body, headers"},
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "ERR Elements are too large to be stored*", Note: "an entry of 1 GiB"},
	{Kind: relay.KindInvalid, Note: "an entry of a stream is any bytes"},
	{Kind: relay.KindBadName, Note: "a key is any bytes; the relay refuses an empty one"},
	{Kind: relay.KindMissing, Note: "XADD creates the stream"},
	{Kind: relay.KindDenied, Blame: relay.BlameDestination, Answer: "NOPERM *ermissions to access *", Note: "the key patterns of the user"},
	{Kind: relay.KindWrongType, Blame: relay.BlameDestination, Answer: "WRONGTYPE*", Note: "the key is no stream"},
	{Kind: relay.KindFull, Blame: relay.BlameDestination, Answer: "ERR The stream has exhausted the last possible ID*"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "OOM*|MISCONF*|ERR max number of clients*", Note: "memory, disk or connections"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "LOADING*|READONLY*|NOREPLICAS*|*DOWN *|TRYAGAIN*|BUSY *"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "NOGROUP*", Note: "the source looks for its group; see on_recreated"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "NOPERM*", Note: "the commands of the user"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "WRONGPASS*|NOAUTH*|DENIED*|ERR invalid password*|ERR *AUTH*"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "ERR unknown *command*|CROSSSLOT*|NOPROTO*", Note: "not Redis from 6.2 on"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "ERR *DB index*|ERR SELECT is not allowed*", Note: "database of url"},
}

// classify marks err by the table. The destination is that of the configuration.
func classify(err error) error { return classifyFor(err, false) }

func classifyFor(err error, ofRow bool) error {
	if reply, ok := errors.AsType[redis.Error](err); ok {
		return refusals.Classify(err, reply.Error(), ofRow)
	}
	return relaynet.Classify("redis", err)
}

// isReply reports whether err is an answer of the server. Then it is known what the
// server did.
func isReply(err error) bool {
	_, ok := errors.AsType[redis.Error](err)
	return ok
}

// classify is that for the streams of messages.
func (s *sink) classify(err error) error { return classifyFor(err, s.cfg.Stream.PerMessage()) }
