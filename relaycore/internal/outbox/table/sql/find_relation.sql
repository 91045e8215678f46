-- As find_extension.sql, for a role that may not read the extension's catalog: the
-- schema of a stream table is found by the oid of the relation.
SELECT c.outbox_table_name, c.stream_table_name, coalesce(s.sch, ''), c.stream_table_name
FROM pgtrickle.pgt_outbox_config c
LEFT JOIN LATERAL (
	SELECT n.nspname::text AS sch FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace
	WHERE r.oid = c.stream_table_oid AND r.relname = c.stream_table_name
) s ON true
WHERE ($1 = '' OR $1 = 'pgtrickle') AND c.outbox_table_name = $2
	OR c.stream_table_name = $2 AND ($1 = '' OR s.sch IS NULL OR s.sch = $1)
ORDER BY (c.outbox_table_name = $2) DESC, c.created_at, c.outbox_table_name
