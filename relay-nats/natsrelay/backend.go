package natsrelay

import (
	"context"
	"encoding/json"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Backend returns the NATS JetStream backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name: "nats",
		NewSink: func(ctx context.Context, env relay.Env, config json.RawMessage) (relay.Sink, error) {
			return newSink(ctx, env, config)
		},
		NewSource: func(ctx context.Context, env relay.Env, config json.RawMessage) (relay.Source, error) {
			return newSource(ctx, env, config)
		},
		SinkConfig:   sinkDefaults(),
		SourceConfig: sourceDefaults(),
		SubjectKey:   "subject",
		SinkGuarantee: relay.Guarantee{
			Delivery: "effectively once",
			Dedup:    "Nats-Msg-Id within the stream's duplicate window; beyond it by reading the stream's tail",
			Order:    "per key",
			Weakest:  "a stream whose storage is memory, or whose messages expire before they are read",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "effectively once",
			Dedup:    "Nats-Msg-Id, else stream and sequence, in the inbox's event_id",
			Order:    "as in the stream",
			Weakest:  "messages that the stream's limits remove before they are read",
		},
	}
}
