package table

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

//go:embed sql/swept.sql
var sweptSQL string

// SweptSQL returns the query for the outboxes whose old rows the relay deletes: those that
// it made, unless their retention_hours is 0.
func SweptSQL(ctx context.Context, q pg.Querier) (string, error) {
	var renamed bool
	if err := q.QueryRow(ctx, `SELECT to_regclass('pgtrickle.`+pg.OutboxRegistry+`') IS NOT NULL`).Scan(&renamed); err != nil || !renamed {
		return sweptSQL, err
	}
	return strings.ReplaceAll(sweptSQL, "pgt_outbox_config", pg.OutboxRegistry), nil
}

// Swept reports whether the relay deletes old rows of t.
func Swept(ctx context.Context, q pg.Querier, t *Table) (bool, error) {
	var swept bool
	sql, err := SweptSQL(ctx, q)
	if err == nil {
		err = q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM (`+sql+`) s WHERE s.oid = $1::oid)`, t.OID).Scan(&swept)
	}
	if pg.IsMissing(err) || pg.IsDenied(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up the retention of %s: %w", t.Qualified(), err)
	}
	return swept, nil
}
