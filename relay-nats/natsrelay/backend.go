package natsrelay

import (
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the NATS JetStream backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:       "nats",
		Sink:       relaycfg.Sink(sinkDefaults(), newSink),
		Source:     relaycfg.Source(sourceDefaults(), newSource),
		SubjectKey: "subject",
		Copies:     3, // the row, its body, and the client's buffer

		Refusals:        refusals,
		SinkGuarantee:   sinkGuarantee,
		SourceGuarantee: sourceGuarantee,
	}
}

// The guarantees of the defaults; see [sink.Guarantee] and [source.Guarantee].
var (
	sinkGuarantee = relay.Guarantee{
		Delivery: "effectively once",
		Dedup:    "Nats-Msg-Id within the stream's duplicate window; beyond it by reading the stream's tail",
		Order:    "per key",
		Weakest:  "a stream whose storage is memory, or whose messages expire before they are read",
	}
	sourceGuarantee = relay.Guarantee{
		Delivery: "effectively once",
		Dedup:    "Nats-Msg-Id, else stream and sequence, in the inbox's event_id",
		Order:    "as in the stream",
		Weakest:  "messages that the stream's limits remove before they are read",
	}
)

var (
	_ relay.Resumer        = (*sink)(nil)
	_ relay.Duplicates     = (*sink)(nil)
	_ relay.DuplicateNamer = (*sink)(nil)
	_ relay.Router         = (*sink)(nil)
	_ relay.Pinger         = (*sink)(nil)
	_ relay.Guarantor      = (*sink)(nil)

	_ relay.Pinger    = (*source)(nil)
	_ relay.Lagger    = (*source)(nil)
	_ relay.Guarantor = (*source)(nil)
)
