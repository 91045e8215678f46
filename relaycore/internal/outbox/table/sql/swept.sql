SELECT c.outbox_table_name, c.retention_hours, r.oid
FROM pgtrickle.pgt_outbox_config c
JOIN pg_class r ON r.oid = to_regclass(format('pgtrickle.%I', c.outbox_table_name))
WHERE obj_description(r.oid, 'pg_class') LIKE 'pgtrickle-relay:%' AND c.retention_hours > 0
