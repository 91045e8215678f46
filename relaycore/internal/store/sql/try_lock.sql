-- Takes the pipeline's lock if it is free.
SELECT pg_try_advisory_lock(hashtext(relay_group_id), hashtext(:lock_name))
FROM (VALUES (@group::text, @direction::text, @pipeline::text)) AS p (relay_group_id, direction, pipeline)
