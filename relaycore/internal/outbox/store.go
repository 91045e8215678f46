package outbox

import (
	"context"
	"encoding/json"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Store reads the stored progress of forward pipelines. [store.Store] implements it.
type Store interface {
	// Checkpoint returns a pipeline's checkpoint; found is false if none is stored.
	Checkpoint(ctx context.Context, pipeline string) (c relay.Checkpoint, found bool, err error)
	// Offset returns the id behind which a pipeline starts if it has no checkpoint.
	// found is false if there is none or if the role may not read it.
	Offset(ctx context.Context, pipeline string) (id int64, found bool, err error)
	// DeadRows returns the ids of the rows of a pipeline's dead letters, and whether
	// each is dead, rather than parked or waiting for a redrive.
	DeadRows(ctx context.Context, pipeline string) (ids []int64, dead []bool, err error)
	// OutboxIdentity returns the identity of an outbox; its name is "" if there is none.
	OutboxIdentity(ctx context.Context, outbox uint32) (store.OutboxIdentity, error)
	// IdentifyOutbox gives an outbox its first identity, or another in place of instead.
	// Rows up to highest keep the old form of ids if an older relay has read the outbox.
	// It returns what the outbox has then, which is none while an older relay runs.
	IdentifyOutbox(ctx context.Context, outbox uint32, instead string, origin json.RawMessage, highest int64) (store.OutboxIdentity, error)
}

// stored returns the store of a group in the relay's own tables.
func stored(group string) func(q pg.Querier) Store {
	return func(q pg.Querier) Store { return store.New(q, group) }
}
