package relaycfg

import (
	"context"
	"encoding/json"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Sink returns the factory of a backend's sink. A configuration is decoded into a
// copy of defaults and handed to open, whose error never comes with a sink.
func Sink[C any, S relay.Sink](defaults C, open func(ctx context.Context, env relay.Env, cfg C) (S, error)) relay.SinkFactory {
	return relay.SinkFactory{
		Defaults: defaults,
		Decode:   decoder(defaults),
		Open: func(ctx context.Context, env relay.Env, config any) (relay.Sink, error) {
			s, err := open(ctx, env, config.(C))
			if err != nil {
				return nil, err // not s, which may be a nil pointer in a non-nil interface
			}
			return s, nil
		},
	}
}

// Source returns the factory of a backend's source. A configuration is decoded into
// a copy of defaults and handed to open, whose error never comes with a source.
func Source[C any, S relay.Source](defaults C, open func(ctx context.Context, env relay.Env, cfg C) (S, error)) relay.SourceFactory {
	return relay.SourceFactory{
		Defaults: defaults,
		Decode:   decoder(defaults),
		Open: func(ctx context.Context, env relay.Env, config any) (relay.Source, error) {
			s, err := open(ctx, env, config.(C))
			if err != nil {
				return nil, err // not s, which may be a nil pointer in a non-nil interface
			}
			return s, nil
		},
	}
}

// decoder returns a function that decodes into copies of defaults.
func decoder[C any](defaults C) func(json.RawMessage) (any, error) {
	return func(raw json.RawMessage) (any, error) {
		cfg := defaults
		if err := Decode(raw, &cfg); err != nil {
			return nil, err
		}
		return cfg, nil
	}
}
