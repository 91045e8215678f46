-- Inboxes. They belong to whoever creates them, in a schema of their choice.

-- +plain-function pgtrickle.create_inbox(text, text, integer, text, boolean, boolean, integer): makes an inbox table with views of what is pending and what has failed
CREATE OR REPLACE FUNCTION pgtrickle.create_inbox(
    p_name text, p_schema text DEFAULT 'pgtrickle', p_max_retries integer DEFAULT 3, p_schedule text DEFAULT '1s',
    with_dead_letter boolean DEFAULT true, with_stats boolean DEFAULT true, p_retention_hours integer DEFAULT 72
) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
DECLARE
    inbox pgtrickle.pgt_inbox_config;
BEGIN
    IF coalesce(p_name, '') = '' THEN
        RAISE EXCEPTION 'inbox name must not be empty' USING ERRCODE = 'invalid_parameter_value';
    ELSIF octet_length(p_name) > 55 THEN
        RAISE EXCEPTION 'inbox name "%" is too long: 55 bytes leave room for the names of its views', p_name USING ERRCODE = 'name_too_long';
    ELSIF EXISTS (SELECT FROM pgtrickle.pgt_inbox_config i WHERE i.inbox_name = p_name) THEN
        RAISE EXCEPTION 'inbox already exists: %', p_name USING ERRCODE = 'duplicate_object';
    ELSIF p_max_retries IS NULL OR p_max_retries < 0 THEN
        RAISE EXCEPTION 'max_retries must not be negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS %1$I.%2$I (
        event_id     text        NOT NULL PRIMARY KEY,
        event_type   text,
        source       text,
        aggregate_id text,
        payload      jsonb,
        received_at  timestamptz NOT NULL DEFAULT now(),
        processed_at timestamptz,
        error        text,
        retry_count  integer     NOT NULL DEFAULT 0,
        trace_id     text)', p_schema, p_name);
    EXECUTE format('CREATE INDEX IF NOT EXISTS %3$I ON %1$I.%2$I (received_at) WHERE processed_at IS NULL',
        p_schema, p_name, pgtrickle._relay_name(p_name, '_pending_idx'));
    EXECUTE format('CREATE VIEW %1$I.%3$I AS SELECT * FROM %1$I.%2$I WHERE processed_at IS NULL AND retry_count < %4$s',
        p_schema, p_name, p_name || '_pending', p_max_retries);
    IF create_inbox.with_dead_letter THEN
        EXECUTE format('CREATE VIEW %1$I.%3$I AS SELECT * FROM %1$I.%2$I WHERE processed_at IS NULL AND retry_count >= %4$s',
            p_schema, p_name, p_name || '_dlq', p_max_retries);
    END IF;
    IF create_inbox.with_stats THEN
        EXECUTE format('CREATE VIEW %1$I.%3$I AS SELECT event_type, count(*) AS message_count,
                count(*) FILTER (WHERE processed_at IS NOT NULL) AS processed_count,
                count(*) FILTER (WHERE processed_at IS NULL AND retry_count >= %4$s) AS dlq_count
            FROM %1$I.%2$I GROUP BY event_type', p_schema, p_name, p_name || '_stats', p_max_retries);
    END IF;
    inbox := ROW(p_name, p_schema, p_max_retries, coalesce(p_schedule, '1s'), coalesce(create_inbox.with_dead_letter, false),
                 coalesce(create_inbox.with_stats, false), coalesce(p_retention_hours, 72),
                 'event_id', 'processed_at', 'retry_count', 'error', 'received_at', 'event_type', true, now());
    INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES ('register inbox', p_schema || '.' || p_name, to_jsonb(inbox));
    PERFORM pgtrickle._relay_grant_inbox(p_schema, p_name);
    PERFORM pgtrickle._relay_wake('');
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_inbox(text): the registration of an inbox
CREATE OR REPLACE FUNCTION pgtrickle._relay_inbox(p_name text) RETURNS pgtrickle.pgt_inbox_config
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox pgtrickle.pgt_inbox_config;
BEGIN
    SELECT i.* INTO inbox FROM pgtrickle.pgt_inbox_config i WHERE i.inbox_name = p_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox not found: %', p_name USING ERRCODE = 'undefined_object';
    END IF;
    RETURN inbox;
END $fn$;
-- +end

-- +plain-function pgtrickle.drop_inbox(text, boolean, boolean): drops an inbox's views and registration, and with p_cascade its table
CREATE OR REPLACE FUNCTION pgtrickle.drop_inbox(p_name text, p_if_exists boolean DEFAULT false, p_cascade boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox  pgtrickle.pgt_inbox_config;
    suffix text;
BEGIN
    IF p_if_exists AND NOT EXISTS (SELECT FROM pgtrickle.pgt_inbox_config i WHERE i.inbox_name = p_name) THEN
        RETURN;
    END IF;
    inbox := pgtrickle._relay_inbox(p_name);
    INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('unregister inbox', p_name);
    FOREACH suffix IN ARRAY ARRAY['_pending', '_dlq', '_stats'] LOOP
        EXECUTE format('DROP VIEW IF EXISTS %I.%I', inbox.inbox_schema, p_name || suffix);
    END LOOP;
    IF p_cascade THEN
        EXECUTE format('DROP TABLE IF EXISTS %I.%I', inbox.inbox_schema, p_name);
    END IF;
END $fn$;
-- +end

-- +plain-function pgtrickle.inbox_health(text): numbers of an inbox's messages
CREATE OR REPLACE FUNCTION pgtrickle.inbox_health(p_name text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox  pgtrickle.pgt_inbox_config := pgtrickle._relay_inbox(p_name);
    health jsonb;
BEGIN
    EXECUTE format('SELECT jsonb_build_object(
            ''inbox_name'', $1, ''inbox_schema'', $2,
            ''status'', CASE WHEN count(*) FILTER (WHERE %3$I IS NULL AND %4$I >= $3) > 0 THEN ''WARNING'' ELSE ''OK'' END,
            ''total_messages'', count(*),
            ''pending_messages'', count(*) FILTER (WHERE %3$I IS NULL AND %4$I < $3),
            ''dlq_messages'', count(*) FILTER (WHERE %3$I IS NULL AND %4$I >= $3),
            ''processed_messages'', count(*) FILTER (WHERE %3$I IS NOT NULL),
            ''max_retries'', $3, ''retention_hours'', $4) FROM %1$I.%2$I',
            inbox.inbox_schema, p_name, inbox.processed_at_column, inbox.retry_count_column)
        INTO health USING p_name, inbox.inbox_schema, inbox.max_retries, inbox.retention_hours;
    RETURN health;
END $fn$;
-- +end

-- +plain-function pgtrickle.inbox_status(text): inboxes and their settings
CREATE OR REPLACE FUNCTION pgtrickle.inbox_status(p_name text DEFAULT NULL)
RETURNS TABLE (inbox_name text, inbox_schema text, max_retries integer, schedule text, with_dead_letter boolean, with_stats boolean, created_at timestamptz)
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT i.inbox_name, i.inbox_schema, i.max_retries, i.schedule, i.with_dead_letter, i.with_stats, i.created_at
    FROM pgtrickle.pgt_inbox_config i WHERE p_name IS NULL OR i.inbox_name = p_name ORDER BY i.inbox_name
$fn$;
-- +end

-- +plain-function pgtrickle.replay_inbox_messages(text, text[]): makes messages pending again; returns how many
CREATE OR REPLACE FUNCTION pgtrickle.replay_inbox_messages(p_name text, p_event_ids text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox pgtrickle.pgt_inbox_config := pgtrickle._relay_inbox(p_name);
    n     bigint;
BEGIN
    EXECUTE format('UPDATE %I.%I SET %I = NULL, %I = 0, %I = NULL WHERE %I = ANY ($1)',
        inbox.inbox_schema, p_name, inbox.processed_at_column, inbox.retry_count_column, inbox.error_column, inbox.id_column)
        USING p_event_ids;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $fn$;
-- +end
