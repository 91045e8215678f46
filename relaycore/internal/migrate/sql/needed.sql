-- The statements that give the current role what it needs beside the extension. Its event
-- triggers read its tables with the rights of the role that runs a command.
SELECT format('GRANT %s ON SCHEMA pgtrickle TO %I', p, current_user) FROM unnest(ARRAY['USAGE', 'CREATE']) p
WHERE NOT has_schema_privilege(to_regnamespace('pgtrickle')::oid, p)
UNION ALL
SELECT format('GRANT %s ON pgtrickle.%I TO %I', string_agg(p, ', '), c.relname, current_user)
FROM (VALUES ('pgt_stream_tables', '{SELECT}'::text[]), ('pgt_dependencies', '{SELECT}'), ('pgt_outbox_config', '{SELECT}'), ('pgt_inbox_config', '{SELECT}'),
    ('relay_outbox_config', '{SELECT,INSERT,UPDATE,DELETE}'), ('relay_inbox_config', '{SELECT,INSERT,UPDATE,DELETE}')) n(name, privileges)
JOIN pg_catalog.pg_class c ON c.relname = n.name AND c.relnamespace = (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'pgtrickle')
CROSS JOIN LATERAL unnest(n.privileges) p
WHERE NOT has_table_privilege(c.oid, p)
GROUP BY c.relname
