-- The privileges that a relay needs and the current role lacks.
SELECT p.privilege || ' ON pgtrickle.' || quote_ident(c.relname)
FROM (VALUES
    ('relay_cursors', 'SELECT'), ('relay_cursors', 'INSERT'), ('relay_cursors', 'UPDATE'), ('relay_cursors', 'DELETE'),
    ('relay_dead_letters', 'SELECT'), ('relay_dead_letters', 'INSERT'), ('relay_dead_letters', 'UPDATE'), ('relay_dead_letters', 'DELETE'),
    ('relay_snapshots', 'SELECT'), ('relay_snapshots', 'INSERT'), ('relay_snapshots', 'UPDATE'), ('relay_snapshots', 'DELETE'),
    ('relay_snapshot_rows', 'SELECT'), ('relay_snapshot_rows', 'INSERT'), ('relay_snapshot_rows', 'UPDATE'), ('relay_snapshot_rows', 'DELETE'),
    ('relay_snapshot_changes', 'SELECT'), ('relay_snapshot_changes', 'INSERT'), ('relay_snapshot_changes', 'UPDATE'), ('relay_snapshot_changes', 'DELETE'),
    ('relay_instances', 'SELECT'), ('relay_instances', 'INSERT'), ('relay_instances', 'UPDATE'), ('relay_instances', 'DELETE'),
    ('relay_consumer_offsets', 'SELECT'), ('relay_consumer_offsets', 'INSERT'), ('relay_consumer_offsets', 'UPDATE'),
    ('relay_outbox_config', 'SELECT'), ('relay_inbox_config', 'SELECT'),
    ('pgt_outbox_config', 'SELECT'), ('pgt_inbox_config', 'SELECT')) p(name, privilege)
JOIN pg_catalog.pg_class c ON c.relname = p.name AND c.relnamespace = 'pgtrickle'::regnamespace
WHERE NOT has_table_privilege(c.oid, p.privilege)
