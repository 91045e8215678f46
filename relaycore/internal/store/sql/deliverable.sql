-- For each key, the rows before its first one with status dead. A key whose first row is
-- dead has none. Rows without a key stand alone.
WITH mine AS (
    SELECT *, min(id) FILTER (WHERE status = 'dead')
        OVER (PARTITION BY CASE WHEN key = '' THEN id::text ELSE 'k' || key END) AS blocked_at
    FROM pgtrickle.relay_dead_letters
    WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline
)
SELECT id, message_id, key, coalesce(subject, ''), coalesce(op, ''), body, before, coalesce(content_type, ''), headers,
    coalesce(stream_table, ''), coalesce(outbox_id, 0), coalesce(refresh_id, ''), full_refresh, coalesce(origin, ''),
    message_time, class, attempts, by_reference
FROM mine
WHERE id < coalesce(blocked_at, 9223372036854775807)
ORDER BY id
LIMIT @limit
