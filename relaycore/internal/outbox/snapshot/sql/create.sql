-- The state of a pipeline that has none: nothing is compared yet.
INSERT INTO pgtrickle.relay_snapshots
	(relay_group_id, pipeline, outbox_table, sequence_file, emitted_id, compared_id, removed_id, full_refresh, columns)
VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8)
RETURNING id
