-- The extension's outboxes that are called $1.$2, or whose stream table is.
-- stream_table_oid is a number of the extension's own catalog.
SELECT c.outbox_table_name, c.stream_table_name, coalesce(s.sch, ''), c.stream_table_name
FROM pgtrickle.pgt_outbox_config c
LEFT JOIN LATERAL (
	SELECT p.pgt_schema::text AS sch FROM pgtrickle.pgt_stream_tables p WHERE p.pgt_id = c.stream_table_oid::bigint
) s ON true
WHERE ($1 = '' OR $1 = 'pgtrickle') AND c.outbox_table_name = $2
	OR c.stream_table_name = $2 AND ($1 = '' OR s.sch IS NULL OR s.sch = $1)
ORDER BY (c.outbox_table_name = $2) DESC, c.created_at, c.outbox_table_name
