package outbox

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// identify returns how the ids of an outbox's messages are made. The first reader gives
// the outbox an identity. It gets another one when its ids may belong to other rows than
// before. That is so if the table was created again, or its ids have restarted. Where ids
// have no time, the promotion of a standby suffices.
//
// In a restored or cloned database the identity stays, so that what was delivered before
// has the same ids. With on_restore fork it gets another one.
func identify(ctx context.Context, q pg.Querier, cfg *Config, t *table.Table, here table.Origin) (rows.IDs, error) {
	if cfg.Settings.DedupKeyFormat == "legacy" {
		return rows.IDs{}, nil
	}
	s := cfg.Store(q)
	id, err := s.OutboxIdentity(ctx, here.Table)
	if pg.IsMissing(err) {
		return rows.IDs{}, nil // a command looks at a database of an older relay; the daemon needs the table
	}
	if err != nil {
		return rows.IDs{}, err
	}
	if id.Name == "" || replaced(id, here, t, cfg.Settings.OnRestore) {
		if id, err = makeIdentity(ctx, q, s, t, here, id.Name); err != nil {
			return rows.IDs{}, err
		}
	}
	return rows.IDs{Outbox: id.Name, LegacyTo: id.LegacyTo, Pipeline: cfg.Identity}, nil
}

// replaced reports whether an outbox needs another identity than id.
func replaced(id store.OutboxIdentity, here table.Origin, t *table.Table, onRestore string) bool {
	var was table.Origin
	if json.Unmarshal(id.Origin, &was) != nil {
		return true
	}
	switch change, _ := compare(was, here, t.Partitioned); change {
	case restarted:
		return true
	case promoted:
		return !rows.Timed(t)
	case elsewhere:
		return onRestore == "fork"
	case unchanged:
	}
	return false
}

func makeIdentity(
	ctx context.Context, q pg.Querier, s Store, t *table.Table, here table.Origin, instead string,
) (store.OutboxIdentity, error) {
	highest, err := table.HighestID(ctx, q, t)
	if err != nil {
		return store.OutboxIdentity{}, err
	}
	origin, err := json.Marshal(here)
	if err != nil {
		return store.OutboxIdentity{}, fmt.Errorf("encode where %s is: %w", t.Qualified(), err)
	}
	id, err := s.IdentifyOutbox(ctx, here.Table, instead, origin, highest)
	if pg.IsDenied(err) {
		err = relay.Fatal(fmt.Errorf("%w; run the migrate command, or SELECT pgtrickle.relay_grant_access()", err))
	}
	return id, err
}
