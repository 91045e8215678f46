-- Pipelines: the extension's functions with its signatures and error texts, and
-- the documented form set_relay_outbox('name', config => '{...}').

-- +function pgtrickle.relay_config_notify(): tells running relays that a pipeline has changed
CREATE OR REPLACE FUNCTION pgtrickle.relay_config_notify() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    changed record;
BEGIN
    IF TG_OP = 'DELETE' THEN
        changed := OLD;
    ELSE
        changed := NEW;
    END IF;
    PERFORM pg_notify('pgtrickle_relay_config', json_build_object(
        'direction', TG_TABLE_NAME, 'event', TG_OP, 'name', changed.name, 'enabled', changed.enabled)::text);
    RETURN changed;
END $fn$;
-- +end

-- +trigger relay_outbox_config_notify on pgtrickle.relay_outbox_config
CREATE TRIGGER relay_outbox_config_notify AFTER INSERT OR UPDATE OR DELETE ON pgtrickle.relay_outbox_config
    FOR EACH ROW EXECUTE FUNCTION pgtrickle.relay_config_notify();
-- +end

-- +trigger relay_inbox_config_notify on pgtrickle.relay_inbox_config
CREATE TRIGGER relay_inbox_config_notify AFTER INSERT OR UPDATE OR DELETE ON pgtrickle.relay_inbox_config
    FOR EACH ROW EXECUTE FUNCTION pgtrickle.relay_config_notify();
-- +end

