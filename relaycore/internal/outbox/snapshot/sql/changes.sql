-- The next $4 changes of outbox row $2, behind n = $3.
SELECT n, op, row, before, row_id, occurrence, full_refresh
FROM pgtrickle.relay_snapshot_changes
WHERE snapshot_id = $1::bigint AND outbox_id = $2::bigint AND n > $3::bigint
ORDER BY n LIMIT $4::int
