-- Records that a pipeline cannot be started. No lease is held.
INSERT INTO pgtrickle.relay_cursors (relay_group_id, direction, pipeline, status, error)
VALUES (@group, @direction, @pipeline, 'failed', @reason)
ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE
    SET status = 'failed', error = excluded.error, updated_at = now()
