-- Whether claim check $1, which has no rows, stands for an empty stream table: its counts
-- show it; or nothing was consumed since it was written, and the stream table is empty.
SELECT o.inserted_count = 0 AND o.deleted_count > 0
	OR {empty} AND o.created_at > coalesce((
		SELECT c.last_drained_at FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = $2), '-infinity')
FROM {table} o WHERE o.{id} = $1::bigint
