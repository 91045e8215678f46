package rabbitmqrelay

import (
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the RabbitMQ backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:     "rabbitmq",
		Sink:     relaycfg.Sink(sinkDefaults(), newSink),
		Source:   relaycfg.Source(sourceDefaults(), newSource),
		Copies:   2, // the row and its body; the client writes it as it is
		Refusals: refusals,
		SinkGuarantee: relay.Guarantee{
			Delivery: "at least once",
			Dedup:    "receivers, by property message-id",
			Order:    "per key and queue",
			Weakest:  "a crash or a lost connection publishes again what was not confirmed",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "at least once",
			Dedup:    "the inbox, by property message-id",
			Order:    "per queue while this is its only consumer; what a crash left comes again",
			Weakest:  "messages without message-id, which are refused or known by their body's hash",
		},
	}
}
