-- How many instances run that do not know identities, and the oldest of them.
SELECT count(*) OVER (), format('%s %s of group %s, process %s on %s',
    coalesce(binary_name, instance_id), version, relay_group_id, pid, hostname)
FROM pgtrickle.relay_instances i
WHERE i.id_form = 0 AND EXISTS (:holder)
ORDER BY started_at
LIMIT 1
