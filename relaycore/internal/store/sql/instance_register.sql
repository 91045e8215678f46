INSERT INTO pgtrickle.relay_instances
    (instance_id, relay_group_id, binary_name, version, backends, hostname, pid, lock_key, draining, started_at, id_form)
VALUES (@id, @group, @binary, @version, @backends, @hostname, @pid, @lock_key, @draining, @started, @id_form)
ON CONFLICT (instance_id) DO UPDATE SET
    relay_group_id = excluded.relay_group_id, binary_name = excluded.binary_name, version = excluded.version,
    backends = excluded.backends, hostname = excluded.hostname, pid = excluded.pid,
    lock_key = excluded.lock_key, draining = excluded.draining, started_at = excluded.started_at,
    id_form = excluded.id_form
