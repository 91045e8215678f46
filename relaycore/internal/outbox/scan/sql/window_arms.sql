-- The next $5 rows of a small window that is open.
SELECT r.*
FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
CROSS JOIN LATERAL (
	SELECT {columns} FROM {table}
	WHERE {same} AND {xid} >= arm.lo AND {xid} <= arm.hi AND pg_visible_in_snapshot({xid}, $4::pg_snapshot) AND {id} > $3::bigint
	ORDER BY {xid} LIMIT {over}) r
ORDER BY c0 LIMIT $5::int
