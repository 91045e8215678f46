-- Raises the epoch of a pipeline for its new owner.
INSERT INTO pgtrickle.relay_cursors AS c (relay_group_id, direction, pipeline, epoch, owner)
VALUES (@group, @direction, @pipeline, 1, @owner)
ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE
    SET epoch = c.epoch + 1, owner = excluded.owner, updated_at = now()
RETURNING epoch
