// Package identity gives each outbox an identity, which distinguishes the ids of its
// events from those of all other outboxes in the world.
//
// In one database an outbox is known by its oid: a table that is created again under the
// same name is another one. A dump and restore changes oids, and may give the oid of one
// outbox to another. So in a database that is not the one of the identity, the outbox is
// known by its name.
package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/rows"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Store keeps identities. [store.Store] implements it.
type Store interface {
	// OutboxIdentity returns the identity of an outbox; its Name is "" if there is none.
	OutboxIdentity(ctx context.Context, outbox uint32) (store.OutboxIdentity, error)
	// AdoptIdentities gives the identities of other databases to the outboxes that have
	// their names here.
	AdoptIdentities(ctx context.Context, system string, database uint32) error
	// IdentifyOutbox gives an outbox its first identity, or another in place of instead.
	// Rows up to highest keep the old form of ids if an older relay has read the outbox.
	// It returns what the outbox has then, which is none while an older relay runs.
	IdentifyOutbox(ctx context.Context, at store.OutboxPlace, instead string, highest int64) (store.OutboxIdentity, error)
	// MoveIdentity records where the outbox with that identity is now.
	MoveIdentity(ctx context.Context, at store.OutboxPlace, identity string) error
}

// Report is an outbox and the forms of its ids.
type Report struct {
	Table    string `json:"outbox"`
	Identity string `json:"identity"`  // "" = every id has the old form
	LegacyTo int64  `json:"legacy_to"` // highest row with an id of the old form; [math.MinInt64] = none has one
}

// String states which rows have which form of ids.
func (r Report) String() string {
	switch {
	case r.Identity == "":
		return r.Table + ": every row has an id of the old form, by dedup_key_format legacy"
	case r.LegacyTo == math.MinInt64:
		return r.Table + ": every row has an id of the new form"
	}
	return fmt.Sprintf("%s: rows up to id %d keep their ids of the old form", r.Table, r.LegacyTo)
}

// Settle gives the outbox of that name an identity if it has none, as its first reader
// does. It fails while an older relay runs. With dedup_key_format legacy it changes nothing.
func Settle(ctx context.Context, q pg.Querier, s Store, outbox string, set table.Settings) (Report, error) {
	t, err := table.Resolve(ctx, q, outbox, set)
	if err != nil {
		return Report{}, err
	}
	here, err := table.Identify(ctx, q, t)
	if err != nil {
		return Report{}, err
	}
	ids, err := Find(ctx, q, s, set, t, here)
	if err == nil && ids.Outbox == "" && set.DedupKeyFormat != "legacy" {
		err = errors.New("an older relay runs: stop it first")
	}
	return Report{Table: t.String(), Identity: ids.Outbox, LegacyTo: ids.LegacyTo}, err
}

// Find returns how the ids of an outbox's messages are made. The first reader gives the
// outbox an identity. It gets another one when its ids may belong to other rows than
// before. That is so if the table was created again, or its ids have restarted. Where ids
// have no time, the promotion of a standby suffices.
//
// In a restored or cloned database on_restore decides: continue keeps the identity, so
// that events have the ids that they had in the other one. With fork the outbox gets
// another one.
func Find(ctx context.Context, q pg.Querier, s Store, set table.Settings, t *table.Table, here table.Origin) (rows.IDs, error) {
	if set.DedupKeyFormat == "legacy" {
		return rows.IDs{}, nil
	}
	id, change, detail, err := look(ctx, s, t, here)
	if pg.IsMissing(err) {
		return rows.IDs{}, nil // a command looks at a database of an older relay; the daemon needs the table
	}
	if err == nil {
		id, err = decide(ctx, q, s, set.OnRestore, t, here, id, change, detail)
	}
	if pg.IsDenied(err) {
		err = relay.Fatal(fmt.Errorf("%w; run the migrate command, or SELECT pgtrickle.relay_grant_access()", err))
	}
	return rows.IDs{Outbox: id.Name, LegacyTo: id.LegacyTo}, err
}

// look returns the identity of the outbox, and what has happened since it got it.
func look(ctx context.Context, s Store, t *table.Table, here table.Origin) (
	id store.OutboxIdentity, change table.Change, detail string, err error,
) {
	for adopted := false; ; adopted = true {
		if id, err = s.OutboxIdentity(ctx, here.Table); err != nil {
			return id, change, detail, err
		}
		var was table.Origin
		if change = table.Restarted; id.Name != "" && json.Unmarshal(id.Origin, &was) == nil {
			change, detail = here.Since(was, t.Partitioned)
		}
		if adopted || id.Name != "" && change != table.Elsewhere {
			return id, change, detail, nil
		}
		if err := s.AdoptIdentities(ctx, here.System, here.Database); err != nil {
			return id, change, detail, err
		}
	}
}

// decide returns the identity that the outbox has from now on.
func decide(
	ctx context.Context, q pg.Querier, s Store, onRestore string, t *table.Table, here table.Origin,
	id store.OutboxIdentity, change table.Change, detail string,
) (store.OutboxIdentity, error) {
	origin, err := json.Marshal(here)
	if err != nil {
		return id, fmt.Errorf("encode where %s is: %w", t.Qualified(), err)
	}
	at := store.OutboxPlace{OID: here.Table, Name: t.Qualified(), Origin: origin}
	other := change == table.Restarted || change == table.Promoted && !rows.Timed(t)
	if change == table.Elsewhere {
		switch onRestore {
		case "refuse":
			return id, relay.Fatal(fmt.Errorf("outbox %s got its identity in %s: this is a restored or cloned copy; "+
				"set on_restore to continue if the original is gone, else to fork", t.Qualified(), detail))
		case "fork":
			other = true
		default:
			return id, s.MoveIdentity(ctx, at, id.Name)
		}
	}
	if !other {
		if id.Table != at.Name { // it was renamed
			at.Origin = id.Origin
			err = s.MoveIdentity(ctx, at, id.Name)
		}
		return id, err
	}
	highest, err := table.HighestID(ctx, q, t)
	if err != nil {
		return id, err
	}
	return s.IdentifyOutbox(ctx, at, id.Name, highest)
}
