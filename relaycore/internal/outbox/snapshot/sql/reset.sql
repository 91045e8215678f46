-- Goes on in another outbox, or from an earlier point, behind id $4. The receiver may lack
-- the changes that are stored, and they are dropped. Their deleted rows come back into
-- the state, so that the next comparison deletes them again.
WITH dropped AS (
	DELETE FROM pgtrickle.relay_snapshot_changes WHERE snapshot_id = $1 RETURNING outbox_id, n, op, row_id, occurrence, row
), revived AS (
	INSERT INTO pgtrickle.relay_snapshot_rows (snapshot_id, row_id, occurrence, hash, row)
	SELECT DISTINCT ON (row_id, occurrence) $1::bigint, row_id, occurrence, ''::bytea, row
	FROM dropped WHERE op = 'delete' ORDER BY row_id, occurrence, outbox_id, n
	ON CONFLICT (snapshot_id, row_id, occurrence) DO NOTHING
)
UPDATE pgtrickle.relay_snapshots SET
	outbox_table = $2, sequence_file = $3, emitted_id = $5, compared_id = $4, removed_id = $4, columns = $7,
	full_refresh = full_refresh OR $6 OR EXISTS (SELECT FROM dropped)
WHERE id = $1
RETURNING full_refresh
