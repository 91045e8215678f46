-- The newest transaction id in the table, if this server has not assigned it yet.
SELECT coalesce((
	SELECT m.{xid}::text FROM (SELECT {xid} FROM {table} ORDER BY {xid} DESC LIMIT 1) m
	WHERE m.{xid} >= pg_snapshot_xmax(pg_current_snapshot())), '')
