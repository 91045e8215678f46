-- Takes the locks of pipelines that are free, raises their epochs and names the owner. The
-- first owner that knows identities gives each pipeline one.
WITH locked AS MATERIALIZED (
    SELECT direction, pipeline, identity
    FROM unnest(@directions::text[], @pipelines::text[], @identities::text[]) AS p (direction, pipeline, identity)
    WHERE pg_try_advisory_lock(hashtext(@group), hashtext(:lock_name))
)
INSERT INTO pgtrickle.relay_cursors AS c (relay_group_id, direction, pipeline, epoch, owner, identity)
SELECT @group, direction, pipeline, 1, @owner, identity FROM locked
ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE
    SET epoch = c.epoch + 1, owner = excluded.owner, identity = coalesce(c.identity, excluded.identity), updated_at = now()
RETURNING direction, pipeline, epoch
