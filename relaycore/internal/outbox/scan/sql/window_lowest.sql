-- The lowest id of an open window. Adding zero keeps the planner from walking the index
-- on id for it.
SELECT min(lowest)
FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
CROSS JOIN LATERAL (
	SELECT min({id} + 0::bigint) AS lowest FROM {table} WHERE {xid} >= arm.lo AND {xid} <= arm.hi) r
