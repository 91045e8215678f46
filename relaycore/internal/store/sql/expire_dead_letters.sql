-- Deletes up to 1000 dead letters that are older than @age microseconds, and counts them.
-- It deletes nothing if the epoch is not current.
WITH expired AS (
    DELETE FROM pgtrickle.relay_dead_letters WHERE id IN (
        SELECT l.id FROM pgtrickle.relay_dead_letters l
        JOIN pgtrickle.relay_cursors c USING (relay_group_id, direction, pipeline)
        WHERE l.relay_group_id = @group AND l.direction = @direction AND l.pipeline = @pipeline AND c.epoch = @epoch
            AND l.status = 'dead' AND l.created_at < now() - @age::bigint * interval '1 microsecond'
        ORDER BY l.id LIMIT 1000)
    RETURNING id, message_id, key, class, coalesce(outbox_id, 0) AS outbox_id, created_at
), counted AS (
    UPDATE pgtrickle.relay_cursors SET expired = expired + (SELECT count(*) FROM expired)
    WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline
)
SELECT message_id, key, class, outbox_id, created_at FROM expired ORDER BY id
