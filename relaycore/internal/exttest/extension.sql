-- What CREATE EXTENSION pg_trickle (0.37 to 0.45) leaves in a database, as far as
-- outboxes, inboxes and the relay go. The real functions are partly C; these have
-- their signatures, their errors and their effects on tables.

-- Every object that this file creates is a member of extension pg_trickle. The entry in
-- pg_extension is written by hand, because an extension's files belong into a directory
-- of the server. Its script refuses a schema that exists, as the extension's does.
DO $do$ BEGIN
    IF to_regnamespace('pgtrickle') IS NOT NULL THEN
        RAISE EXCEPTION 'schema pgtrickle is not a member of extension "pg_trickle"' USING ERRCODE = 'object_not_in_prerequisite_state',
            DETAIL = 'An extension is not allowed to replace an object that it does not own.';
    END IF;
END $do$;

CREATE SCHEMA pgtrickle;

CREATE TABLE pgtrickle.relay_outbox_config (name TEXT NOT NULL PRIMARY KEY, enabled BOOLEAN NOT NULL DEFAULT true, config JSONB NOT NULL);
CREATE TABLE pgtrickle.relay_inbox_config (name TEXT NOT NULL PRIMARY KEY, enabled BOOLEAN NOT NULL DEFAULT true, config JSONB NOT NULL);
CREATE TABLE pgtrickle.relay_consumer_offsets (
    relay_group_id TEXT NOT NULL, pipeline_id TEXT NOT NULL, last_change_id BIGINT NOT NULL DEFAULT 0,
    worker_id TEXT, updated_at TIMESTAMPTZ NOT NULL DEFAULT now(), PRIMARY KEY (relay_group_id, pipeline_id));

CREATE FUNCTION pgtrickle.relay_config_notify() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('pgtrickle_relay_config', json_build_object('direction', TG_TABLE_NAME, 'event', TG_OP, 'name', OLD.name, 'enabled', OLD.enabled)::text);
        RETURN OLD;
    END IF;
    PERFORM pg_notify('pgtrickle_relay_config', json_build_object('direction', TG_TABLE_NAME, 'event', TG_OP, 'name', NEW.name, 'enabled', NEW.enabled)::text);
    RETURN NEW;
END $fn$;
CREATE TRIGGER relay_outbox_config_notify AFTER INSERT OR UPDATE OR DELETE ON pgtrickle.relay_outbox_config
    FOR EACH ROW EXECUTE FUNCTION pgtrickle.relay_config_notify();
CREATE TRIGGER relay_inbox_config_notify AFTER INSERT OR UPDATE OR DELETE ON pgtrickle.relay_inbox_config
    FOR EACH ROW EXECUTE FUNCTION pgtrickle.relay_config_notify();

