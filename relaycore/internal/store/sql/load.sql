-- The state of a pipeline and the server's timeline. One statement, because the
-- next one may reach another server.
SELECT checkpoint, last_id, coalesce(source, ''), coalesce(sink_position, ''), coalesce(far_ends::text, ''),
    status, coalesce(identity, ''), NOT EXISTS (
        SELECT FROM pgtrickle.relay_dead_letters l
        WHERE l.relay_group_id = @group AND l.direction = @direction AND l.pipeline = @pipeline),
    :timeline
FROM pgtrickle.relay_cursors
WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline
    AND epoch = coalesce(@epoch::bigint, epoch)
