-- Inboxes. They belong to the role that creates them, in a schema of its choice.
--
-- A table's owner can have code run by those who use the table: triggers, row-level
-- security, and functions in the predicate of an index, which even the planner calls. So a
-- function here touches a table only for a caller that has its owner's rights anyhow.

-- An older version knew inboxes by name alone, so that a name could be taken from its owner.
DO $do$
BEGIN
    IF obj_description(to_regclass('pgtrickle.pgt_inbox_config'), 'pg_class') LIKE 'pgtrickle-relay:%'
       AND (SELECT array_length(conkey, 1) FROM pg_constraint WHERE conrelid = to_regclass('pgtrickle.pgt_inbox_config') AND contype = 'p') = 1 THEN
        ALTER TABLE pgtrickle.pgt_inbox_config DROP CONSTRAINT pgt_inbox_config_pkey CASCADE;
        ALTER TABLE pgtrickle.pgt_inbox_config ADD PRIMARY KEY (inbox_schema, inbox_name);
    END IF;
END $do$;

-- +plain-function pgtrickle._relay_may_register(name, regclass, text): refuses an inbox that is no real table, or of a role without EXECUTE on create_inbox
CREATE OR REPLACE FUNCTION pgtrickle._relay_may_register(p_caller name, p_table regclass, p_name text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF NOT has_function_privilege(p_caller, 'pgtrickle.create_inbox(text, text, integer, text, boolean, boolean, integer)', 'EXECUTE') THEN
        RAISE EXCEPTION 'permission denied for function create_inbox' USING ERRCODE = 'insufficient_privilege',
            HINT = 'Let the owner of schema pgtrickle run: GRANT EXECUTE ON FUNCTION pgtrickle.create_inbox TO ' || quote_ident(p_caller);
    ELSIF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p_table AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't') THEN
        RAISE EXCEPTION 'inbox % is not a table that lasts: name a table, not a view or a temporary one', p_name
            USING ERRCODE = 'wrong_object_type';
    END IF;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_register_inbox(jsonb): stores an inbox's settings, over those of a table that was dropped
