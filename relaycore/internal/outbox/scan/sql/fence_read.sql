-- The first $3 rows with ids in the ranges from $1 to $2: one index scan a range, in the
-- order of the ranges.
SELECT r.*
FROM unnest($1::bigint[], $2::bigint[]) AS gap(lo, hi)
CROSS JOIN LATERAL (
	SELECT {columns} FROM {table} WHERE {same} AND {id} >= gap.lo AND {id} <= gap.hi ORDER BY {id} LIMIT $3::int) r
LIMIT $3::int
