-- As window_open.sql, for a window of few rows: they are not counted.
SELECT r.*, h.t
FROM (SELECT pg_current_snapshot()::text || ' 0'{last} AS t) h
LEFT JOIN LATERAL (
	SELECT r.*
	FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
	CROSS JOIN LATERAL (
		SELECT {columns} FROM {table}
		WHERE {same} AND {xid} >= arm.lo AND {xid} <= arm.hi AND {xid} < pg_snapshot_xmax(pg_current_snapshot()) AND {id} > $3::bigint
		ORDER BY {xid} LIMIT {few}) r
) r ON true
ORDER BY c0 LIMIT $4::int
