-- How many dead letters and parked messages a pipeline has, counted up to a limit, and
-- whether some are to be delivered again.
SELECT (SELECT count(*) FROM (
        SELECT FROM pgtrickle.relay_dead_letters
        WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline LIMIT @limit) l),
    EXISTS (
        SELECT FROM pgtrickle.relay_dead_letters
        WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline AND status = 'retry')
