package kafkarelay

import (
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the Kafka backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:     "kafka",
		Sink:     relaycfg.Sink(sinkDefaults(), newSink),
		Source:   relaycfg.Source(sourceDefaults(), newSource),
		Refusals: refusals,
		Copies:   7, // the client builds records, a batch and a request, in buffers that grow
		SinkGuarantee: relay.Guarantee{
			Delivery: "effectively once",
			Dedup:    "numbered batches while the relay runs; after a crash, ids read back from the end of each partition",
			Order:    "per key, as each key has one partition of its topic",
			Weakest:  "acks 1, a replication factor of 1, or more partitions added to a topic in use",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "at least once; effectively once into an inbox",
			Dedup:    "header pgtrickle-dedup-key, else kafka:<topic>:<partition>:<offset>",
			Order:    "per partition",
			Weakest:  "retention of the topic or of the group's offsets, when the relay is away for longer",
		},
	}
}
