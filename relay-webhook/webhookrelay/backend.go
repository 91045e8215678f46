package webhookrelay

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the webhook backend. Sources that are made from one value
// share their listeners; so should all pipelines of a process.
func Backend() relay.Backend {
	shared := newListeners()
	return relay.Backend{
		Name:    "webhook",
		Aliases: []string{"http"},
		Sink:    relaycfg.Sink(sinkDefaults(), newSink),
		Source: relaycfg.Source(sourceDefaults(), func(ctx context.Context, env relay.Env, cfg sourceConfig) (*source, error) {
			return newSource(ctx, env, cfg, shared)
		}),
		Copies:   3, // the row, its body, and a copy that the transport may keep
		Refusals: refusals,
		SinkGuarantee: relay.Guarantee{
			Delivery: "at least once",
			Dedup:    "the receiver's, by Idempotency-Key or webhook-id",
			Order:    "per key",
			Weakest:  "a receiver that ignores the id takes a repeated event twice",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "effectively once, where the sender repeats an event under one id until it is answered with 2xx",
			Dedup:    "the inbox's unique key, by the event's id",
			Order:    "per sender that waits for each answer",
			Weakest:  "a sender that gives up loses its event",
		},
	}
}
