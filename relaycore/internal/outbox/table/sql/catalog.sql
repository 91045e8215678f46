-- Which catalog of outboxes this role can read.
WITH catalog AS (
	SELECT coalesce(to_regclass('pgtrickle.relay_outbox_registry'), (SELECT attrelid FROM pg_attribute
		WHERE attrelid = to_regclass('pgtrickle.pgt_outbox_config') AND attname = 'outbox_table_name')) AS outboxes,
		CASE WHEN to_regclass('pgtrickle.relay_outbox_registry') IS NULL THEN to_regclass('pgtrickle.pgt_stream_tables') END AS streams
)
SELECT
	coalesce((SELECT relname::text FROM pg_class WHERE oid = c.outboxes AND has_table_privilege(oid, 'SELECT')), ''),
	coalesce(has_table_privilege(c.streams, 'SELECT'), false),
	c.streams IS NOT NULL,
	coalesce(has_table_privilege(to_regclass('pgtrickle.relay_outboxes'), 'SELECT')
		AND has_function_privilege(to_regprocedure('pgtrickle._relay_stream_oid(text)'), 'EXECUTE'), false)
FROM catalog c
