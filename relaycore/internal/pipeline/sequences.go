package pipeline

import (
	"context"

	"github.com/jackc/pgx/v5"
)

// Sequences returns the last values of sequences: nil for one that has handed out no
// id. It leaves out sequences that are gone or that the role may not read.
func (r *Runner) Sequences(ctx context.Context, oids []uint32) (map[uint32]*int64, error) {
	rows, err := r.Pool.Query(ctx, `
		SELECT s.seqrelid, pg_sequence_last_value(s.seqrelid) FROM pg_catalog.pg_sequence s
		WHERE s.seqrelid = ANY($1) AND has_sequence_privilege(s.seqrelid, 'SELECT')`, oids)
	if err != nil {
		return nil, err
	}
	values := make(map[uint32]*int64, len(oids))
	var oid uint32
	var value *int64
	_, err = pgx.ForEachRow(rows, []any{&oid, &value}, func() error {
		if value != nil {
			last := *value
			values[oid] = &last
		} else {
			values[oid] = nil
		}
		return nil
	})
	return values, err
}
