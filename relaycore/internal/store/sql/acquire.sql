-- Raises the epoch of a pipeline for its new owner. The first one that knows identities gives
-- it one.
INSERT INTO pgtrickle.relay_cursors AS c (relay_group_id, direction, pipeline, epoch, owner, identity)
VALUES (@group, @direction, @pipeline, 1, @owner, @identity)
ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE
    SET epoch = c.epoch + 1, owner = excluded.owner, identity = coalesce(c.identity, excluded.identity), updated_at = now()
RETURNING epoch
