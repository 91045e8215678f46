UPDATE pgtrickle.relay_cursors SET status = @status, error = nullif(@reason, ''), updated_at = now()
WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline AND epoch = @epoch
