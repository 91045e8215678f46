SELECT pg_advisory_unlock(hashtext(relay_group_id), hashtext(:lock_name))
FROM (VALUES (@group::text, @direction::text, @pipeline::text)) AS p (relay_group_id, direction, pipeline)
