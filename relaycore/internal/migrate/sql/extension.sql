-- The pg_trickle extension, whether its catalog of outboxes lacks our columns, and whether
-- the current role may name objects of the schema. It reads tables that every role may read.
SELECT coalesce((SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'pg_trickle'), ''),
    EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.relname = 'pgt_outbox_config' AND c.relnamespace = n.oid AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'outbox_table_name' AND NOT a.attisdropped)),
    coalesce(has_schema_privilege(n.oid, 'USAGE'), true)
FROM (VALUES (1)) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgtrickle'
