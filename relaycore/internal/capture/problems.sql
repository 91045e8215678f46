SELECT o.outbox_table_name, p.problem, p.cure
FROM pgtrickle.relay_outboxes o, pgtrickle._relay_outbox_problems(o.outbox_table_name) p
WHERE $1::text IN ('', o.outbox_table_name, 'pgtrickle.' || o.outbox_table_name)
ORDER BY 1, 2
