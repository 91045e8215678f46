package outbox

import (
	"context"
	"fmt"
	"math"
)

// lagPoint is a position for others than Receive to look at.
type lagPoint struct {
	mode string
	pos  mark
}

// maxCounted is the number of rows up to which a lag is counted exactly.
const maxCounted = 10000

// Lag implements [relay.Lagger]. Beyond 10,000 rows it counts ids.
func (s *Source) Lag(ctx context.Context) (rows int64, seconds float64, err error) {
	t, p := s.shape.Load(), s.lag.Load()
	created := "NULL::timestamptz"
	if t.created != "" {
		created = quote(t.created) + "::timestamptz"
	}
	var behind *int64
	const result = `SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(r.created)), 0)::float8, max(r.id) `
	if p.mode == modeWindow {
		los, his := arms(&p.pos.lo, math.MaxUint64)
		err = s.pool.QueryRow(ctx, result+`FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi) CROSS JOIN LATERAL (SELECT `+created+` AS created, `+quote(t.id)+`::bigint AS id FROM `+t.qualified()+
			` WHERE `+quote(t.xid)+` >= arm.lo AND `+quote(t.xid)+` <= arm.hi AND (NOT $4 OR `+quote(t.id)+` > $3::bigint OR NOT pg_visible_in_snapshot(`+quote(t.xid)+`, $5::pg_snapshot))`+
			` ORDER BY `+quote(t.xid)+` LIMIT 10001) r`,
			los, his, p.pos.at, p.pos.open || p.pos.at != beginning, snapshotOr(p.pos)).Scan(&rows, &seconds, &behind)
	} else {
		f := fence{pos: p.pos}
		los, his := f.ranges()
		if len(los) == len(p.pos.holes) {
			los, his = append(los, p.pos.last+1), append(his, math.MaxInt64)
		}
		err = s.pool.QueryRow(ctx, result+`FROM unnest($1::bigint[], $2::bigint[]) AS gap(lo, hi) CROSS JOIN LATERAL (SELECT `+created+` AS created, `+quote(t.id)+`::bigint AS id FROM `+t.qualified()+
			` WHERE `+quote(t.id)+` >= gap.lo AND `+quote(t.id)+` <= gap.hi ORDER BY `+quote(t.id)+` LIMIT 10001) r`, los, his).Scan(&rows, &seconds, &behind)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("measure lag of %s: %w", t.qualified(), err)
	}
	if rows > maxCounted && behind != nil {
		var highest int64
		if err := s.pool.QueryRow(ctx, `SELECT coalesce(max(`+quote(t.id)+`), 0)::bigint FROM `+t.qualified()).Scan(&highest); err != nil {
			return 0, 0, fmt.Errorf("measure lag of %s: %w", t.qualified(), err)
		}
		rows += max(highest-*behind, 0)
	}
	return rows, max(seconds, 0), nil
}

// snapshotOr is the open window's end, or a snapshot that sees everything.
func snapshotOr(m mark) string {
	if m.open {
		return m.hi.text
	}
	return "9223372036854775807:9223372036854775807:"
}
