-- The outboxes and inboxes that the current role may not use.
SELECT 'SELECT ON pgtrickle.' || quote_ident(c.relname) FROM pgtrickle.pgt_outbox_config o
JOIN pg_catalog.pg_class c ON c.relname = o.outbox_table_name AND c.relnamespace = 'pgtrickle'::regnamespace
WHERE NOT has_table_privilege(c.oid, 'SELECT')
UNION ALL
SELECT 'INSERT ON ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pgtrickle.pgt_inbox_config i
JOIN pg_catalog.pg_namespace n ON n.nspname = i.inbox_schema
JOIN pg_catalog.pg_class c ON c.relname = i.inbox_name AND c.relnamespace = n.oid
WHERE NOT has_table_privilege(c.oid, 'INSERT')
