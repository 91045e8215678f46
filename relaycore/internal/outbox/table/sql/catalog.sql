-- Which catalog of outboxes this role can read.
SELECT
	coalesce(has_table_privilege(to_regclass('pgtrickle.pgt_outbox_config'), 'SELECT'), false),
	coalesce(has_table_privilege(to_regclass('pgtrickle.pgt_stream_tables'), 'SELECT'), false),
	to_regclass('pgtrickle.pgt_stream_tables') IS NOT NULL,
	coalesce(has_table_privilege(to_regclass('pgtrickle.relay_outboxes'), 'SELECT')
		AND has_function_privilege(to_regprocedure('pgtrickle._relay_stream_oid(text)'), 'EXECUTE'), false)
