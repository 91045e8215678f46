-- The sessions of roles that are no relay, and that hold a pipeline's lock or wait for it.
SELECT direction, pipeline, l.pid, coalesce(r.rolname::text, ''), l.granted
FROM (SELECT @group::text AS relay_group_id, p.* FROM unnest(@directions::text[], @pipelines::text[]) AS p (direction, pipeline)) AS p
JOIN pg_catalog.pg_locks l ON l.locktype = 'advisory' AND l.objsubid = 2 AND l.pid IS NOT NULL
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND l.classid::bigint = hashtext(relay_group_id)::bigint & 4294967295
    AND l.objid::bigint = hashtext(:lock_name)::bigint & 4294967295
CROSS JOIN LATERAL pg_stat_get_activity(l.pid) a
LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
WHERE NOT :is_relay
ORDER BY l.granted
