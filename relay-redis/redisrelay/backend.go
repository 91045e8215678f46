package redisrelay

import (
	"context"
	"encoding/json"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaycfg"
)

// Backend returns the Redis Streams backend.
func Backend() relay.Backend {
	return relay.Backend{
		Name:         "redis",
		NewSink:      newSink,
		NewSource:    newSource,
		SinkConfig:   sinkDefaults(),
		SourceConfig: sourceDefaults(),
		SinkGuarantee: relay.Guarantee{
			Delivery: "effectively once",
			Dedup:    "the tail of the streams is read back after a crash or a lost reply",
			Order:    "per stream",
			Weakest:  "a failover to a replica that lacks the tail loses what Redis had confirmed",
		},
		SourceGuarantee: relay.Guarantee{
			Delivery: "at least once",
			Dedup:    "the inbox, by field dedup_key, else by stream and entry id",
			Order:    "per stream",
			Weakest:  "a stream that is trimmed before it has been read",
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
