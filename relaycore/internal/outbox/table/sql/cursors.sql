-- How far the pipelines of all groups are in table $1, and which table each has read.
-- last_id never falls. Where the table's ids have restarted, the checkpoint tells: one
-- of an earlier table, or of an earlier run of ids, has nothing of this one.
SELECT c.pipeline, c.relay_group_id,
	CASE
		WHEN s.safe IS NULL THEN c.last_id
		WHEN s.table <> t.oid THEN 0
		WHEN s.file <> t.file AND s.sequence <> 0
			AND NOT EXISTS (SELECT FROM pg_class q WHERE q.relkind = 'S' AND q.relfilenode = s.sequence) THEN 0
		ELSE least(c.last_id, greatest(s.safe, 0))
	END,
	coalesce(c.source, ''), c.epoch > 0
FROM pgtrickle.relay_cursors c
CROSS JOIN LATERAL (SELECT (c.checkpoint->>'safe')::bigint AS safe, (c.checkpoint->'of'->>'table')::oid AS table,
	coalesce((c.checkpoint->'of'->>'file')::oid, 0) AS file, coalesce((c.checkpoint->'of'->>'sequence')::oid, 0) AS sequence) s
CROSS JOIN (SELECT o.oid, coalesce(pg_relation_filenode(o.oid), 0) AS file FROM (SELECT to_regclass($1)::oid AS oid) o) t
WHERE c.direction = 'forward'
ORDER BY 1, 2
