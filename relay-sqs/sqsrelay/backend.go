package sqsrelay

import (
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the SQS backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:     "sqs",
		Sink:     relaycfg.Sink(sinkDefaults(), newSink),
		Source:   relaycfg.Source(sourceDefaults(), newSource),
		Refusals: refusals,
		Copies:   7, // the client makes JSON of a text of the body; a queue takes 1 MiB at most
		SinkGuarantee: relay.Guarantee{
			Delivery: "FIFO: effectively once; standard: at least once",
			Dedup:    "FIFO: MessageDeduplicationId, for 5 minutes; standard: none, attribute dedup_key tells the receiver",
			Order:    "FIFO: per message group; standard: none",
			Weakest:  "FIFO: a retry more than 5 minutes after the first attempt",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "at least once; effectively once into an inbox",
			Dedup:    "attribute dedup_key, else MessageDeduplicationId or MessageId",
			Order:    "FIFO: per message group; standard: none",
			Weakest:  "the queue's retention, or a redrive policy that counts receives",
		},
	}
}
