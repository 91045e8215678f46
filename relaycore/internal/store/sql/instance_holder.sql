SELECT l.pid, a.usesysid, :is_relay AS relay FROM pg_catalog.pg_locks l, pg_stat_get_activity(l.pid) a
WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid IS NOT NULL
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND ((l.classid::bigint << 32) | l.objid::bigint) = i.lock_key
