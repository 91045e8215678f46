package outbox_test

import (
	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox"
)

// The engine finds these by asking the source for them.
var (
	_ engine.Mover    = (*outbox.Source)(nil)
	_ engine.Recycler = (*outbox.Source)(nil)
	_ engine.Expecter = (*outbox.Source)(nil)
)
