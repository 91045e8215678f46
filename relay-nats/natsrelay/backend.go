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
			s, err := newSink(ctx, env, config)
			if err != nil {
				return nil, err // and not an interface that holds a nil pointer
			}
			return s, nil
		},
		NewSource: func(ctx context.Context, env relay.Env, config json.RawMessage) (relay.Source, error) {
			s, err := newSource(ctx, env, config)
			if err != nil {
				return nil, err
			}
			return s, nil
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
