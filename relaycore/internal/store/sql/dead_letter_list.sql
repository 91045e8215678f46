WITH listed AS (
    SELECT id, relay_group_id, direction, pipeline, message_id, key, coalesce(subject, '') AS subject, coalesce(op, '') AS op, status, class,
        error, attempts, size, CASE WHEN @ids::bigint[] IS NOT NULL THEN body END AS body, headers, created_at
    FROM pgtrickle.relay_dlq_list(:filter)
    LIMIT nullif(@limit::bigint, 0)
)
SELECT listed.*, coalesce(original, '')
FROM listed LEFT JOIN pgtrickle.relay_dlq_original(ARRAY(SELECT id FROM listed)) USING (id)
ORDER BY id
