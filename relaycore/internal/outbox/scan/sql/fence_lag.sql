-- Rows with ids in the ranges from $1 to $2.
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(r.created)), 0)::float8, max(r.id)
FROM unnest($1::bigint[], $2::bigint[]) AS gap(lo, hi)
CROSS JOIN LATERAL (
	SELECT {created} AS created, {id}::bigint AS id
	FROM {table}
	WHERE {id} >= gap.lo AND {id} <= gap.hi
	ORDER BY {id} LIMIT $3
) r
