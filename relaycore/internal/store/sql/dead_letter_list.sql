SELECT id, relay_group_id, direction, pipeline, message_id, key, coalesce(subject, ''), coalesce(op, ''), status, class,
    error, attempts, size, body, headers, created_at
FROM pgtrickle.relay_dlq_list(:filter)
