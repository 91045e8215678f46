-- Rows of the table; those behind the position without a dead letter; those with one.
WITH rows AS MATERIALIZED (SELECT {id}::bigint AS id, {pending} AS pending FROM {table}),
dead_letters AS (SELECT * FROM unnest($1::bigint[], $2::boolean[]) AS d (id, dead))
SELECT count(*), count(*) FILTER (WHERE r.pending AND l.id IS NULL), count(*) FILTER (WHERE l.dead), count(*) FILTER (WHERE NOT l.dead)
FROM rows r LEFT JOIN dead_letters l USING (id)
