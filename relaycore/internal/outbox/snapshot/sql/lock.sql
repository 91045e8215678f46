-- Locks the state $1 until the transaction ends, if the pipeline's epoch is still $2.
SELECT s.compared_id, s.full_refresh
FROM pgtrickle.relay_snapshots s
WHERE s.id = $1 AND EXISTS (
	SELECT FROM pgtrickle.relay_cursors c
	WHERE c.relay_group_id = s.relay_group_id AND c.direction = 'forward' AND c.pipeline = s.pipeline AND c.epoch = $2)
FOR UPDATE
