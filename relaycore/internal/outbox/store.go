package outbox

import (
	"context"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/identity"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Store reads the stored progress of forward pipelines. [store.Store] implements it.
type Store interface {
	// Checkpoint returns a pipeline's checkpoint; found is false if none is stored.
	Checkpoint(ctx context.Context, pipeline string) (c relay.Checkpoint, found bool, err error)
	// Offset returns the id after which a pipeline starts if it has no checkpoint.
	// found is false if there is none or if the role may not read it.
	Offset(ctx context.Context, pipeline string) (id int64, found bool, err error)
	// DeadRows returns the ids of the rows of a pipeline's dead letters, and whether
	// each is dead, rather than parked or waiting for a redrive.
	DeadRows(ctx context.Context, pipeline string) (ids []int64, dead []bool, err error)
	identity.Store
}

// stored returns the store of a group in the relay's own tables.
func stored(group string) func(q pg.Querier) Store {
	return func(q pg.Querier) Store { return store.New(q, group) }
}
