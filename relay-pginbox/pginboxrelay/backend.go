package pginboxrelay

import (
	"github.com/grove/pgtrickle-relay/relaycore/inbox"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the pg-inbox backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:     "pg-inbox",
		Aliases:  []string{"pg_inbox", "inbox"},
		Sink:     relaycfg.Sink(sinkDefaults(), newSink),
		Refusals: inbox.Refusals,
		Copies:   4, // the client makes an array of texts, and a message of it
		SinkGuarantee: relay.Guarantee{
			Delivery: "effectively once",
			Dedup:    "unique key on the event id, for as long as a row is kept",
			Order:    "per key",
			Weakest:  "a row that is deleted and then delivered again is a new row",
		},
	}
}
