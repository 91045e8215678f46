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

-- Tables of roles that the owner of the catalog has no reason to trust are not read: a
-- policy could run code with the owner's rights.

-- +function pgtrickle._relay_row_kept(pgtrickle.relay_dead_letters): whether the row to which a dead letter refers is still in its outbox; null if unknown
CREATE OR REPLACE FUNCTION pgtrickle._relay_row_kept(l pgtrickle.relay_dead_letters) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox regclass;
    id     text;
    kept   boolean;
BEGIN
    IF NOT l.by_reference OR l.direction <> 'forward' OR l.outbox_id IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT c.oid, pgtrickle._relay_config_name(p.config, '{id_column}') INTO outbox, id
        FROM pgtrickle.relay_cursors r
        JOIN pg_class c ON c.relkind IN ('r', 'p')
        JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname || '.' || c.relname = r.source
        JOIN pg_roles o ON o.oid = c.relowner
        LEFT JOIN pgtrickle.relay_outbox_config p ON p.name = r.pipeline
        WHERE r.relay_group_id = l.relay_group_id AND r.direction = l.direction AND r.pipeline = l.pipeline
          AND (o.rolsuper OR c.relowner = (SELECT relowner FROM pg_class WHERE oid = 'pgtrickle.relay_dead_letters'::regclass))
          AND has_table_privilege(c.oid, 'SELECT');
    SELECT a.attname INTO id FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
        WHERE a.attrelid = outbox AND a.attnum > 0 AND NOT a.attisdropped
          AND (a.attname = id OR (id IS NULL AND (a.attname = 'id' OR (i.indnkeyatts = 1 AND i.indkey[0] = a.attnum))))
        ORDER BY a.attname = id DESC NULLS LAST, a.attname = 'id' DESC LIMIT 1;
    IF id IS NOT NULL THEN
        EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE %I = $1)', outbox, id) INTO kept USING l.outbox_id;
    END IF;
    RETURN kept;
END $fn$;
-- +end

-- +function pgtrickle.relay_dlq_original(bigint[]): of dead letters that refer to an outbox row, whether that is kept, gone or unknown
CREATE OR REPLACE FUNCTION pgtrickle.relay_dlq_original(p_ids bigint[]) RETURNS TABLE (id bigint, original text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT l.id, CASE pgtrickle._relay_row_kept(l) WHEN true THEN 'kept' WHEN false THEN 'gone' ELSE 'unknown' END
    FROM pgtrickle.relay_dead_letters l WHERE l.id = ANY (p_ids) AND l.by_reference
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
    gone   bigint[];
BEGIN
    IF p_pipeline IS NULL THEN
        RAISE EXCEPTION 'relay: name the pipeline whose dead letters to retry';
    END IF;
    SELECT coalesce(array_agg(l.id), '{}') INTO gone FROM pgtrickle.relay_dead_letters l
        WHERE l.status = 'dead' AND l.by_reference AND NOT (l.direction = 'forward' AND l.class = 'decode')
          AND pgtrickle._relay_dlq_match(l, p_pipeline, p_direction, p_ids, p_key, p_class, p_before, p_after, p_group)
          AND NOT pgtrickle._relay_row_kept(l);
    UPDATE pgtrickle.relay_dead_letters l SET status = 'retry', updated_at = now()
        WHERE l.status = 'dead' AND NOT (l.direction = 'forward' AND l.class = 'decode') AND l.id <> ALL (gone)
          AND pgtrickle._relay_dlq_match(l, p_pipeline, p_direction, p_ids, p_key, p_class, p_before, p_after, p_group);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        PERFORM pg_notify('pgtrickle_relay_dlq', p_pipeline);
    END IF;
    IF gone <> '{}' AND n = 0 THEN
        RAISE EXCEPTION 'relay: % dead letters of % refer to outbox rows that are gone, the first is %', cardinality(gone), p_pipeline, gone[1]
            USING HINT = format('they cannot be delivered: drop them with "dlq discard %s --id %s"', p_pipeline, array_to_string(gone[1:5], ','));
    ELSIF gone <> '{}' THEN
        RAISE WARNING 'relay: % more dead letters of % refer to outbox rows that are gone, and stay; the first is %', cardinality(gone), p_pipeline, gone[1];
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
