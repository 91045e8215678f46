SELECT id, relay_group_id, direction, pipeline, message_id, key, coalesce(subject, ''), coalesce(op, ''), status, class,
    error, attempts, size, CASE WHEN @ids::bigint[] IS NOT NULL THEN body END, headers, created_at
FROM pgtrickle.relay_dlq_list(:filter)
LIMIT nullif(@limit::bigint, 0)
