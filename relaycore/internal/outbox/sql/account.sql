-- Rows of the table; those behind the position without a dead letter; those with one.
WITH rows AS MATERIALIZED (SELECT {id}::bigint AS id, {pending} AS pending FROM {table}),
dead_letters AS (
	SELECT outbox_id AS id, bool_or(status = 'dead') AS dead FROM pgtrickle.relay_dead_letters
	WHERE relay_group_id = $1 AND direction = 'forward' AND pipeline = $2 AND outbox_id IS NOT NULL
	GROUP BY outbox_id
)
SELECT count(*), count(*) FILTER (WHERE r.pending AND l.id IS NULL), count(*) FILTER (WHERE l.dead), count(*) FILTER (WHERE NOT l.dead)
FROM rows r LEFT JOIN dead_letters l USING (id)
