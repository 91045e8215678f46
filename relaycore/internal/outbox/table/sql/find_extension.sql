-- The extension's outboxes that are called $1.$2, or whose stream table is.
-- stream_table_oid is a number of the extension's own catalog. drop_stream_table leaves
-- the registration behind: it is dead, and found by the outbox's name alone.
SELECT c.outbox_table_name, c.stream_table_name, coalesce(s.pgt_schema::text, ''), c.stream_table_name
FROM pgtrickle.pgt_outbox_config c
LEFT JOIN pgtrickle.pgt_stream_tables s ON s.pgt_id = c.stream_table_oid::bigint
WHERE ($1 = '' OR $1 = 'pgtrickle') AND c.outbox_table_name = $2
	OR c.stream_table_name = $2 AND s.pgt_id IS NOT NULL AND ($1 = '' OR s.pgt_schema = $1)
ORDER BY (c.outbox_table_name = $2) DESC, c.created_at, c.outbox_table_name
