package migrate

import (
	"context"
	_ "embed"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/owner.sql
var ownerSQL string

// become continues the transaction as the role that owns the catalog, which it creates
// if needed. Nothing of schema pgtrickle runs before that. refused is the reason why a
// relay's own role may change nothing.
func become(ctx context.Context, tx pgx.Tx, owner string) (handedOver []string, refused error, err error) {
	if _, err := tx.Exec(ctx, `SELECT pg_catalog.set_config('pgtrickle_relay.owner', $1, true)`, owner); err != nil {
		return nil, nil, err
	}
	if _, err := tx.Conn().PgConn().Exec(ctx, settings+ownerSQL).ReadAll(); err != nil {
		return nil, nil, err
	}
	var statements, reason string
	if err := tx.QueryRow(ctx, `SELECT current_setting('pgtrickle_relay.handed_over'), current_setting('pgtrickle_relay.refused')`).
		Scan(&statements, &reason); err != nil {
		return nil, nil, err
	}
	if reason != "" {
		refused = errors.New(reason)
	}
	return strings.FieldsFunc(statements, func(r rune) bool { return r == '\n' }), refused, nil
}
