-- Locks the state $1 until the transaction ends.
SELECT compared_id, full_refresh FROM pgtrickle.relay_snapshots WHERE id = $1 FOR UPDATE
