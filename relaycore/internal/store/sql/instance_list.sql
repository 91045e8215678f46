SELECT instance_id, relay_group_id, coalesce(binary_name, ''), coalesce(version, ''), backends, coalesce(hostname, ''),
    coalesce(pid, 0), lock_key, coalesce(draining, false), coalesce(started_at, 'epoch')
FROM pgtrickle.relay_instances i
WHERE relay_group_id = $1 AND EXISTS (:alive)
