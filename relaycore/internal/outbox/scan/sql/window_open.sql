-- A new window: its snapshot, the number of its rows, and the first $4 rows unless
-- they are too many to sort. $1 and $2 are ranges of xids, $3 an id to start behind.
--
-- Each range of xids is one index scan, whatever the statistics are: the limit keeps
-- the planner from flattening the subquery, and the order asks for the index. A literal
-- list of ranges would be planned again for each snapshot.
WITH size AS MATERIALIZED (
	SELECT count(*) AS n
	FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
	CROSS JOIN LATERAL (
		SELECT 1 FROM {table}
		WHERE {same} AND {xid} >= arm.lo AND {xid} <= arm.hi AND {xid} < pg_snapshot_xmax(pg_current_snapshot()) AND {id} > $3::bigint
		ORDER BY {xid} LIMIT {over}) r
)
SELECT {nulls}, pg_current_snapshot()::text || ' ' || n{last} FROM size
UNION ALL
(
	SELECT r.*, NULL::text
	FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
	CROSS JOIN LATERAL (
		SELECT {columns} FROM {table}
		WHERE {same} AND {xid} >= arm.lo AND {xid} <= arm.hi AND {xid} < pg_snapshot_xmax(pg_current_snapshot()) AND {id} > $3::bigint
		ORDER BY {xid} LIMIT {over}) r
	WHERE (SELECT n FROM size) BETWEEN 1 AND {small}
	ORDER BY c0 LIMIT $4::int
)
