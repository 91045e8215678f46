-- As window_few.sql, for one range of xids. Without the join of ranges an empty read costs
-- PostgreSQL about a seventh less.
SELECT r.*, h.t
FROM (SELECT pg_current_snapshot()::text || ' 0'{last} AS t) h
LEFT JOIN LATERAL (
	SELECT {columns} FROM {table}
	WHERE {same} AND {xid} >= $1::xid8 AND {xid} <= $2::xid8 AND {xid} < pg_snapshot_xmax(pg_current_snapshot()) AND {id} > $3::bigint
	ORDER BY {xid} LIMIT {few}
) r ON true
ORDER BY c0 LIMIT $4::int
