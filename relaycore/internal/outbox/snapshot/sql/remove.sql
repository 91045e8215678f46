-- Removes the changes up to outbox row $2: they are delivered.
WITH removed AS (DELETE FROM pgtrickle.relay_snapshot_changes WHERE snapshot_id = $1 AND outbox_id <= $2)
UPDATE pgtrickle.relay_snapshots SET removed_id = $2 WHERE id = $1 AND removed_id < $2