CREATE OR REPLACE FUNCTION pgtrickle._relay_register_inbox(p_inbox jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    DELETE FROM pgtrickle.pgt_inbox_config i
        WHERE i.inbox_schema = p_inbox ->> 'inbox_schema' AND i.inbox_name = p_inbox ->> 'inbox_name';
    INSERT INTO pgtrickle.pgt_inbox_config SELECT (jsonb_populate_record(NULL::pgtrickle.pgt_inbox_config, p_inbox)).*;
END $fn$;
-- +end

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
    ELSIF EXISTS (SELECT FROM pgtrickle.pgt_inbox_config i WHERE i.inbox_schema = p_schema AND i.inbox_name = p_name)
          AND pgtrickle._relay_find(p_schema, p_name) IS NOT NULL THEN
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

-- +plain-function pgtrickle._relay_inbox(text): the registration of an inbox, called by its name or as schema.name
-- A name that several schemas have is that of the caller's own table.
CREATE OR REPLACE FUNCTION pgtrickle._relay_inbox(p_name text) RETURNS pgtrickle.pgt_inbox_config
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox pgtrickle.pgt_inbox_config;
    named text[];
    own   boolean;
BEGIN
    SELECT array_agg(i.inbox_schema || '.' || i.inbox_name ORDER BY i.inbox_schema, i.inbox_name) INTO named FROM pgtrickle.pgt_inbox_config i
        WHERE i.inbox_name = p_name OR i.inbox_schema || '.' || i.inbox_name = p_name;
    SELECT i.* INTO inbox FROM pgtrickle.pgt_inbox_config i
        LEFT JOIN pg_class c ON c.oid = pgtrickle._relay_find(i.inbox_schema, i.inbox_name)
        LEFT JOIN pg_roles r ON r.oid = c.relowner AND r.rolname = current_user
        WHERE i.inbox_schema || '.' || i.inbox_name = ANY (named)
        ORDER BY r.rolname IS NULL, i.inbox_name = p_name LIMIT 1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'inbox not found: %', p_name USING ERRCODE = 'undefined_object';
    END IF;
    own := EXISTS (SELECT FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
        WHERE c.oid = pgtrickle._relay_find(inbox.inbox_schema, inbox.inbox_name) AND r.rolname = current_user);
    IF cardinality(named) > 1 AND NOT own THEN
        RAISE EXCEPTION 'inbox "%" is ambiguous: it could be %', p_name, array_to_string(named, ', ')
            USING ERRCODE = 'ambiguous_alias', HINT = 'Name the inbox with its schema.';
    END IF;
    RETURN inbox;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_inbox_table(pgtrickle.pgt_inbox_config): the quoted table of an inbox; refuses one whose owner's code the caller should not run
CREATE OR REPLACE FUNCTION pgtrickle._relay_inbox_table(p_inbox pgtrickle.pgt_inbox_config) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    holder record;
BEGIN
    SELECT r.rolname, r.rolsuper OR n.nspowner = r.oid AS trusted, c.relkind IN ('r', 'p') AS is_table INTO holder
        FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner JOIN pg_namespace n ON n.nspname = 'pgtrickle'
        WHERE c.oid = pgtrickle._relay_find(p_inbox.inbox_schema, p_inbox.inbox_name);
    IF holder.trusted IS NOT TRUE AND holder.rolname <> current_user
       AND (NOT pg_has_role(current_user, holder.rolname, 'USAGE') OR (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)) THEN
        RAISE EXCEPTION 'inbox %.% can run code of role %, its owner, with the rights of %: call this in a session of that role',
            p_inbox.inbox_schema, p_inbox.inbox_name, holder.rolname, current_user USING ERRCODE = 'insufficient_privilege';
    ELSIF holder.is_table IS FALSE THEN
        RAISE EXCEPTION 'inbox %.% is no longer a table', p_inbox.inbox_schema, p_inbox.inbox_name USING ERRCODE = 'wrong_object_type';
    END IF;
    RETURN format('%I.%I', p_inbox.inbox_schema, p_inbox.inbox_name);
END $fn$;
-- +end

-- +plain-function pgtrickle.drop_inbox(text, boolean, boolean): drops an inbox's views and registration, and with p_cascade its table
CREATE OR REPLACE FUNCTION pgtrickle.drop_inbox(p_name text, p_if_exists boolean DEFAULT false, p_cascade boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox  pgtrickle.pgt_inbox_config;
    suffix text;
BEGIN
    IF p_if_exists AND NOT EXISTS (SELECT FROM pgtrickle.pgt_inbox_config i WHERE p_name IN (i.inbox_name, i.inbox_schema || '.' || i.inbox_name)) THEN
        RETURN;
    END IF;
    inbox := pgtrickle._relay_inbox(p_name);
    INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES ('unregister inbox', p_name, to_jsonb(inbox));
    FOREACH suffix IN ARRAY ARRAY['_pending', '_dlq', '_stats'] LOOP
        EXECUTE format('DROP VIEW IF EXISTS %I.%I', inbox.inbox_schema, inbox.inbox_name || suffix);
    END LOOP;
    IF p_cascade THEN
        EXECUTE format('DROP TABLE IF EXISTS %I.%I', inbox.inbox_schema, inbox.inbox_name);
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
            ''status'', CASE WHEN count(*) FILTER (WHERE %2$I IS NULL AND %3$I >= $3) > 0 THEN ''WARNING'' ELSE ''OK'' END,
            ''total_messages'', count(*),
            ''pending_messages'', count(*) FILTER (WHERE %2$I IS NULL AND %3$I < $3),
            ''dlq_messages'', count(*) FILTER (WHERE %2$I IS NULL AND %3$I >= $3),
            ''processed_messages'', count(*) FILTER (WHERE %2$I IS NOT NULL),
            ''max_retries'', $3, ''retention_hours'', $4) FROM %1$s',
            pgtrickle._relay_inbox_table(inbox), inbox.processed_at_column, inbox.retry_count_column)
        INTO health USING inbox.inbox_name, inbox.inbox_schema, inbox.max_retries, inbox.retention_hours;
    RETURN health;
END $fn$;
-- +end

-- +plain-function pgtrickle.inbox_status(text): inboxes and their settings
CREATE OR REPLACE FUNCTION pgtrickle.inbox_status(p_name text DEFAULT NULL)
RETURNS TABLE (inbox_name text, inbox_schema text, max_retries integer, schedule text, with_dead_letter boolean, with_stats boolean, created_at timestamptz)
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT i.inbox_name, i.inbox_schema, i.max_retries, i.schedule, i.with_dead_letter, i.with_stats, i.created_at
    FROM pgtrickle.pgt_inbox_config i WHERE p_name IS NULL OR p_name IN (i.inbox_name, i.inbox_schema || '.' || i.inbox_name) ORDER BY i.inbox_name, i.inbox_schema
$fn$;
-- +end

-- +plain-function pgtrickle.replay_inbox_messages(text, text[]): makes messages pending again; returns how many
CREATE OR REPLACE FUNCTION pgtrickle.replay_inbox_messages(p_name text, p_event_ids text[]) RETURNS bigint
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    inbox pgtrickle.pgt_inbox_config := pgtrickle._relay_inbox(p_name);
    n     bigint;
BEGIN
    EXECUTE format('UPDATE %s SET %I = NULL, %I = 0, %I = NULL WHERE %I = ANY ($1)',
        pgtrickle._relay_inbox_table(inbox), inbox.processed_at_column, inbox.retry_count_column, inbox.error_column, inbox.id_column)
        USING p_event_ids;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $fn$;
-- +end
