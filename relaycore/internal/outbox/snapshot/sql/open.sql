-- The state of pipeline $2 of group $1.
SELECT id, outbox_table, sequence_file, emitted_id, compared_id, removed_id, full_refresh, columns
FROM pgtrickle.relay_snapshots
WHERE relay_group_id = $1 AND pipeline = $2
