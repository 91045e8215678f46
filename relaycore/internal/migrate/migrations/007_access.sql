-- What the role pgtrickle_relay may do: what a relay does, and nothing more.

-- +function pgtrickle._relay_may(text, text, oid): whether the relay's role has a privilege; on a column it is "UPDATE (column)"
CREATE OR REPLACE FUNCTION pgtrickle._relay_may(p_privilege text, p_kind text, p_object oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE
        WHEN p_kind = 'FUNCTION' THEN has_function_privilege('pgtrickle_relay', p_object, p_privilege)
        WHEN p_kind = 'SCHEMA' THEN has_schema_privilege('pgtrickle_relay', p_object, p_privilege)
        WHEN p_kind = 'SEQUENCE' THEN has_sequence_privilege('pgtrickle_relay', p_object, p_privilege)
        WHEN p_privilege LIKE '% (%)' THEN has_column_privilege('pgtrickle_relay', p_object,
            substring(p_privilege FROM '\((.*)\)'), substring(p_privilege FROM '^\w+'))
        ELSE has_table_privilege('pgtrickle_relay', p_object, p_privilege) END
$fn$;
-- +end

-- +function pgtrickle._relay_grant(text, text, oid): grants privileges on a relation to the relay's role, as far as the caller may; returns what could not be granted
CREATE OR REPLACE FUNCTION pgtrickle._relay_grant(p_privileges text, p_kind text, p_object oid) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    missing text[];
    object  text := CASE p_kind
        WHEN 'FUNCTION' THEN p_object::regprocedure::text
        WHEN 'SCHEMA' THEN p_object::regnamespace::text
        ELSE p_object::regclass::text END;
    statement text;
BEGIN
    SELECT array_agg(p) INTO missing FROM unnest(string_to_array(p_privileges, ', ')) p
    WHERE NOT pgtrickle._relay_may(p, p_kind, p_object);
    IF missing IS NULL THEN
        RETURN NULL;
    END IF;
    statement := format('GRANT %s ON %s %s TO pgtrickle_relay', array_to_string(missing, ', '), p_kind, object);
    BEGIN
        EXECUTE statement;
    EXCEPTION WHEN insufficient_privilege THEN
        RETURN statement;
    END;
    RETURN CASE WHEN NOT pgtrickle._relay_may(missing[1], p_kind, p_object) THEN statement END;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_grant_inbox(text, text): lets the relay write an inbox of the caller
CREATE OR REPLACE FUNCTION pgtrickle._relay_grant_inbox(p_schema text, p_table text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    refused text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgtrickle_relay') THEN
        RETURN;
    END IF;
    FOREACH refused IN ARRAY ARRAY[
        pgtrickle._relay_grant('USAGE', 'SCHEMA', to_regnamespace(quote_ident(p_schema))),
        pgtrickle._relay_grant('SELECT, INSERT', 'TABLE', to_regclass(format('%I.%I', p_schema, p_table)))]
    LOOP
        IF refused IS NOT NULL THEN
            RAISE WARNING 'the relay cannot write inbox %.% yet', p_schema, p_table USING HINT = 'Let the owner run: ' || refused;
        END IF;
    END LOOP;
END $fn$;
-- +end

-- +function pgtrickle.relay_grant_access(): gives the role pgtrickle_relay what a relay needs on everything that exists now; returns the statements that someone with more rights must run
CREATE OR REPLACE FUNCTION pgtrickle.relay_grant_access() RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgtrickle_relay') THEN
        RETURN NEXT 'CREATE ROLE pgtrickle_relay NOLOGIN';
        RETURN;
    END IF;
    RETURN QUERY SELECT s FROM (
        SELECT pgtrickle._relay_grant('USAGE', 'SCHEMA', to_regnamespace('pgtrickle'))
        UNION ALL
        SELECT pgtrickle._relay_grant(g.privileges, 'TABLE', to_regclass('pgtrickle.' || g.name)) FROM (VALUES
            ('relay_migrations', 'SELECT'), ('relay_backend_keys', 'SELECT'),
            ('relay_outbox_config', 'SELECT'), ('relay_inbox_config', 'SELECT'),
            ('relay_consumer_offsets', 'SELECT, INSERT, UPDATE'),
            ('relay_instances', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_cursors', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_outbox_identities', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_dead_letters', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_snapshots', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_snapshot_rows', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_snapshot_changes', 'SELECT, INSERT, UPDATE, DELETE'),
            ('relay_snapshot_requests', 'SELECT, UPDATE (finished_at), UPDATE (error)'), ('relay_snapshot_keys', 'SELECT, DELETE'),
            ('relay_outboxes', 'SELECT'), ('pgt_outbox_config', 'SELECT'), ('pgt_inbox_config', 'SELECT'),
            ('pgt_consumer_groups', 'SELECT'), ('pgt_consumer_offsets', 'SELECT')) g(name, privileges)
            WHERE to_regclass('pgtrickle.' || g.name) IS NOT NULL
        UNION ALL
        -- The extension's outbox_rows_consumed has the caller's rights.
        SELECT pgtrickle._relay_grant(g.privileges, 'TABLE', to_regclass('pgtrickle.' || g.name)) FROM (VALUES
            ('pgt_stream_tables', 'SELECT'),
            ('pgt_outbox_config', 'UPDATE (last_drained_at), UPDATE (last_drained_count)')) g(name, privileges)
            WHERE to_regclass('pgtrickle.pgt_stream_tables') IS NOT NULL AND to_regclass('pgtrickle.' || g.name) IS NOT NULL
        UNION ALL
        SELECT pgtrickle._relay_grant('EXECUTE', 'FUNCTION', p.oid) FROM pg_proc p
            WHERE p.pronamespace = to_regnamespace('pgtrickle')
              AND p.proname IN ('list_relay_configs', 'get_relay_config', 'outbox_rows_consumed', 'outbox_status', 'inbox_health', 'inbox_status',
                                'relay_dlq_list', 'relay_dlq_original', 'relay_retry', 'relay_dlq_retry', 'relay_dlq_discard', '_relay_outbox_table', '_relay_stream_oid', '_relay_outbox_status', '_relay_outbox_problems', '_relay_drop_partition')
    ) AS a(s) WHERE s IS NOT NULL;
    -- Retention is the relay's work on outboxes that we made, and pg_trickle's on its own.
    IF to_regclass('pgtrickle.pgt_outbox_config') IS NOT NULL THEN
        RETURN QUERY SELECT s FROM (
            SELECT pgtrickle._relay_grant(
                CASE WHEN obj_description(o.oid, 'pg_class') LIKE 'pgtrickle-relay:%' THEN 'SELECT, DELETE' ELSE 'SELECT' END, 'TABLE', o.oid)
                FROM pgtrickle.pgt_outbox_config c, to_regclass(format('pgtrickle.%I', c.outbox_table_name)) o(oid) WHERE o.oid IS NOT NULL
            UNION ALL
            -- Its last value tells a relay that an idle outbox needs no reading: of an
            -- identity column (deptype i) or a serial one (a).
            SELECT pgtrickle._relay_grant('SELECT', 'SEQUENCE', s.oid)
                FROM pgtrickle.pgt_outbox_config c
                JOIN pg_depend d ON d.refobjid = to_regclass(format('pgtrickle.%I', c.outbox_table_name))
                    AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
                JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
            UNION ALL
            SELECT pgtrickle._relay_grant(CASE WHEN to_regclass('pgtrickle.pgt_stream_tables') IS NULL THEN 'SELECT' ELSE 'SELECT, DELETE' END, 'TABLE', c.oid)
                FROM pg_class c
                WHERE c.relnamespace = to_regnamespace('pgtrickle') AND c.relkind IN ('r', 'p') AND c.relname LIKE 'outbox\_delta\_rows\_%'
        ) AS a(s) WHERE s IS NOT NULL;
    END IF;
    IF to_regclass('pgtrickle.pgt_inbox_config') IS NOT NULL THEN
        RETURN QUERY SELECT s FROM (
            SELECT pgtrickle._relay_grant('USAGE', 'SCHEMA', to_regnamespace(quote_ident(i.inbox_schema)))
                FROM (SELECT DISTINCT inbox_schema FROM pgtrickle.pgt_inbox_config) i WHERE to_regnamespace(quote_ident(i.inbox_schema)) IS NOT NULL
            UNION ALL
            SELECT pgtrickle._relay_grant('SELECT, INSERT', 'TABLE', t.oid)
                FROM pgtrickle.pgt_inbox_config i, pgtrickle._relay_find(i.inbox_schema, i.inbox_name) t(oid) WHERE t.oid IS NOT NULL
        ) AS a(s) WHERE s IS NOT NULL;
    END IF;
    PERFORM pgtrickle._relay_wake('');
END $fn$;
-- +end
