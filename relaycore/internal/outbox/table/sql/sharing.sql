-- The other outboxes of the extension that keep their deltas in the table of stream
-- table $1, whose outbox is $2.
SELECT quote_ident('pgtrickle') || '.' || quote_ident(c.outbox_table_name)
FROM pgtrickle.pgt_outbox_config c JOIN pgtrickle.pgt_stream_tables s ON s.pgt_id = c.stream_table_oid::bigint
WHERE c.outbox_table_name <> $2 AND ('outbox_delta_rows_' || c.stream_table_name)::name = ('outbox_delta_rows_' || $1::text)::name
