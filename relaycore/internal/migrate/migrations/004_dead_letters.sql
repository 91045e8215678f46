-- Dead letters: what cannot be delivered, and what waits behind it. A running
-- relay learns of a retry or discard on channel pgtrickle_relay_dlq.

-- +function pgtrickle._relay_dlq_match(pgtrickle.relay_dead_letters, text, text, bigint[], text, text, timestamptz, timestamptz, text): whether a dead letter passes the filters; a null filter passes all
CREATE OR REPLACE FUNCTION pgtrickle._relay_dlq_match(
    l pgtrickle.relay_dead_letters, p_pipeline text, p_direction text, p_ids bigint[], p_key text, p_class text,
    p_before timestamptz, p_after timestamptz, p_group text
) RETURNS boolean
LANGUAGE sql STABLE AS $fn$
    SELECT (p_pipeline IS NULL OR l.pipeline = p_pipeline)
       AND (p_direction IS NULL OR l.direction = p_direction)
       AND (p_ids IS NULL OR l.id = ANY (p_ids))
       AND (p_key IS NULL OR l.key = p_key)
       AND (p_class IS NULL OR l.class = p_class)
       AND (p_before IS NULL OR l.created_at < p_before)
       AND (p_after IS NULL OR l.created_at >= p_after)
       AND (p_group IS NULL OR l.relay_group_id = p_group)
$fn$;
-- +end

-- +function pgtrickle.relay_dlq_list(text, text, bigint[], text, text, timestamptz, timestamptz, text): dead and parked messages, oldest first
CREATE OR REPLACE FUNCTION pgtrickle.relay_dlq_list(
    p_pipeline text DEFAULT NULL, p_direction text DEFAULT NULL, p_ids bigint[] DEFAULT NULL, p_key text DEFAULT NULL,
    p_class text DEFAULT NULL, p_before timestamptz DEFAULT NULL, p_after timestamptz DEFAULT NULL, p_group text DEFAULT NULL
) RETURNS TABLE (
    id bigint, relay_group_id text, direction text, pipeline text, message_id text, key text, subject text, op text,
    status text, class text, error text, attempts integer, size bigint, body bytea, headers jsonb, stream_table text, outbox_id bigint,
    origin text, message_time timestamptz, created_at timestamptz, updated_at timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT l.id, l.relay_group_id, l.direction, l.pipeline, l.message_id, l.key, l.subject, l.op,
           l.status, l.class, l.error, l.attempts, octet_length(l.body)::bigint, l.body, l.headers, l.stream_table, l.outbox_id,
           l.origin, l.message_time, l.created_at, l.updated_at
    FROM pgtrickle.relay_dead_letters l
    WHERE pgtrickle._relay_dlq_match(l, p_pipeline, p_direction, p_ids, p_key, p_class, p_before, p_after, p_group)
    ORDER BY l.id
$fn$;
-- +end

-- A row that could not be decoded has no messages yet, and later rows of the keys
-- that it may be about have passed. To publish it now is a decision: replay.

-- +function pgtrickle.relay_dlq_retry(text, text, bigint[], text, text, timestamptz, timestamptz, text): delivers dead letters again, and then what is parked behind them; returns how many
CREATE OR REPLACE FUNCTION pgtrickle.relay_dlq_retry(
    p_pipeline text, p_direction text DEFAULT NULL, p_ids bigint[] DEFAULT NULL, p_key text DEFAULT NULL,
    p_class text DEFAULT NULL, p_before timestamptz DEFAULT NULL, p_after timestamptz DEFAULT NULL, p_group text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    n      bigint;
    stay   bigint;
    oldest bigint;
BEGIN
    IF p_pipeline IS NULL THEN
        RAISE EXCEPTION 'relay: name the pipeline whose dead letters to retry';
    END IF;
    UPDATE pgtrickle.relay_dead_letters l SET status = 'retry', updated_at = now()
        WHERE l.status = 'dead' AND NOT (l.direction = 'forward' AND l.class = 'decode')
          AND pgtrickle._relay_dlq_match(l, p_pipeline, p_direction, p_ids, p_key, p_class, p_before, p_after, p_group);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM pg_notify('pgtrickle_relay_dlq', p_pipeline);
    END IF;
    SELECT count(*), min(l.outbox_id) INTO stay, oldest FROM pgtrickle.relay_dead_letters l
        WHERE l.status = 'dead' AND l.direction = 'forward' AND l.class = 'decode'
          AND pgtrickle._relay_dlq_match(l, p_pipeline, p_direction, p_ids, p_key, p_class, p_before, p_after, p_group);
    IF stay > 0 AND n = 0 THEN
        RAISE EXCEPTION 'relay: % dead letters of % are outbox rows that could not be decoded, from row % on: there is no message yet to deliver again', stay, p_pipeline, oldest
            USING HINT = format('correct the rows or upgrade the relay; then publish them with "replay %s --from ID --to ID" and drop their letters with "dlq discard %s --class decode"', p_pipeline, p_pipeline);
    ELSIF stay > 0 THEN
        RAISE WARNING 'relay: % more dead letters of % are outbox rows that could not be decoded, from row % on, and stay', stay, p_pipeline, oldest;
    END IF;
    RETURN n;
END $fn$;
-- +end

-- Parked messages did nothing wrong: they are discarded only when asked for by id.

-- +function pgtrickle.relay_dlq_discard(text, text, bigint[], text, text, timestamptz, timestamptz, text): drops dead letters, so that what is parked behind them is delivered; returns how many
CREATE OR REPLACE FUNCTION pgtrickle.relay_dlq_discard(
    p_pipeline text, p_direction text DEFAULT NULL, p_ids bigint[] DEFAULT NULL, p_key text DEFAULT NULL,
    p_class text DEFAULT NULL, p_before timestamptz DEFAULT NULL, p_after timestamptz DEFAULT NULL, p_group text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    n bigint;
BEGIN
    IF p_pipeline IS NULL THEN
        RAISE EXCEPTION 'relay: name the pipeline whose dead letters to discard';
    END IF;
    DELETE FROM pgtrickle.relay_dead_letters l
        WHERE (l.status = 'dead' OR p_ids IS NOT NULL)
          AND pgtrickle._relay_dlq_match(l, p_pipeline, p_direction, p_ids, p_key, p_class, p_before, p_after, p_group);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM pg_notify('pgtrickle_relay_dlq', p_pipeline);
    END IF;
    RETURN n;
END $fn$;
-- +end
