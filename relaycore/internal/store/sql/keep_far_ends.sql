-- What a source knows of its far ends. Fenced like a commit.
UPDATE pgtrickle.relay_cursors SET far_ends = @far_ends::jsonb, updated_at = now()
WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline
    AND epoch = @epoch AND :timeline = @timeline
