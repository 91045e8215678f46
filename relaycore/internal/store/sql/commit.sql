-- A commit is one statement, and so one transaction that is open only while the
-- server works. An owner that is suspended leaves no lock on the cursor behind, for
-- which the next owner would wait.
--
-- It changes the cursor, the public offset of an outbox, and the dead letters. It
-- returns 0 and changes nothing if the epoch or the timeline is not current.
--
-- last_id never falls, even where the ids of a table begin again: it is for others to see.
-- The owner goes by the checkpoint.
WITH moved AS (
    UPDATE pgtrickle.relay_cursors SET
        checkpoint    = coalesce(@checkpoint::jsonb, checkpoint),
        last_id       = greatest(last_id, @last_id),
        source        = coalesce(nullif(@source, ''), source),
        sink_position = coalesce(nullif(@position, ''), sink_position),
        delivered     = delivered + @delivered,
        skipped       = skipped + @skipped,
        unexpected    = unexpected + @unexpected,
        filtered      = filtered + @filtered,
        dead_lettered = dead_lettered + :newly_dead,
        updated_at    = now()
    WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline
        AND epoch = @epoch AND :timeline = @timeline
    RETURNING last_id
), published AS (
    INSERT INTO pgtrickle.relay_consumer_offsets AS o
        (relay_group_id, pipeline_id, last_change_id, worker_id, updated_at)
    SELECT @group, @pipeline, last_id, @owner, now()
    FROM moved
    WHERE @direction = 'forward' AND @last_id > 0
    ON CONFLICT (relay_group_id, pipeline_id) DO UPDATE SET
        last_change_id = greatest(o.last_change_id, excluded.last_change_id),
        worker_id      = excluded.worker_id,
        updated_at     = excluded.updated_at
)
:dead_letters
SELECT count(*) FROM moved
