-- The relay's own outboxes that are called $1.$2, or whose stream table is. A stream
-- table is known by its trigger, because stream_table_oid is stale after a restore. It
-- is found by its present name and by the name it had when its outbox was made. The
-- inner query leaves few outboxes for which the trigger must be looked up. OFFSET 0 keeps
-- the planner from reading the whole of pg_class.
SELECT e.outbox_table_name, e.stream_table_name, coalesce(s.sch, e.stream_schema, ''), coalesce(s.rel, e.stream_table_name)
FROM (
	SELECT c.outbox_table_name, c.stream_table_name, c.created_at, o.stream_schema
	FROM pgtrickle.pgt_outbox_config c LEFT JOIN pgtrickle.relay_outboxes o USING (outbox_table_name)
	WHERE c.outbox_table_name = $2::text OR c.stream_table_name = $2 OR o.capture_function IN (
		SELECT p.proname FROM pg_class r JOIN pg_trigger g ON g.tgrelid = r.oid JOIN pg_proc p ON p.oid = g.tgfoid WHERE r.relname = $2)
) e
LEFT JOIN LATERAL (
	SELECT n.nspname::text AS sch, r.relname::text AS rel
	FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = pgtrickle._relay_stream_oid(e.outbox_table_name)
	OFFSET 0
) s ON true
WHERE ($1::text = '' OR $1 = 'pgtrickle') AND e.outbox_table_name = $2
	OR s.rel = $2 AND ($1 = '' OR s.sch = $1)
	OR e.stream_table_name = $2 AND ($1 = '' OR e.stream_schema IS NULL OR e.stream_schema = $1)
ORDER BY (e.outbox_table_name = $2) DESC, e.created_at, e.outbox_table_name
