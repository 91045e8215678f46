-- The part of commit.sql that stores dead letters in order, and drops those that
-- were delivered.
--
-- A message that is stored already, from before a crash or a redrive, keeps its
-- place among the dead letters of its key, and stays dead until it is retried. The
-- ids of a table that was truncated or created again start over: another message
-- with the id of a stored one replaces it. A replaced row cannot be dropped by the
-- same statement, and must not be.
, stored AS (
    INSERT INTO pgtrickle.relay_dead_letters AS d
        (relay_group_id, direction, pipeline, message_id, key, subject, op, body, before, content_type, headers,
        stream_table, outbox_id, refresh_id, full_refresh, origin, message_time, error, class, attempts, status, by_reference)
    SELECT @group, @direction, @pipeline, m.message_id, m.key, m.subject, m.op,
        decode(m.body, 'base64'), decode(m.before, 'base64'), m.content_type, m.headers,
        m.stream_table, nullif(m.outbox_id, 0), nullif(m.refresh_id, ''), m.full_refresh, nullif(m.origin, ''),
        m.message_time, m.error, m.class, m.attempts, m.status, m.by_reference
    FROM moved, ROWS FROM (json_to_recordset(@dead_letters::json) AS (
        message_id text, key text, subject text, op text, body text, before text, content_type text, headers jsonb,
        stream_table text, outbox_id bigint, refresh_id text, full_refresh boolean, origin text,
        message_time timestamptz, error text, class text, attempts integer, status text, by_reference boolean)) WITH ORDINALITY AS m
    ORDER BY m.ordinality
    ON CONFLICT (relay_group_id, direction, pipeline, message_id) DO UPDATE SET
        key = excluded.key, subject = excluded.subject, op = excluded.op,
        body = excluded.body, before = excluded.before,
        content_type = excluded.content_type, headers = excluded.headers,
        stream_table = excluded.stream_table, outbox_id = excluded.outbox_id,
        refresh_id = excluded.refresh_id, full_refresh = excluded.full_refresh,
        origin = excluded.origin, message_time = excluded.message_time,
        error = excluded.error, class = excluded.class, status = excluded.status, by_reference = excluded.by_reference,
        attempts = excluded.attempts + CASE WHEN d.body = excluded.body THEN d.attempts ELSE 0 END,
        created_at = CASE WHEN d.body = excluded.body THEN d.created_at ELSE now() END, updated_at = now()
    WHERE d.status <> 'dead' OR excluded.status = 'dead'
        OR (d.key, d.op, d.body, d.before) IS DISTINCT FROM (excluded.key, excluded.op, excluded.body, excluded.before)
    RETURNING id
), dropped AS (
    DELETE FROM pgtrickle.relay_dead_letters
    WHERE id = ANY(@redriven::bigint[]) AND EXISTS (SELECT FROM moved) AND id <> ALL (ARRAY(SELECT id FROM stored))
)
