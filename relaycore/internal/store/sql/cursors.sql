-- The cursors of a group, each with whether a session holds the pipeline's lock.
SELECT direction, pipeline, epoch, coalesce(owner, ''), last_id, delivered, skipped, unexpected, filtered, dead_lettered, expired,
    coalesce((SELECT sum((f.value ->> 'missed')::bigint)::bigint FROM jsonb_each(far_ends) f), 0),
    coalesce((SELECT sum((f.value ->> 'remade')::bigint)::bigint FROM jsonb_each(far_ends) f), 0),
    status, coalesce(error, ''), updated_at, coalesce(checkpoint ->> 'backfill', ''),
    EXISTS (
        SELECT FROM pg_catalog.pg_locks l
        WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
            AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
            AND l.classid::bigint = hashtext(relay_group_id)::bigint & 4294967295
            AND l.objid::bigint = hashtext(:lock_name)::bigint & 4294967295)
FROM pgtrickle.relay_cursors
WHERE relay_group_id = $1
