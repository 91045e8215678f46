-- Whether an epoch is the pipeline's own still.
SELECT EXISTS (
    SELECT FROM pgtrickle.relay_cursors
    WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline AND epoch = @epoch)
