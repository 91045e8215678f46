package redisrelay

import (
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the Redis Streams backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:          "redis",
		Sink:          relaycfg.Sink(sinkDefaults(), newSink),
		Source:        relaycfg.Source(sourceDefaults(), newSource),
		Copies:        2, // the row and its body; the client writes it as it is
		Refusals:      refusals,
		SinkGuarantee: sinkGuarantee,
		SourceGuarantee: relay.Guarantee{
			Delivery: "at least once",
			Dedup:    "the inbox, by field dedup_key, else by stream and entry id",
			Order:    "per stream",
			Weakest:  "a stream that is trimmed before it has been read",
		},
	}
}

// sinkGuarantee is that of the defaults; see [sink.Guarantee].
var sinkGuarantee = relay.Guarantee{
	Delivery: "effectively once",
	Dedup:    "the tail of the streams is read back after a crash or a lost reply",
	Order:    "per stream",
	Weakest:  "a failover to a replica that lacks the tail loses what Redis had confirmed",
}

var (
	_ relay.Resumer   = (*sink)(nil)
	_ relay.Limiter   = (*sink)(nil)
	_ relay.Router    = (*sink)(nil)
	_ relay.Pinger    = (*sink)(nil)
	_ relay.Guarantor = (*sink)(nil)

	_ relay.Pinger = (*source)(nil)
	_ relay.Lagger = (*source)(nil)
)
