(
    -- Dead letters that are not stored yet, or only parked. A redrive that fails again and
    -- a row that is read again after a crash do not count a second time.
    SELECT count(*)
    FROM json_to_recordset(@dead_letters::json) AS m (message_id text, body text, status text)
    WHERE m.status = 'dead' AND NOT EXISTS (
        SELECT FROM pgtrickle.relay_dead_letters d
        WHERE d.relay_group_id = @group AND d.direction = @direction AND d.pipeline = @pipeline
            AND d.message_id = m.message_id AND d.status <> 'parked' AND d.body = decode(m.body, 'base64')))
