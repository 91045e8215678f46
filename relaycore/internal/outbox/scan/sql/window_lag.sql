-- Rows behind a position of the windows; $4: only ids above $3, and what $5 does not see.
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(r.created)), 0)::float8, max(r.id)
FROM unnest($1::xid8[], $2::xid8[]) AS arm(lo, hi)
CROSS JOIN LATERAL (
	SELECT {created} AS created, {id}::bigint AS id
	FROM {table}
	WHERE {xid} >= arm.lo AND {xid} <= arm.hi
		AND (NOT $4 OR {id} > $3::bigint OR NOT pg_visible_in_snapshot({xid}, $5::pg_snapshot))
	ORDER BY {xid} LIMIT $6
) r
