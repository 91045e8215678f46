package outbox

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

type lagPoint struct{}

// Lag implements [relay.Lagger].
func (s *Source) Lag(ctx context.Context) (rows int64, seconds float64, err error) { return 0, 0, nil }

// Committed implements [relay.Checkpointer].
func (s *Source) Committed(ctx context.Context, c relay.Checkpoint) error { return nil }
