-- The number of rows of an open window; $4 is its snapshot.
SELECT count(*)
FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
CROSS JOIN LATERAL (
	SELECT 1 FROM {table}
	WHERE {xid} >= arm.lo AND {xid} <= arm.hi AND pg_visible_in_snapshot({xid}, $4::pg_snapshot) AND {id} > $3::bigint
	ORDER BY {xid} LIMIT {over}) r