CREATE FUNCTION pgtrickle.set_relay_outbox(p_name TEXT, p_outbox TEXT, p_group TEXT, p_sink JSONB, p_retention_hours INT DEFAULT 24, p_enabled BOOLEAN DEFAULT true)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF coalesce(p_sink ->> 'type', '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: sink JSONB must contain a "type" key. Got: %', p_sink USING ERRCODE = 'raise_exception';
    END IF;
    IF coalesce(p_outbox, '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: outbox name must not be empty' USING ERRCODE = 'raise_exception';
    END IF;
    INSERT INTO relay_outbox_config AS c (name, enabled, config) VALUES (p_name, p_enabled, jsonb_build_object(
        'source_type', 'outbox', 'source', jsonb_build_object('outbox', p_outbox, 'group', p_group, 'retention_hours', p_retention_hours),
        'sink_type', p_sink ->> 'type', 'sink', p_sink))
    ON CONFLICT (name) DO UPDATE SET enabled = EXCLUDED.enabled, config = EXCLUDED.config;
END $fn$;

CREATE FUNCTION pgtrickle.set_relay_inbox(p_name TEXT, p_inbox TEXT, p_source JSONB, p_max_retries INT DEFAULT 3, p_schedule TEXT DEFAULT '1s',
    p_with_dead_letter BOOLEAN DEFAULT true, p_retention_hours INT DEFAULT 24, p_enabled BOOLEAN DEFAULT true)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF coalesce(p_source ->> 'type', '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: source JSONB must contain a "type" key. Got: %', p_source USING ERRCODE = 'raise_exception';
    END IF;
    IF coalesce(p_inbox, '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: inbox name must not be empty' USING ERRCODE = 'raise_exception';
    END IF;
    INSERT INTO relay_inbox_config AS c (name, enabled, config) VALUES (p_name, p_enabled, jsonb_build_object(
        'source_type', p_source ->> 'type', 'source', p_source, 'sink_type', 'pg-inbox',
        'sink', jsonb_build_object('inbox', p_inbox, 'max_retries', p_max_retries, 'schedule', p_schedule,
            'with_dead_letter', p_with_dead_letter, 'retention_hours', p_retention_hours)))
    ON CONFLICT (name) DO UPDATE SET enabled = EXCLUDED.enabled, config = EXCLUDED.config;
END $fn$;

CREATE FUNCTION pgtrickle.enable_relay(p_name TEXT) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE n INT; m INT;
BEGIN
    UPDATE relay_outbox_config SET enabled = true WHERE name = p_name; GET DIAGNOSTICS n = ROW_COUNT;
    UPDATE relay_inbox_config SET enabled = true WHERE name = p_name; GET DIAGNOSTICS m = ROW_COUNT;
    IF n + m = 0 THEN RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found'; END IF;
END $fn$;

CREATE FUNCTION pgtrickle.disable_relay(p_name TEXT) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE n INT; m INT;
BEGIN
    UPDATE relay_outbox_config SET enabled = false WHERE name = p_name; GET DIAGNOSTICS n = ROW_COUNT;
    UPDATE relay_inbox_config SET enabled = false WHERE name = p_name; GET DIAGNOSTICS m = ROW_COUNT;
    IF n + m = 0 THEN RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found'; END IF;
END $fn$;

CREATE FUNCTION pgtrickle.delete_relay(p_name TEXT) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE n INT; m INT;
BEGIN
    DELETE FROM relay_outbox_config WHERE name = p_name; GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM relay_inbox_config WHERE name = p_name; GET DIAGNOSTICS m = ROW_COUNT;
    IF n + m = 0 THEN RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found'; END IF;
END $fn$;

CREATE FUNCTION pgtrickle.get_relay_config(p_name TEXT) RETURNS TABLE(name TEXT, direction TEXT, enabled BOOLEAN, config JSONB)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    RETURN QUERY SELECT o.name, 'forward'::text, o.enabled, o.config FROM relay_outbox_config o WHERE o.name = p_name
        UNION ALL SELECT i.name, 'reverse'::text, i.enabled, i.config FROM relay_inbox_config i WHERE i.name = p_name;
    IF NOT FOUND THEN RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found'; END IF;
END $fn$;

CREATE FUNCTION pgtrickle.list_relay_configs() RETURNS TABLE(name TEXT, direction TEXT, enabled BOOLEAN, config JSONB)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    RETURN QUERY SELECT o.name, 'forward'::text, o.enabled, o.config FROM relay_outbox_config o
        UNION ALL SELECT i.name, 'reverse'::text, i.enabled, i.config FROM relay_inbox_config i ORDER BY 1;
END $fn$;

DO $do$ BEGIN
    CREATE ROLE pgtrickle_relay NOLOGIN;
EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
END $do$;

CREATE TABLE pgtrickle.pgt_outbox_config (
    stream_table_oid OID NOT NULL PRIMARY KEY, stream_table_name TEXT NOT NULL, outbox_table_name TEXT NOT NULL CONSTRAINT uq_outbox_table_name UNIQUE,
    retention_hours INT NOT NULL DEFAULT 24, created_at TIMESTAMPTZ NOT NULL DEFAULT now(), last_drained_at TIMESTAMPTZ, last_drained_count BIGINT NOT NULL DEFAULT 0);
CREATE INDEX idx_pgt_outbox_config_name ON pgtrickle.pgt_outbox_config (stream_table_name);
CREATE TABLE pgtrickle.pgt_consumer_groups (
    group_name TEXT NOT NULL PRIMARY KEY, outbox_name TEXT NOT NULL,
    auto_offset_reset TEXT NOT NULL DEFAULT 'latest' CONSTRAINT chk_consumer_group_auto_offset_reset CHECK (auto_offset_reset IN ('earliest', 'latest')),
    created_at TIMESTAMPTZ NOT NULL DEFAULT now());
CREATE INDEX idx_pgt_consumer_groups_outbox ON pgtrickle.pgt_consumer_groups (outbox_name);
CREATE TABLE pgtrickle.pgt_consumer_offsets (
    group_name TEXT NOT NULL REFERENCES pgtrickle.pgt_consumer_groups ON DELETE CASCADE, consumer_id TEXT NOT NULL,
    committed_offset BIGINT NOT NULL DEFAULT 0, last_committed_at TIMESTAMPTZ, last_heartbeat_at TIMESTAMPTZ NOT NULL DEFAULT now(), PRIMARY KEY (group_name, consumer_id));
CREATE TABLE pgtrickle.pgt_consumer_leases (
    group_name TEXT NOT NULL, consumer_id TEXT NOT NULL, batch_start BIGINT NOT NULL, batch_end BIGINT NOT NULL, lease_expires TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (group_name, consumer_id), FOREIGN KEY (group_name, consumer_id) REFERENCES pgtrickle.pgt_consumer_offsets ON DELETE CASCADE);
CREATE TABLE pgtrickle.pgt_inbox_config (
    inbox_name TEXT NOT NULL PRIMARY KEY, inbox_schema TEXT NOT NULL DEFAULT 'pgtrickle', max_retries INT NOT NULL DEFAULT 3, schedule TEXT NOT NULL DEFAULT '1s',
    with_dead_letter BOOL NOT NULL DEFAULT true, with_stats BOOL NOT NULL DEFAULT true, retention_hours INT NOT NULL DEFAULT 72,
    id_column TEXT NOT NULL DEFAULT 'event_id', processed_at_column TEXT NOT NULL DEFAULT 'processed_at', retry_count_column TEXT NOT NULL DEFAULT 'retry_count',
    error_column TEXT NOT NULL DEFAULT 'error', received_at_column TEXT NOT NULL DEFAULT 'received_at', event_type_column TEXT NOT NULL DEFAULT 'event_type',
    is_managed BOOL NOT NULL DEFAULT true, created_at TIMESTAMPTZ NOT NULL DEFAULT now());
CREATE TABLE pgtrickle.pgt_inbox_ordering_config (
    inbox_name TEXT NOT NULL PRIMARY KEY REFERENCES pgtrickle.pgt_inbox_config ON DELETE CASCADE,
    aggregate_id_col TEXT NOT NULL, sequence_num_col TEXT NOT NULL, created_at TIMESTAMPTZ NOT NULL DEFAULT now());
CREATE TABLE pgtrickle.pgt_inbox_priority_config (
    inbox_name TEXT NOT NULL PRIMARY KEY REFERENCES pgtrickle.pgt_inbox_config ON DELETE CASCADE,
    priority_col TEXT NOT NULL, tiers JSONB, created_at TIMESTAMPTZ NOT NULL DEFAULT now());

-- The catalog of stream tables. No role but the owner may read it. A registration in
-- pgt_outbox_config names a stream table by its number, pgt_id.
CREATE TABLE pgtrickle.pgt_stream_tables (
    pgt_id BIGSERIAL PRIMARY KEY, pgt_relid OID NOT NULL UNIQUE, pgt_name TEXT NOT NULL, pgt_schema TEXT NOT NULL, UNIQUE (pgt_schema, pgt_name));
CREATE TABLE pgtrickle.pgt_dependencies (pgt_id BIGINT NOT NULL, source_relid OID NOT NULL, PRIMARY KEY (pgt_id, source_relid));

-- fixture_stream_table makes an existing table a stream table, in place of create_stream_table.
CREATE FUNCTION pgtrickle.fixture_stream_table(p_table REGCLASS) RETURNS void LANGUAGE sql AS $fn$
    INSERT INTO pgtrickle.pgt_stream_tables (pgt_relid, pgt_name, pgt_schema)
        SELECT c.oid, c.relname, c.relnamespace::regnamespace::text FROM pg_class c WHERE c.oid = p_table
$fn$;

CREATE FUNCTION pgtrickle.fixture_find(p_name TEXT) RETURNS pgtrickle.pgt_stream_tables LANGUAGE plpgsql AS $fn$
DECLARE
    st  TEXT := CASE WHEN p_name LIKE '%.%' THEN split_part(p_name, '.', 2) ELSE p_name END;
    sch TEXT := CASE WHEN p_name LIKE '%.%' THEN split_part(p_name, '.', 1) ELSE current_schema() END;
    stream pgtrickle.pgt_stream_tables;
BEGIN
    SELECT * INTO stream FROM pgtrickle.pgt_stream_tables s WHERE s.pgt_schema = sch AND s.pgt_name = st;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'stream table not found: %.%', sch, st USING ERRCODE = 'internal_error';
    END IF;
    RETURN stream;
END $fn$;

-- It leaves the outbox, its delta table and view, and the registration behind.
CREATE FUNCTION pgtrickle.drop_stream_table(p_name TEXT) RETURNS void LANGUAGE plpgsql STRICT AS $fn$
DECLARE
    s pgtrickle.pgt_stream_tables := pgtrickle.fixture_find(p_name);
BEGIN
    DELETE FROM pgtrickle.pgt_stream_tables WHERE pgt_id = s.pgt_id;
    EXECUTE format('DROP TABLE %I.%I', s.pgt_schema, s.pgt_name);
END $fn$;

-- The names of the delta table and the view are cut at 63 bytes, at a character's
-- boundary, as the cast to name cuts them. They have no suffix that keeps them apart.
CREATE FUNCTION pgtrickle.enable_outbox(p_name TEXT, p_retention_hours INT DEFAULT 24) RETURNS void LANGUAGE plpgsql STRICT AS $fn$
DECLARE
    s      pgtrickle.pgt_stream_tables := pgtrickle.fixture_find(p_name);
    outbox NAME := 'outbox_' || s.pgt_name;
BEGIN
    IF EXISTS (SELECT FROM pgtrickle.pgt_outbox_config WHERE stream_table_oid = s.pgt_id::oid) THEN
        RAISE EXCEPTION 'outbox already enabled for stream table: %.%', s.pgt_schema, s.pgt_name USING ERRCODE = 'internal_error';
    ELSIF EXISTS (SELECT FROM pgtrickle.pgt_outbox_config WHERE outbox_table_name = outbox) THEN
        outbox := left('outbox_' || s.pgt_name || '_' || left(md5(s.pgt_schema || '.' || s.pgt_name), 7), 63);
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS pgtrickle.%I (
        id BIGSERIAL PRIMARY KEY, pgt_id UUID NOT NULL DEFAULT gen_random_uuid(), refresh_id UUID, created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        inserted_count BIGINT NOT NULL DEFAULT 0, deleted_count BIGINT NOT NULL DEFAULT 0, is_claim_check BOOL NOT NULL DEFAULT false, payload JSONB)', outbox);
    EXECUTE format('CREATE TABLE IF NOT EXISTS pgtrickle.%I (
        outbox_id BIGINT NOT NULL, row_op TEXT NOT NULL CHECK (row_op IN (''INSERT'',''DELETE'')), row_data JSONB NOT NULL, row_num BIGINT NOT NULL,
        PRIMARY KEY (outbox_id, row_num))', ('outbox_delta_rows_' || s.pgt_name)::name);
    EXECUTE format('CREATE OR REPLACE VIEW pgtrickle.%I AS SELECT * FROM pgtrickle.%I ORDER BY id DESC LIMIT 1', ('pgt_outbox_latest_' || s.pgt_name)::name, outbox);
    INSERT INTO pgtrickle.pgt_outbox_config (stream_table_oid, stream_table_name, outbox_table_name, retention_hours)
        VALUES (s.pgt_id::oid, s.pgt_name, outbox, p_retention_hours);
END $fn$;

CREATE FUNCTION pgtrickle.disable_outbox(p_name TEXT, p_if_exists BOOL DEFAULT false) RETURNS void LANGUAGE plpgsql STRICT AS $fn$
DECLARE
    s pgtrickle.pgt_stream_tables := pgtrickle.fixture_find(p_name);
    c pgtrickle.pgt_outbox_config;
BEGIN
    SELECT * INTO c FROM pgtrickle.pgt_outbox_config WHERE stream_table_oid = s.pgt_id::oid;
    IF NOT FOUND THEN
        IF p_if_exists THEN RETURN; END IF;
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_name USING ERRCODE = 'internal_error';
    END IF;
    EXECUTE format('DROP VIEW IF EXISTS pgtrickle.%I', ('pgt_outbox_latest_' || s.pgt_name)::name);
    EXECUTE format('DROP TABLE IF EXISTS pgtrickle.%I', ('outbox_delta_rows_' || s.pgt_name)::name);
    EXECUTE format('DROP TABLE IF EXISTS pgtrickle.%I CASCADE', c.outbox_table_name);
    DELETE FROM pgtrickle.pgt_outbox_config WHERE stream_table_oid = c.stream_table_oid;
END $fn$;

CREATE FUNCTION pgtrickle.outbox_rows_consumed(p_stream_table TEXT, p_outbox_id BIGINT) RETURNS void LANGUAGE plpgsql STRICT AS $fn$
DECLARE
    s pgtrickle.pgt_stream_tables := pgtrickle.fixture_find(p_stream_table);
BEGIN
    IF NOT EXISTS (SELECT FROM pgtrickle.pgt_outbox_config WHERE stream_table_oid = s.pgt_id::oid) THEN
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_stream_table USING ERRCODE = 'internal_error';
    END IF;
    EXECUTE format('DELETE FROM pgtrickle.%I WHERE outbox_id <= $1', ('outbox_delta_rows_' || s.pgt_name)::name) USING p_outbox_id;
    UPDATE pgtrickle.pgt_outbox_config SET last_drained_at = now(), last_drained_count = 1 WHERE stream_table_oid = s.pgt_id::oid;
END $fn$;

CREATE FUNCTION pgtrickle.create_consumer_group(p_name TEXT, p_outbox TEXT, p_auto_offset_reset TEXT DEFAULT 'latest') RETURNS void LANGUAGE plpgsql STRICT AS $fn$
BEGIN
    IF p_auto_offset_reset NOT IN ('earliest', 'latest') THEN
        RAISE EXCEPTION 'auto_offset_reset must be ''earliest'' or ''latest'', got: %', p_auto_offset_reset USING ERRCODE = 'internal_error';
    ELSIF EXISTS (SELECT FROM pgtrickle.pgt_consumer_groups WHERE group_name = p_name) THEN
        RAISE EXCEPTION 'consumer group already exists: %', p_name USING ERRCODE = 'internal_error';
    END IF;
    INSERT INTO pgtrickle.pgt_consumer_groups (group_name, outbox_name, auto_offset_reset) VALUES (p_name, p_outbox, p_auto_offset_reset);
END $fn$;

CREATE FUNCTION pgtrickle.commit_offset(p_group TEXT, p_consumer TEXT, p_last_offset BIGINT) RETURNS void LANGUAGE plpgsql STRICT AS $fn$
BEGIN
    IF NOT EXISTS (SELECT FROM pgtrickle.pgt_consumer_groups WHERE group_name = p_group) THEN
        RAISE EXCEPTION 'consumer group not found: %', p_group USING ERRCODE = 'internal_error';
    END IF;
    UPDATE pgtrickle.pgt_consumer_offsets SET committed_offset = p_last_offset, last_committed_at = now(), last_heartbeat_at = now() WHERE group_name = p_group AND consumer_id = p_consumer;
    DELETE FROM pgtrickle.pgt_consumer_leases WHERE group_name = p_group AND consumer_id = p_consumer;
END $fn$;

CREATE FUNCTION pgtrickle.create_inbox(p_name TEXT, p_schema TEXT DEFAULT 'pgtrickle', p_max_retries INT DEFAULT 3, p_schedule TEXT DEFAULT '1s',
    with_dead_letter BOOL DEFAULT true, with_stats BOOL DEFAULT true, p_retention_hours INT DEFAULT 72) RETURNS void LANGUAGE plpgsql STRICT AS $fn$
BEGIN
    IF EXISTS (SELECT FROM pgtrickle.pgt_inbox_config WHERE inbox_name = p_name) THEN
        RAISE EXCEPTION 'inbox already exists: %', p_name USING ERRCODE = 'internal_error';
    END IF;
    EXECUTE format('CREATE TABLE IF NOT EXISTS %I.%I (
        event_id TEXT NOT NULL PRIMARY KEY, event_type TEXT, source TEXT, aggregate_id TEXT, payload JSONB, received_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        processed_at TIMESTAMPTZ, error TEXT, retry_count INT NOT NULL DEFAULT 0, trace_id TEXT)', p_schema, p_name);
    INSERT INTO pgtrickle.pgt_inbox_config (inbox_name, inbox_schema, max_retries, schedule, with_dead_letter, with_stats, retention_hours)
        VALUES (p_name, p_schema, p_max_retries, p_schedule, create_inbox.with_dead_letter, create_inbox.with_stats, p_retention_hours);
END $fn$;

-- What the scheduler does after a refresh of a stream table: one outbox row with
-- all current rows, whatever changed (case A), or, above the threshold, a claim
-- check whose rows are in the delta table (case B). A differential refresh counts
-- deletes as inserts; p_truncate does not. Rows that the delta table refuses are lost
-- with a warning. Returns the outbox row's id.
CREATE FUNCTION pgtrickle.fixture_refresh(p_table REGCLASS, p_inserted BIGINT, p_deleted BIGINT, p_threshold BIGINT DEFAULT 10000, p_truncate BOOL DEFAULT false)
RETURNS BIGINT LANGUAGE plpgsql AS $fn$
DECLARE
    c  pgtrickle.pgt_outbox_config;
    id BIGINT;
    n  CONSTANT BIGINT[] := CASE WHEN p_truncate THEN ARRAY[0, p_deleted] ELSE ARRAY[p_inserted + p_deleted, 0] END;
BEGIN
    IF p_inserted = 0 AND p_deleted = 0 THEN
        RETURN NULL;
    END IF;
    SELECT o.* INTO STRICT c FROM pgtrickle.pgt_outbox_config o JOIN pgtrickle.pgt_stream_tables s ON s.pgt_id = o.stream_table_oid::bigint WHERE s.pgt_relid = p_table;
    IF p_inserted + p_deleted > p_threshold THEN
        EXECUTE format('INSERT INTO pgtrickle.%I (inserted_count, deleted_count, is_claim_check) VALUES ($1, $2, true) RETURNING id', c.outbox_table_name)
            INTO id USING n[1], n[2];
        BEGIN
            EXECUTE format('INSERT INTO pgtrickle.%I SELECT $1, ''INSERT'', row_to_json(t)::jsonb, row_number() OVER () FROM %s t',
                ('outbox_delta_rows_' || c.stream_table_name)::name, p_table) USING id;
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'claim-check delta rows were not written: %', SQLERRM;
        END;
    ELSE
        EXECUTE format('INSERT INTO pgtrickle.%I (inserted_count, deleted_count, payload)
            SELECT $1, $2, coalesce(json_agg(row_to_json(t)), ''[]'')::jsonb FROM %s t RETURNING id', c.outbox_table_name, p_table)
            INTO id USING n[1], n[2];
    END IF;
    PERFORM pg_notify('pgtrickle_outbox_new', c.outbox_table_name);
    RETURN id;
END $fn$;

-- A stream table of a query. Its row id is made of the whole row, as the extension does it
-- for queries without a key.
CREATE TABLE pgtrickle.fixture_queries (stream TEXT PRIMARY KEY, query TEXT NOT NULL);

CREATE FUNCTION pgtrickle.create_stream_table(name TEXT, query TEXT, schedule TEXT DEFAULT '1m', refresh_mode TEXT DEFAULT 'DIFFERENTIAL') RETURNS void LANGUAGE plpgsql AS $fn$
BEGIN
    query := format('SELECT hashtextextended(q::text, 0) AS __pgt_row_id, q.* FROM (%s) q', query);
    EXECUTE format('CREATE TABLE %s AS %s', name, query);
    INSERT INTO pgtrickle.fixture_queries VALUES (name, query);
    PERFORM pgtrickle.fixture_stream_table(name::regclass);
END $fn$;

CREATE FUNCTION pgtrickle.refresh_stream_table(p_name TEXT) RETURNS void LANGUAGE plpgsql AS $fn$
DECLARE
    source   TEXT := (SELECT query FROM pgtrickle.fixture_queries WHERE stream = p_name);
    inserted BIGINT;
    deleted  BIGINT;
BEGIN
    EXECUTE format('SELECT (SELECT count(*) FROM (%2$s EXCEPT ALL TABLE %1$s) i), (SELECT count(*) FROM (TABLE %1$s EXCEPT ALL %2$s) d)', p_name, source)
        INTO inserted, deleted;
    EXECUTE format('DELETE FROM %1$s; INSERT INTO %1$s %2$s', p_name, source);
    PERFORM pgtrickle.fixture_refresh(p_name::regclass, inserted, deleted,
        coalesce(current_setting('pg_trickle.outbox_inline_threshold_rows', true), '10000')::bigint);
END $fn$;

-- The event triggers run with the rights of the role that runs a command. CREATE TABLE alone
-- needs none.
CREATE FUNCTION pgtrickle.fixture_track() RETURNS event_trigger LANGUAGE plpgsql AS $fn$
BEGIN
    IF TG_EVENT = 'sql_drop' OR EXISTS (SELECT FROM pg_event_trigger_ddl_commands()
        WHERE command_tag <> 'CREATE TABLE' AND object_type IN ('table', 'view', 'function', 'trigger')) THEN
        PERFORM FROM pgtrickle.pgt_stream_tables, pgtrickle.pgt_dependencies;
        PERFORM FROM pgtrickle.pgt_outbox_config;
        IF to_regclass('pgtrickle.pgt_inbox_config') IS NOT NULL THEN
            PERFORM FROM pgtrickle.pgt_inbox_config;
        END IF;
    END IF;
END $fn$;
CREATE EVENT TRIGGER pg_trickle_ddl_tracker ON ddl_command_end EXECUTE FUNCTION pgtrickle.fixture_track();
CREATE EVENT TRIGGER pg_trickle_drop_tracker ON sql_drop WHEN TAG IN ('DROP TABLE') EXECUTE FUNCTION pgtrickle.fixture_track();

-- Membership in the extension.
SET LOCAL allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    SELECT max(oid::bigint) + 1, 'pg_trickle', current_user::regrole, 'pg_catalog'::regnamespace, false, '0.45.0' FROM pg_extension;
SET LOCAL allow_system_table_mods = off;
DO $do$ DECLARE member text; BEGIN
    FOR member IN
        SELECT format('TABLE %s', oid::regclass) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relkind = 'r'
        UNION ALL SELECT format('SEQUENCE %s', oid::regclass) FROM pg_class WHERE relnamespace = 'pgtrickle'::regnamespace AND relkind = 'S'
        UNION ALL SELECT format('FUNCTION %s', oid::regprocedure) FROM pg_proc WHERE pronamespace = 'pgtrickle'::regnamespace
        UNION ALL SELECT format('EVENT TRIGGER %I', evtname) FROM pg_event_trigger
        UNION ALL SELECT 'SCHEMA pgtrickle'
    LOOP
        EXECUTE 'ALTER EXTENSION pg_trickle ADD ' || member;
    END LOOP;
END $do$;
