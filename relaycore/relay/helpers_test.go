package relay_test

import (
	"context"
	"encoding/json"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

func nopSink(context.Context, relay.Env, json.RawMessage) (relay.Sink, error) { return nil, nil }
