package table

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

// SweptSQL selects the outboxes whose old rows the relay deletes: those that it made,
// unless their retention_hours is 0.
//
//go:embed sql/swept.sql
var SweptSQL string

// Swept reports whether the relay deletes old rows of t.
func Swept(ctx context.Context, q pg.Querier, t *Table) (bool, error) {
	var swept bool
	err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM (`+SweptSQL+`) s WHERE s.oid = $1::oid)`, t.OID).Scan(&swept)
	if pg.IsMissing(err) || pg.IsDenied(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up the retention of %s: %w", t.Qualified(), err)
	}
	return swept, nil
}
