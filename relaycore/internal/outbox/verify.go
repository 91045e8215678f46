package outbox

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/progress"
	"github.com/grove/pgtrickle-relay/relaycore/internal/outbox/table"
)

//go:embed sql/account.sql
var accountSQL string

// Accounting counts the rows of an outbox table by what has become of them:
//
//	Committed = Delivered + Dead + Parked + Pending + Unaccounted
//
// A row of several messages counts as dead or parked when one of them is.
type Accounting struct {
	Table     string `json:"table"`
	Strategy  string `json:"strategy"`
	Committed int64  `json:"committed"`
	Delivered int64  `json:"delivered"`
	Dead      int64  `json:"dead"`
	// Filtered counts messages that the pipeline's filter has dropped since it was made.
	// Their rows are in Delivered.
	Filtered int64 `json:"filtered"`
	// Skipped counts messages that the far end had already, and not after a crash or a
	// retry: most likely they are lost. Their rows are in Delivered.
	Skipped int64 `json:"skipped"`
	// Expired counts dead letters that were deleted for their age since the pipeline was
	// made. Their rows are in Delivered.
	Expired     int64 `json:"expired"`
	Parked      int64 `json:"parked"` // or waiting to be delivered again
	Pending     int64 `json:"pending"`
	Unaccounted int64 `json:"unaccounted"` // must be zero
	// Overtaken counts ids that were gone before they could be delivered, deleted or
	// rolled back.
	Overtaken int64 `json:"overtaken"`
	LastID    int64 `json:"last_id"` // everything up to it is settled
}

// Verify accounts for every row of the pipeline's outbox in one snapshot, by the stored
// checkpoint. It reads the whole index of the table.
func Verify(ctx context.Context, pool *pgxpool.Pool, cfg Config) (Accounting, error) {
	cfg.defaults()
	var acc Accounting
	err := pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) (err error) {
		acc, err = verify(ctx, tx, &cfg)
		return err
	})
	if err != nil {
		return acc, fmt.Errorf("verify pipeline %q: %w", cfg.Pipeline, err)
	}
	return acc, nil
}

func verify(ctx context.Context, tx pgx.Tx, cfg *Config) (Accounting, error) {
	t, err := table.Resolve(ctx, tx, cfg.Outbox, cfg.Settings)
	if err != nil {
		return Accounting{}, err
	}
	acc := Accounting{Table: t.String()}
	c, _, err := cfg.Store(tx).Checkpoint(ctx, cfg.Pipeline)
	if err != nil {
		return acc, err
	}
	cp, err := progress.Parse(c)
	if err != nil {
		return acc, err
	}

	pending := "true"
	if cp != nil {
		position, err := cp.Position()
		if err != nil {
			return acc, err
		}
		if pending, err = position.Pending(t); err != nil {
			return acc, err
		}
		acc.Strategy, acc.LastID, acc.Overtaken = cp.Mode, max(cp.Safe, 0), cp.Expired
		if acc.Unaccounted, err = cp.Unaccounted(ctx, tx, t); err != nil {
			return acc, err
		}
	}
	ids, dead, err := cfg.Store(tx).DeadRows(ctx, cfg.Pipeline)
	if err != nil {
		return acc, err
	}
	sql := strings.NewReplacer("{id}", t.ID(), "{table}", t.Qualified(), "{pending}", pending).Replace(accountSQL)
	err = tx.QueryRow(ctx, sql, ids, dead).Scan(&acc.Committed, &acc.Pending, &acc.Dead, &acc.Parked)
	if err != nil {
		return acc, fmt.Errorf("count rows of %s: %w", t.Qualified(), err)
	}
	acc.Delivered = acc.Committed - acc.Pending - acc.Dead - acc.Parked - acc.Unaccounted
	return acc, nil
}
