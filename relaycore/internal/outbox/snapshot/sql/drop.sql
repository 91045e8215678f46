-- Drops state $1 and everything that belongs to it.
WITH changes AS (DELETE FROM pgtrickle.relay_snapshot_changes WHERE snapshot_id = $1),
rows AS (DELETE FROM pgtrickle.relay_snapshot_rows WHERE snapshot_id = $1)
DELETE FROM pgtrickle.relay_snapshots WHERE id = $1
