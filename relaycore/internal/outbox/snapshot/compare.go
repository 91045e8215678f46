package snapshot

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/lock.sql
	lockSQL string
	//go:embed sql/settings.sql
	settingsSQL string
	//go:embed sql/inline.sql
	inlineSQL string
	//go:embed sql/claim.sql
	claimSQL string
	//go:embed sql/internal.sql
	internalSQL string
	//go:embed sql/compare.sql
	compareSQL string
	//go:embed sql/emptied.sql
	emptiedSQL string
	//go:embed sql/readable.sql
	readableSQL string
	//go:embed sql/unknown.sql
	unknownSQL string
)

// nothing is a query of no rows.
const nothing = `SELECT NULL::jsonb FROM (SELECT $2::bigint) n WHERE false`

// Beginner begins transactions: a connection or a pool.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Seed makes the newest snapshot the state, if Open chose that one.
func (s *State) Seed(ctx context.Context, db Beginner) error {
	if s.compared >= s.emitted {
		return nil
	}
	var claim bool
	sql := `SELECT coalesce(bool_or(is_claim_check), false) FROM ` + s.table.Qualified() + ` WHERE ` + s.table.ID() + ` = $1::bigint`
	return s.transact(ctx, db, s.emitted, func(tx pgx.Tx, _ bool) error {
		if err := tx.QueryRow(ctx, sql, s.emitted).Scan(&claim); err != nil {
			return err
		}
		return s.compare(ctx, tx, step{id: s.emitted, claim: claim, seed: true})
	})
}

// Compare compares the snapshot of outbox row id with the state, unless that was done
// before. Claim is whether its rows are in the delta table. It returns an error if the
// state or the epoch is another one now.
func (s *State) Compare(ctx context.Context, db Beginner, id int64, claim bool) error {
	if id <= s.compared {
		return nil
	}
	return s.transact(ctx, db, id, func(tx pgx.Tx, full bool) error {
		return s.compare(ctx, tx, step{id: id, claim: claim, full: full})
	})
}

// step is one comparison.
type step struct {
	id    int64
	claim bool
	full  bool // send all rows
	seed  bool // store no changes
}

// transact calls do with the state locked, unless row id is compared by then. The lock is
// a statement of its own, because the comparison must see what the last one committed.
func (s *State) transact(ctx context.Context, db Beginner, id int64, do func(tx pgx.Tx, full bool) error) error {
	tx, err := db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("compare the snapshot of row %d: %w", id, err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // after Commit it does nothing
	var full bool
	var compared int64
	_, err = tx.Exec(ctx, settingsSQL)
	if err == nil {
		err = tx.QueryRow(ctx, lockSQL, s.id).Scan(&compared, &full)
	}
	if err == nil {
		var current bool
		current, err = store.New(tx, s.owner.Group).Current(ctx, store.Key{Direction: relay.Forward, Name: s.owner.Pipeline}, s.owner.Epoch)
		if err == nil && !current {
			err = ErrGone
		}
	}
	if err == nil && compared < id {
		err = do(tx, full)
		compared = id
	}
	if err == nil {
		err = tx.Commit(ctx)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrGone
	}
	if err != nil {
		return fmt.Errorf("compare the snapshot of row %d: %w", id, err)
	}
	s.compared = compared
	return nil
}

func (s *State) compare(ctx context.Context, tx pgx.Tx, p step) error {
	rows := inlineSQL
	if p.claim {
		rows = nothing
		if usable, err := s.usable(ctx, tx, p.id); err != nil {
			return err
		} else if usable {
			rows = claimSQL
		}
	}
	known, err := s.run(ctx, tx, p, rows, false)
	if err != nil || known {
		return err
	}
	emptied, err := s.emptied(ctx, tx, p.id)
	if err != nil {
		return err
	}
	if emptied {
		_, err = s.run(ctx, tx, p, nothing, true)
		return err
	}
	s.opts.Logger.Warn("snapshot is unknown", "table", s.table.Qualified(), "outbox_id", p.id,
		"cause", "its rows were consumed by another reader, or the refresh failed to write them", "effect", "the next snapshot is sent whole")
	_, err = tx.Exec(ctx, unknownSQL, s.id, p.id)
	return err
}

// run compares with the snapshot that a query returns. It does nothing and returns false
// if there are no rows, unless they are known to be all.
func (s *State) run(ctx context.Context, tx pgx.Tx, p step, rows string, all bool) (known bool, err error) {
	internal := []string{}
	if !s.opts.Internal {
		if err := tx.QueryRow(ctx, s.fill(internalSQL, s.fill(rows, "")), s.id, p.id).Scan(&internal); err != nil {
			return false, err
		}
	}
	var changes int64
	err = tx.QueryRow(ctx, s.fill(compareSQL, s.fill(rows, "")), s.id, p.id, all, p.full, p.seed, internal, s.opts.Columns).Scan(&changes)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err == nil {
		s.opts.Logger.Debug("snapshot compared", "table", s.table.Qualified(), "outbox_id", p.id, "changes", changes, "whole", p.full)
	}
	return err == nil, err
}

// usable reports whether the delta table has the rows of claim check id and of no other
// outbox's. Stream tables of one name share that table, and their ids can be equal.
func (s *State) usable(ctx context.Context, q pg.Querier, id int64) (bool, error) {
	if s.table.Delta.Name == "" {
		return false, nil
	}
	sharing, err := table.Sharing(ctx, q, s.table)
	if err != nil {
		return false, err
	}
	for _, other := range sharing {
		var both bool
		if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+other+` WHERE id = $1 AND is_claim_check)`, id).Scan(&both); err != nil {
			return false, err
		}
		if both {
			return false, nil
		}
	}
	return true, nil
}

// emptied reports whether a claim check without rows stands for an empty stream table.
func (s *State) emptied(ctx context.Context, q pg.Querier, id int64) (bool, error) {
	empty := "false"
	if stream := s.table.Stream(); stream != "" {
		var readable bool
		err := q.QueryRow(ctx, readableSQL, stream).Scan(&readable)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return false, err
		}
		if readable {
			empty = `NOT EXISTS (SELECT FROM ` + stream + `)`
		}
	}
	var emptied bool
	err := q.QueryRow(ctx, strings.ReplaceAll(s.fill(emptiedSQL, ""), "{empty}", empty), id, s.table.Name).Scan(&emptied)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil // retention deleted the row
	}
	return emptied, err
}
