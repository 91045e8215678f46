-- The newest request of each pipeline that was refused, or that no owner has taken up.
SELECT r.pipeline, r.requested_at, r.requested_by, coalesce(r.error, '')
FROM (SELECT DISTINCT ON (pipeline) * FROM pgtrickle.relay_snapshot_requests ORDER BY pipeline, id DESC) r
LEFT JOIN pgtrickle.relay_cursors c ON c.relay_group_id = $1 AND c.direction = 'forward' AND c.pipeline = r.pipeline
WHERE r.error IS NOT NULL
   OR r.finished_at IS NULL AND (c.checkpoint -> 'backfill' ->> 'request')::bigint IS DISTINCT FROM r.id
ORDER BY r.pipeline
