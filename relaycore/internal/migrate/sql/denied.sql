-- The outboxes and inboxes that the current role may not use.
SELECT 'SELECT ON pgtrickle.' || quote_ident(c.relname) FROM pgtrickle.pgt_outbox_config o
JOIN pg_catalog.pg_class c ON c.relname = o.outbox_table_name AND c.relnamespace = 'pgtrickle'::regnamespace
WHERE NOT has_table_privilege(c.oid, 'SELECT')
UNION ALL
SELECT 'INSERT ON ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pgtrickle.pgt_inbox_config i
JOIN pg_catalog.pg_namespace n ON n.nspname = i.inbox_schema
JOIN pg_catalog.pg_class c ON c.relname = i.inbox_name AND c.relnamespace = n.oid
WHERE NOT has_table_privilege(c.oid, 'INSERT')
UNION ALL
-- The extension's claim checks are given up with the caller's rights.
SELECT 'SELECT ON pgtrickle.pgt_stream_tables' WHERE NOT has_table_privilege(to_regclass('pgtrickle.pgt_stream_tables'), 'SELECT')
UNION ALL
SELECT 'DELETE ON pgtrickle.' || quote_ident(c.relname) FROM pg_catalog.pg_class c
WHERE c.relnamespace = 'pgtrickle'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname LIKE 'outbox\_delta\_rows\_%'
    AND to_regclass('pgtrickle.pgt_stream_tables') IS NOT NULL AND NOT has_table_privilege(c.oid, 'DELETE')
