-- Transactions that hold a writer's lock, whether they are prepared, and since when they
-- have been idle.
SELECT l.virtualtransaction, l.pid IS NULL,
	CASE WHEN a.state LIKE 'idle in transaction%' THEN a.pid || ' ' || a.state_change::text END
FROM pg_locks l LEFT JOIN pg_stat_get_activity(NULL) a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
	AND l.relation = ANY ({relations}) AND l.mode = 'RowExclusiveLock' AND l.granted
