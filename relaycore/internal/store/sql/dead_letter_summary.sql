SELECT pipeline, direction, status, class, error, count(*), min(created_at), max(created_at)
FROM pgtrickle.relay_dlq_list(:filter)
GROUP BY pipeline, direction, status, class, error
ORDER BY pipeline, direction, count(*) DESC, status, class, error
LIMIT nullif(@limit::bigint, 0)
