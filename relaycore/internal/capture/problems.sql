SELECT o.outbox_table_name, p.problem, p.cure, coalesce(pgtrickle._relay_stream_oid(o.outbox_table_name)::oid, 0)
FROM pgtrickle.relay_outboxes o, pgtrickle._relay_outbox_problems(o.outbox_table_name) p
WHERE $1::text IN ('', o.outbox_table_name, 'pgtrickle.' || o.outbox_table_name)
ORDER BY 1, 2