-- +function pgtrickle.set_relay_outbox(text, text, text, jsonb, integer, boolean): creates or replaces a forward pipeline
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_outbox(
    p_name text, p_outbox text, p_group text, p_sink jsonb, p_retention_hours integer DEFAULT 24, p_enabled boolean DEFAULT true
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
DECLARE
    stored jsonb;
BEGIN
    IF coalesce(p_sink ->> 'type', '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: sink JSONB must contain a "type" key';
    END IF;
    IF coalesce(p_outbox, '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: outbox name must not be empty';
    END IF;
    stored := jsonb_build_object(
        'source_type', 'outbox',
        'source', jsonb_build_object('outbox', p_outbox, 'group', p_group, 'retention_hours', p_retention_hours),
        'sink_type', p_sink ->> 'type',
        'sink', p_sink);
    PERFORM pgtrickle._relay_check_config('forward', p_name, stored - 'sink_type');
    INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) VALUES (p_name, p_enabled, stored)
        ON CONFLICT (name) DO UPDATE SET enabled = excluded.enabled, config = excluded.config;
END $fn$;
-- +end

-- Reverse pipelines from before id_scope keep the ids that their inboxes have.

-- +function pgtrickle._relay_with_id_scope(text, jsonb): adds the id_scope that a reverse pipeline has, or far_end for a new one
CREATE OR REPLACE FUNCTION pgtrickle._relay_with_id_scope(p_name text, p_config jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT p_config || CASE WHEN p_config ? 'id_scope' THEN '{}' ELSE jsonb_build_object('id_scope', coalesce(
        (SELECT coalesce(c.config ->> 'id_scope', 'global') FROM pgtrickle.relay_inbox_config c WHERE c.name = p_name), 'far_end')) END
$fn$;
-- +end

DO $do$
BEGIN
    IF has_table_privilege('pgtrickle.relay_inbox_config', 'UPDATE') THEN
        UPDATE pgtrickle.relay_inbox_config SET config = config || '{"id_scope": "global"}' WHERE NOT config ? 'id_scope';
    END IF;
END $do$;

-- +function pgtrickle.set_relay_inbox(text, text, jsonb, integer, text, boolean, integer, boolean): creates or replaces a reverse pipeline
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_inbox(
    p_name text, p_inbox text, p_source jsonb, p_max_retries integer DEFAULT 3, p_schedule text DEFAULT '1s',
    p_with_dead_letter boolean DEFAULT true, p_retention_hours integer DEFAULT 24, p_enabled boolean DEFAULT true
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
DECLARE
    stored jsonb;
BEGIN
    IF coalesce(p_source ->> 'type', '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: source JSONB must contain a "type" key';
    END IF;
    IF coalesce(p_inbox, '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: inbox name must not be empty';
    END IF;
    stored := jsonb_build_object(
        'source_type', p_source ->> 'type',
        'source', p_source,
        'sink_type', 'pg-inbox',
        'sink', jsonb_build_object('inbox', p_inbox, 'max_retries', p_max_retries, 'schedule', p_schedule,
                                   'with_dead_letter', p_with_dead_letter, 'retention_hours', p_retention_hours));
    PERFORM pgtrickle._relay_check_config('reverse', p_name, stored - 'source_type');
    stored := pgtrickle._relay_with_id_scope(p_name, stored);
    INSERT INTO pgtrickle.relay_inbox_config (name, enabled, config) VALUES (p_name, p_enabled, stored)
        ON CONFLICT (name) DO UPDATE SET enabled = excluded.enabled, config = excluded.config;
END $fn$;
-- +end

-- A new pipeline waits for enable_relay; an existing one keeps its state.

-- +function pgtrickle.set_relay_outbox(text, jsonb): creates or replaces a forward pipeline; a new one is disabled
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_outbox(p_name text, config jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    PERFORM pgtrickle._relay_check_config('forward', p_name, set_relay_outbox.config);
    INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) VALUES (p_name, false, set_relay_outbox.config)
        ON CONFLICT (name) DO UPDATE SET config = excluded.config;
END $fn$;
-- +end

-- +function pgtrickle.set_relay_inbox(text, jsonb): creates or replaces a reverse pipeline; a new one is disabled
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_inbox(p_name text, config jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    PERFORM pgtrickle._relay_check_config('reverse', p_name, set_relay_inbox.config);
    INSERT INTO pgtrickle.relay_inbox_config (name, enabled, config)
        VALUES (p_name, false, pgtrickle._relay_with_id_scope(p_name, set_relay_inbox.config))
        ON CONFLICT (name) DO UPDATE SET config = excluded.config;
END $fn$;
-- +end

-- +function pgtrickle._relay_set_enabled(text, boolean): enables or disables the pipelines of a name
CREATE OR REPLACE FUNCTION pgtrickle._relay_set_enabled(p_name text, p_enabled boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    forward bigint;
    reverse bigint;
BEGIN
    UPDATE pgtrickle.relay_outbox_config SET enabled = p_enabled WHERE name = p_name;
    GET DIAGNOSTICS forward = ROW_COUNT;
    UPDATE pgtrickle.relay_inbox_config SET enabled = p_enabled WHERE name = p_name;
    GET DIAGNOSTICS reverse = ROW_COUNT;
    IF forward + reverse = 0 THEN
        RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found';
    END IF;
END $fn$;
-- +end

-- +function pgtrickle.enable_relay(text): starts the pipelines of a name
CREATE OR REPLACE FUNCTION pgtrickle.enable_relay(p_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM pgtrickle._relay_set_enabled(p_name, true);
END $fn$;
-- +end

-- +function pgtrickle.disable_relay(text): stops the pipelines of a name
CREATE OR REPLACE FUNCTION pgtrickle.disable_relay(p_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM pgtrickle._relay_set_enabled(p_name, false);
END $fn$;
-- +end

-- +function pgtrickle._relay_wake(text): starts waiting pipelines of a name, or all with an empty name, at once
CREATE OR REPLACE FUNCTION pgtrickle._relay_wake(p_name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pg_notify('pgtrickle_relay_config', json_build_object('event', 'RETRY', 'name', p_name)::text)
$fn$;
-- +end

-- +function pgtrickle.relay_retry(text): starts the pipelines of a name at once if they wait after an error
CREATE OR REPLACE FUNCTION pgtrickle.relay_retry(p_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM FROM pgtrickle.relay_outbox_config c WHERE c.name = p_name
        UNION ALL SELECT FROM pgtrickle.relay_inbox_config c WHERE c.name = p_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM pgtrickle._relay_wake(p_name);
END $fn$;
-- +end

-- +function pgtrickle.delete_relay(text): deletes the pipelines of a name; their checkpoints stay
CREATE OR REPLACE FUNCTION pgtrickle.delete_relay(p_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    forward bigint;
    reverse bigint;
BEGIN
    DELETE FROM pgtrickle.relay_outbox_config WHERE name = p_name;
    GET DIAGNOSTICS forward = ROW_COUNT;
    DELETE FROM pgtrickle.relay_inbox_config WHERE name = p_name;
    GET DIAGNOSTICS reverse = ROW_COUNT;
    IF forward + reverse = 0 THEN
        RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found';
    END IF;
END $fn$;
-- +end

-- +function pgtrickle.get_relay_config(text): the pipelines of a name, one for each direction
CREATE OR REPLACE FUNCTION pgtrickle.get_relay_config(p_name text)
RETURNS TABLE (name text, direction text, enabled boolean, config jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT c.name, 'forward'::text, c.enabled, c.config FROM pgtrickle.relay_outbox_config c WHERE c.name = p_name
        UNION ALL
        SELECT c.name, 'reverse'::text, c.enabled, c.config FROM pgtrickle.relay_inbox_config c WHERE c.name = p_name;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found';
    END IF;
END $fn$;
-- +end

-- +function pgtrickle.list_relay_configs(): all pipelines, by name
CREATE OR REPLACE FUNCTION pgtrickle.list_relay_configs()
RETURNS TABLE (name text, direction text, enabled boolean, config jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT c.name, 'forward'::text, c.enabled, c.config FROM pgtrickle.relay_outbox_config c
        UNION ALL
        SELECT c.name, 'reverse'::text, c.enabled, c.config FROM pgtrickle.relay_inbox_config c
        ORDER BY 1, 2;
END $fn$;
-- +end
