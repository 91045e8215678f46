package rabbitmqrelay

import (
	"context"
	"encoding/json"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the RabbitMQ backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:         "rabbitmq",
		NewSink:      newSink,
		NewSource:    newSource,
		SinkConfig:   sinkDefaults(),
		SourceConfig: sourceDefaults(),
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

func newSink(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Sink, error) {
	cfg := sinkDefaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	return openSink(ctx, env, cfg)
}

func newSource(ctx context.Context, env relay.Env, raw json.RawMessage) (relay.Source, error) {
	cfg := sourceDefaults()
	if err := relaycfg.Decode(raw, &cfg); err != nil {
		return nil, err
	}
	return openSource(ctx, env, cfg)
}
