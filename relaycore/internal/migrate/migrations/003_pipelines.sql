-- Pipelines: the extension's functions with its signatures and error texts, and
-- the documented form set_relay_outbox('name', config => '{...}').
--
-- A pipeline belongs to the role that set it. As with outboxes (005), a SECURITY DEFINER
-- function cannot tell its caller. So the functions run as the caller and insert a row,
-- whose default names the caller, and a trigger does the work.

-- +table pgtrickle.relay_pipeline_owners: the role that a pipeline belongs to; without a row it belongs to the owner of the catalog
CREATE TABLE pgtrickle.relay_pipeline_owners (
    direction text NOT NULL,
    name      text NOT NULL,
    owner     text NOT NULL,
    PRIMARY KEY (direction, name)
);
-- +end

-- +table pgtrickle._relay_pipeline_requests: what roles ask of pipelines; a trigger does it at once, so no row is ever stored
CREATE TABLE pgtrickle._relay_pipeline_requests (
    caller    name NOT NULL DEFAULT current_user,
    action    text NOT NULL,
    direction text,
    name      text,
    enabled   boolean,
    config    jsonb,
    owner     text,
    CONSTRAINT caller_must_be_current_user CHECK (false)
);
GRANT INSERT ON pgtrickle._relay_pipeline_requests TO PUBLIC; -- the trigger checks the caller
-- +end
ALTER TABLE pgtrickle._relay_pipeline_requests ADD COLUMN IF NOT EXISTS new_name text;
ALTER TABLE pgtrickle._relay_pipeline_requests ADD COLUMN IF NOT EXISTS keys text[];

-- The lock keeps relays from starting the pipeline before the transaction ends. Its identity
-- moves with its cursor, so its deliveries keep their ids.

-- +function pgtrickle._relay_rename(text, text): renames the pipelines of a name, with all that is stored under it
CREATE OR REPLACE FUNCTION pgtrickle._relay_rename(p_name text, p_new text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    c record;
BEGIN
    IF coalesce(p_new, '') = '' THEN
        RAISE EXCEPTION 'relay: the new name must not be empty' USING ERRCODE = 'invalid_parameter_value';
    ELSIF EXISTS (SELECT FROM pgtrickle.relay_outbox_config o WHERE o.name = p_new)
       OR EXISTS (SELECT FROM pgtrickle.relay_inbox_config i WHERE i.name = p_new) THEN
        RAISE EXCEPTION 'relay: pipeline "%" exists already', p_new USING ERRCODE = 'unique_violation';
    ELSIF EXISTS (SELECT FROM pgtrickle.relay_cursors r WHERE r.pipeline = p_new) THEN
        RAISE EXCEPTION 'relay: a deleted pipeline "%" has left its checkpoint', p_new USING ERRCODE = 'unique_violation',
            HINT = format('Choose another name, or drop what it left: DELETE FROM pgtrickle.relay_cursors WHERE pipeline = %L', p_new);
    END IF;
    FOR c IN SELECT r.relay_group_id, r.direction, r.owner FROM pgtrickle.relay_cursors r WHERE r.pipeline = p_name LOOP
        IF NOT pg_try_advisory_xact_lock(hashtext(c.relay_group_id), hashtext(CASE c.direction WHEN 'reverse' THEN 'reverse:' ELSE '' END || p_name)) THEN
            RAISE EXCEPTION 'relay: pipeline "%" runs on %', p_name, c.owner USING ERRCODE = 'object_in_use',
                HINT = format('SELECT pgtrickle.disable_relay(%L); rename it once status shows that it is stopped; and enable it again.', p_name);
        END IF;
    END LOOP;

    INSERT INTO pgtrickle.relay_outbox_config (name, enabled, config) SELECT p_new, o.enabled, o.config FROM pgtrickle.relay_outbox_config o WHERE o.name = p_name;
    INSERT INTO pgtrickle.relay_inbox_config (name, enabled, config) SELECT p_new, i.enabled, i.config FROM pgtrickle.relay_inbox_config i WHERE i.name = p_name;
    DELETE FROM pgtrickle.relay_outbox_config o WHERE o.name = p_name;
    DELETE FROM pgtrickle.relay_inbox_config i WHERE i.name = p_name;
    UPDATE pgtrickle.relay_pipeline_owners SET name = p_new WHERE name = p_name;
    UPDATE pgtrickle.relay_cursors SET pipeline = p_new WHERE pipeline = p_name;
    UPDATE pgtrickle.relay_consumer_offsets SET pipeline_id = p_new WHERE pipeline_id = p_name;
    UPDATE pgtrickle.relay_dead_letters SET pipeline = p_new WHERE pipeline = p_name;
    UPDATE pgtrickle.relay_snapshots SET pipeline = p_new WHERE pipeline = p_name;
    UPDATE pgtrickle.relay_snapshot_requests SET pipeline = p_new WHERE pipeline = p_name;
END $fn$;
-- +end

-- +function pgtrickle._relay_refuse_rename(): refuses to rename a pipeline in its table alone, as its checkpoint would stay behind
CREATE OR REPLACE FUNCTION pgtrickle._relay_refuse_rename() RETURNS trigger
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    RAISE EXCEPTION 'relay: pipeline "%" would lose its checkpoint', OLD.name USING ERRCODE = 'restrict_violation',
        HINT = format('SELECT pgtrickle.rename_relay(%L, %L) renames it with all that is stored.', OLD.name, NEW.name);
END $fn$;
-- +end

-- +trigger relay_outbox_config_rename on pgtrickle.relay_outbox_config
CREATE TRIGGER relay_outbox_config_rename BEFORE UPDATE OF name ON pgtrickle.relay_outbox_config
    FOR EACH ROW WHEN (NEW.name IS DISTINCT FROM OLD.name) EXECUTE FUNCTION pgtrickle._relay_refuse_rename();
-- +end

-- +trigger relay_inbox_config_rename on pgtrickle.relay_inbox_config
CREATE TRIGGER relay_inbox_config_rename BEFORE UPDATE OF name ON pgtrickle.relay_inbox_config
    FOR EACH ROW WHEN (NEW.name IS DISTINCT FROM OLD.name) EXECUTE FUNCTION pgtrickle._relay_refuse_rename();
-- +end

-- +function pgtrickle._relay_config_name(jsonb, text[]): the value of the first of some keys that a configuration has, at its top or in an object of it
CREATE OR REPLACE FUNCTION pgtrickle._relay_config_name(p_config jsonb, p_keys text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT o.object ->> k.key FROM unnest(p_keys) WITH ORDINALITY AS k(key, n),
        (VALUES (1, p_config), (2, p_config -> 'source'), (3, p_config -> 'sink')) AS o(n, object)
        WHERE jsonb_typeof(o.object) = 'object' AND o.object ->> k.key <> '' ORDER BY o.n, k.n LIMIT 1
$fn$;
-- +end

-- +function pgtrickle._relay_may_use(name, text, jsonb): what keeps a role from the outbox or inbox that a configuration names, null if nothing does
-- The relay resolves names by rules of its own. So each table that a name could mean must be
-- the role's to use.
CREATE OR REPLACE FUNCTION pgtrickle._relay_may_use(p_caller name, p_direction text, p_config jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    named  text := pgtrickle._relay_config_name(p_config, CASE p_direction WHEN 'forward' THEN '{stream_table,outbox}' ELSE '{inbox_table,inbox}' END::text[]);
    wanted constant text := CASE p_direction WHEN 'forward' THEN 'SELECT' ELSE 'INSERT' END;
    space  text := coalesce(pgtrickle._relay_config_name(p_config, '{inbox_schema,schema}'), 'pgtrickle');
    dot    integer := strpos(named, '.');
    usable boolean;
BEGIN
    IF named IS NULL THEN
        RETURN NULL; -- which the check of the keys refuses
    ELSIF named ~ '["$]' OR space ~ '["$]' THEN
        RETURN format('%s must be written as schema.table, without quotes and references', quote_literal(named));
    ELSIF p_direction = 'reverse' THEN
        SELECT bool_and(has_table_privilege(p_caller, c.oid, wanted)) INTO usable FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE (n.nspname = space AND c.relname = named)
               OR (dot > 0 AND n.nspname = left(named, dot - 1) AND c.relname = substr(named, dot + 1));
    ELSE
        -- A bare name is taken as that of an outbox alone: it could come to mean another table later.
        SELECT bool_and(has_table_privilege(p_caller, c.oid, wanted) OR pg_has_role(p_caller, s.relowner, 'USAGE') IS TRUE) INTO usable
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN LATERAL pgtrickle._relay_stream_of(CASE n.nspname WHEN 'pgtrickle' THEN c.relname::text END) AS o(stream) ON true
            LEFT JOIN pg_class s ON s.oid = o.stream LEFT JOIN pg_namespace sn ON sn.oid = s.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (
                (dot = 0 AND n.nspname = 'pgtrickle' AND c.relname = named AND o.stream IS NOT NULL)
                OR (dot = 0 AND n.nspname = 'pgtrickle' AND c.relname = named AND c.relname LIKE 'outbox\_%')
                OR (dot > 0 AND n.nspname = left(named, dot - 1) AND c.relname = substr(named, dot + 1))
                OR (dot > 0 AND sn.nspname = left(named, dot - 1) AND s.relname = substr(named, dot + 1)));
    END IF;
    RETURN CASE
        WHEN usable IS NULL AND dot = 0 AND p_direction = 'forward' THEN format('there is no outbox %s: name the table as schema.table', quote_literal(named))
        WHEN usable IS NULL THEN format('there is no table %s', quote_literal(named))
        WHEN NOT usable THEN format('role %I has no %s on %s', p_caller, wanted, quote_literal(named)) END;
END $fn$;
-- +end

-- +function pgtrickle._relay_config_warnings(text, text, jsonb): what is odd about a configuration, although a relay may run it
CREATE OR REPLACE FUNCTION pgtrickle._relay_config_warnings(p_direction text, p_name text, p_config jsonb) RETURNS SETOF text
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    named constant text := pgtrickle._relay_config_name(p_config, '{stream_table,outbox}');
    file  constant text := pgtrickle._relay_config_name(p_config, '{path,output,stdout_path,stdout_output,file_path,file_output}');
    known boolean;
    item  record;
BEGIN
    IF p_direction = 'forward' AND named !~ '["$]' THEN
        BEGIN
            known := pgtrickle._relay_outbox_table(named) IS NOT NULL;
        EXCEPTION WHEN ambiguous_alias THEN
            known := true; -- the relay reports it
        END;
        IF NOT known AND NOT EXISTS (
            SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
              AND (c.relname = named OR n.nspname || '.' || c.relname = named)) THEN
            RETURN NEXT format('key "stream_table": there is no outbox or table "%s" yet', named);
        END IF;
    END IF;

    FOR item IN
        SELECT o.prefix || e.key AS key, e.value
        FROM (VALUES ('', p_config), ('sink.', p_config -> 'sink'), ('source.', p_config -> 'source')) AS o(prefix, object),
            jsonb_each(CASE WHEN jsonb_typeof(o.object) = 'object' THEN o.object ELSE '{}' END) e
        WHERE jsonb_typeof(e.value) <> 'object' OR e.key NOT IN ('sink', 'source') ORDER BY 1
    LOOP
        RETURN QUERY SELECT format('key "%s": "%s...}" is no reference and stays as it is; there are ${env:NAME} and ${file:/path}', item.key, m.found[1])
            FROM regexp_matches(item.value::text, '([$][{](?!(?:env|ENV|file):)[A-Za-z_]+:)') AS m(found);
        RETURN QUERY SELECT format('key "%s": is %s; more than %s has no use', item.key, item.value, l.most)
            FROM (VALUES ('(batch_size|batch_messages|max_in_flight|max_ack_pending|prefetch|prefetch_count)$', 1000000),
                         ('(concurrency|max_connections)$', 10000)) AS l(keys, most)
            WHERE jsonb_typeof(item.value) = 'number' AND item.key ~ l.keys AND (item.value #>> '{}')::numeric > l.most;
    END LOOP;

    RETURN QUERY SELECT format('pipeline "%s" writes into the same file', c.name) FROM pgtrickle.relay_outbox_config c
        WHERE p_direction = 'forward' AND c.name <> p_name AND file !~ '^(-|/dev/.*)$'
          AND pgtrickle._relay_config_name(c.config, '{path,output,stdout_path,stdout_output,file_path,file_output}') = file;
END $fn$;
-- +end

-- +function pgtrickle._relay_stream_of(text): the table whose changes an outbox of ours records, null where there is none
CREATE OR REPLACE FUNCTION pgtrickle._relay_stream_of(p_outbox text) RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF p_outbox IS NULL OR to_regclass('pgtrickle.relay_outboxes') IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN pgtrickle._relay_stream_oid(p_outbox);
END $fn$;
-- +end

-- +function pgtrickle._relay_pipeline_request(): does what a row of _relay_pipeline_requests asks for, if the pipeline is its caller's
CREATE OR REPLACE FUNCTION pgtrickle._relay_pipeline_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    all_of constant boolean := pg_has_role(NEW.caller, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE');
    fn     constant text := CASE NEW.action WHEN 'set' THEN CASE NEW.direction WHEN 'forward' THEN 'set_relay_outbox' ELSE 'set_relay_inbox' END
                            WHEN 'enable' THEN CASE WHEN NEW.enabled THEN 'enable_relay' ELSE 'disable_relay' END
                            WHEN 'delete' THEN 'delete_relay' WHEN 'give' THEN 'relay_pipeline_owner' WHEN 'rename' THEN 'rename_relay'
                            WHEN 'cancel snapshot' THEN 'relay_snapshot_cancel' WHEN 'snapshot' THEN 'relay_snapshot' WHEN 'snapshot keys' THEN 'relay_snapshot' END;
    p      record;
    refused text;
    warning text;
    found_any boolean := false;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_proc f WHERE f.pronamespace = to_regnamespace('pgtrickle') AND f.proname = fn
                     AND has_function_privilege(NEW.caller, f.oid, 'EXECUTE')) THEN
        RAISE EXCEPTION 'permission denied for function %', coalesce(fn, NEW.action) USING ERRCODE = 'insufficient_privilege';
    END IF;
    FOR p IN
        SELECT c.direction, c.config, o.owner, r.oid AS owner_oid FROM (
            SELECT 'forward', f.name, f.config FROM pgtrickle.relay_outbox_config f UNION ALL SELECT 'reverse', f.name, f.config FROM pgtrickle.relay_inbox_config f) c(direction, name, config)
            LEFT JOIN pgtrickle.relay_pipeline_owners o ON o.direction = c.direction AND o.name = c.name LEFT JOIN pg_roles r ON r.rolname = o.owner
            WHERE c.name = NEW.name ORDER BY c.direction IS DISTINCT FROM NEW.direction
    LOOP
        -- A new pipeline may not have the name of a stranger's in the other direction, for
        -- the other actions are for both of them.
        EXIT WHEN NEW.action = 'set' AND found_any;
        found_any := NEW.action <> 'set' OR p.direction = NEW.direction;
        IF NOT all_of AND pg_has_role(NEW.caller, p.owner_oid, 'USAGE') IS NOT TRUE THEN
            RAISE EXCEPTION 'pipeline "%" belongs to %', NEW.name, coalesce('role ' || p.owner, 'the owner of schema pgtrickle') USING ERRCODE = 'insufficient_privilege',
                HINT = format('Let it run SELECT pgtrickle.relay_pipeline_owner(%L, %L).', NEW.name, NEW.caller);
        END IF;
        IF NOT all_of AND NEW.action = 'enable' AND NEW.enabled THEN
            refused := pgtrickle._relay_may_use(NEW.caller, p.direction, p.config);
        END IF;
    END LOOP;
    IF NEW.action = 'set' AND NOT all_of THEN
        refused := pgtrickle._relay_may_use(NEW.caller, NEW.direction, NEW.config);
    ELSIF NEW.action <> 'set' AND NOT found_any THEN
        RAISE EXCEPTION 'relay: pipeline "%" not found', NEW.name USING ERRCODE = 'no_data_found';
    END IF;
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION 'pipeline "%": %', NEW.name, refused USING ERRCODE = 'insufficient_privilege';
    END IF;

    CASE NEW.action
        WHEN 'set' THEN
            PERFORM pgtrickle._relay_check_config(NEW.direction, NEW.name,
                CASE WHEN NEW.enabled IS NULL THEN NEW.config -- the flat form; the other one has the type twice
                     WHEN NEW.direction = 'forward' THEN NEW.config - 'sink_type' ELSE NEW.config - 'source_type' END);
            FOR warning IN SELECT w FROM pgtrickle._relay_config_warnings(NEW.direction, NEW.name, NEW.config) w LOOP
                RAISE WARNING 'pipeline "%": %', NEW.name, warning;
            END LOOP;
            EXECUTE format('INSERT INTO pgtrickle.%I AS c (name, enabled, config) VALUES ($1, coalesce($2, false), $3)
                ON CONFLICT (name) DO UPDATE SET enabled = coalesce($2, c.enabled), config = excluded.config',
                CASE NEW.direction WHEN 'forward' THEN 'relay_outbox_config' ELSE 'relay_inbox_config' END)
                USING NEW.name, NEW.enabled, CASE NEW.direction WHEN 'forward' THEN pgtrickle._relay_with_tombstones(NEW.name, NEW.config) ELSE pgtrickle._relay_with_id_scope(NEW.name, NEW.config) END;
            IF NOT found_any THEN
                INSERT INTO pgtrickle.relay_pipeline_owners AS o (direction, name, owner) VALUES (NEW.direction, NEW.name, NEW.caller)
                    ON CONFLICT (direction, name) DO UPDATE SET owner = excluded.owner;
            END IF;
        WHEN 'enable' THEN
            UPDATE pgtrickle.relay_outbox_config SET enabled = NEW.enabled WHERE name = NEW.name;
            UPDATE pgtrickle.relay_inbox_config SET enabled = NEW.enabled WHERE name = NEW.name;
        WHEN 'delete' THEN
            DELETE FROM pgtrickle.relay_outbox_config WHERE name = NEW.name;
            DELETE FROM pgtrickle.relay_inbox_config WHERE name = NEW.name;
            DELETE FROM pgtrickle.relay_pipeline_owners WHERE name = NEW.name;
            DELETE FROM pgtrickle.relay_snapshot_requests WHERE pipeline = NEW.name;
        WHEN 'snapshot' THEN
            PERFORM pgtrickle._relay_request_snapshot(NEW.name, NEW.caller, NEW.enabled);
        WHEN 'snapshot keys' THEN
            PERFORM pgtrickle._relay_add_snapshot_keys(NEW.name, NEW.caller, NEW.keys);
        WHEN 'cancel snapshot' THEN
            PERFORM pgtrickle._relay_cancel_snapshot(NEW.name, NEW.caller);
        WHEN 'rename' THEN
            PERFORM pgtrickle._relay_rename(NEW.name, NEW.new_name);
        WHEN 'give' THEN
            IF NOT all_of AND NOT pg_has_role(NEW.caller, NEW.owner, 'USAGE') THEN
                RAISE EXCEPTION 'must be a member of role %', NEW.owner USING ERRCODE = 'insufficient_privilege';
            END IF;
            INSERT INTO pgtrickle.relay_pipeline_owners AS o (direction, name, owner)
                SELECT d.direction, NEW.name, r.rolname FROM pg_roles r, (
                    SELECT 'forward' FROM pgtrickle.relay_outbox_config WHERE name = NEW.name
                    UNION ALL SELECT 'reverse' FROM pgtrickle.relay_inbox_config WHERE name = NEW.name) d(direction) WHERE r.rolname = NEW.owner
                ON CONFLICT (direction, name) DO UPDATE SET owner = excluded.owner;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'role % does not exist', NEW.owner USING ERRCODE = 'undefined_object';
            END IF;
    END CASE;
    RETURN NULL;
END $fn$;
-- +end

-- +trigger _relay_pipeline_request on pgtrickle._relay_pipeline_requests
CREATE TRIGGER _relay_pipeline_request BEFORE INSERT ON pgtrickle._relay_pipeline_requests
    FOR EACH ROW WHEN (NEW.caller = current_user) EXECUTE FUNCTION pgtrickle._relay_pipeline_request();
ALTER TABLE pgtrickle._relay_pipeline_requests ENABLE ALWAYS TRIGGER _relay_pipeline_request;
-- +end

-- +function pgtrickle._relay_mask(jsonb, boolean): a configuration with *** for its secrets; references to secrets stay
CREATE OR REPLACE FUNCTION pgtrickle._relay_mask(p_value jsonb, p_secret boolean DEFAULT false) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
BEGIN
    RETURN CASE jsonb_typeof(p_value)
        WHEN 'object' THEN coalesce((SELECT jsonb_object_agg(e.key,
            pgtrickle._relay_mask(e.value, p_secret OR e.key ~* 'pass|secret|token|headers|cred|url|endpoint|tls_key|private'))
            FROM jsonb_each(p_value) e), '{}')
        WHEN 'array' THEN coalesce((SELECT jsonb_agg(pgtrickle._relay_mask(e.value, p_secret) ORDER BY e.n)
            FROM jsonb_array_elements(p_value) WITH ORDINALITY AS e(value, n)), '[]')
        WHEN 'string' THEN CASE WHEN p_secret AND p_value #>> '{}' !~ '^[$][{](env|file):[^}]*[}]$' THEN '"***"' ELSE p_value END
        ELSE p_value END;
END $fn$;
-- +end

-- The pipelines that the current role may read: its own, or all with SELECT on the tables.
-- Current_user in a view is the role that queries it. The extension's tables get no view,
-- which would stand in the way of its updates.
DO $do$
BEGIN
    IF pgtrickle._relay_claim('function', 'pgtrickle.list_relay_configs()', false) THEN
        CREATE OR REPLACE VIEW pgtrickle.relay_pipelines WITH (security_barrier) AS
            SELECT c.name, c.direction, c.enabled, c.config, o.owner FROM (
                SELECT f.name, 'forward'::text AS direction, f.enabled, f.config FROM pgtrickle.relay_outbox_config f
                UNION ALL SELECT f.name, 'reverse'::text, f.enabled, f.config FROM pgtrickle.relay_inbox_config f) c
            LEFT JOIN pgtrickle.relay_pipeline_owners o USING (direction, name) LEFT JOIN pg_catalog.pg_roles r ON r.rolname = o.owner
            WHERE has_table_privilege('pgtrickle.relay_outbox_config', 'SELECT') OR pg_has_role(r.oid, 'USAGE');
        COMMENT ON VIEW pgtrickle.relay_pipelines IS 'pgtrickle-relay: the pipelines that the current role may read';
        GRANT SELECT ON pgtrickle.relay_pipelines TO PUBLIC;
    END IF;
END $do$;

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
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
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
    INSERT INTO pgtrickle._relay_pipeline_requests (action, direction, name, enabled, config) VALUES ('set', 'forward', p_name, coalesce(p_enabled, true), stored);
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

-- Kafka pipelines from before kafka_tombstones write none.

-- +function pgtrickle._relay_with_tombstones(text, jsonb): adds the kafka_tombstones that a pipeline to Kafka has, or auto for a new one
CREATE OR REPLACE FUNCTION pgtrickle._relay_with_tombstones(p_name text, p_config jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT p_config || CASE
        WHEN coalesce(p_config ->> 'sink_type', p_config #>> '{sink,type}') IS DISTINCT FROM 'kafka'
             OR p_config ? 'kafka_tombstones' OR coalesce(p_config -> 'sink' ?| '{tombstones,kafka_tombstones}', false) THEN '{}'
        ELSE jsonb_build_object('kafka_tombstones', coalesce(
            (SELECT coalesce(c.config ->> 'kafka_tombstones', c.config #>> '{sink,tombstones}', 'never')
             FROM pgtrickle.relay_outbox_config c WHERE c.name = p_name), 'auto')) END
$fn$;
-- +end

-- +function pgtrickle.set_relay_inbox(text, text, jsonb, integer, text, boolean, integer, boolean): creates or replaces a reverse pipeline
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_inbox(
    p_name text, p_inbox text, p_source jsonb, p_max_retries integer DEFAULT 3, p_schedule text DEFAULT '1s',
    p_with_dead_letter boolean DEFAULT true, p_retention_hours integer DEFAULT 24, p_enabled boolean DEFAULT true
) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
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
    INSERT INTO pgtrickle._relay_pipeline_requests (action, direction, name, enabled, config) VALUES ('set', 'reverse', p_name, coalesce(p_enabled, true), stored);
END $fn$;
-- +end

-- A new pipeline waits for enable_relay; an existing one keeps its state.

-- +function pgtrickle.set_relay_outbox(text, jsonb): creates or replaces a forward pipeline; a new one is disabled
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_outbox(p_name text, config jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, direction, name, config) VALUES ('set', 'forward', p_name, set_relay_outbox.config);
END $fn$;
-- +end

-- +function pgtrickle.set_relay_inbox(text, jsonb): creates or replaces a reverse pipeline; a new one is disabled
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_inbox(p_name text, config jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, direction, name, config) VALUES ('set', 'reverse', p_name, set_relay_inbox.config);
END $fn$;
-- +end

-- +function pgtrickle.enable_relay(text): starts the pipelines of a name
CREATE OR REPLACE FUNCTION pgtrickle.enable_relay(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, enabled) VALUES ('enable', p_name, true);
END $fn$;
-- +end

-- +function pgtrickle.disable_relay(text): stops the pipelines of a name
CREATE OR REPLACE FUNCTION pgtrickle.disable_relay(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, enabled) VALUES ('enable', p_name, false);
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
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name) VALUES ('delete', p_name);
END $fn$;
-- +end

-- +function pgtrickle.rename_relay(text, text): renames the pipelines of a name, with their checkpoints and dead letters
CREATE OR REPLACE FUNCTION pgtrickle.rename_relay(p_name text, p_new_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, new_name) VALUES ('rename', p_name, p_new_name);
END $fn$;
-- +end

-- +function pgtrickle.relay_pipeline_owner(text, text): gives the pipelines of a name to a role
CREATE OR REPLACE FUNCTION pgtrickle.relay_pipeline_owner(p_name text, p_role text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, owner) VALUES ('give', p_name, p_role);
END $fn$;
-- +end

-- A snapshot of a running pipeline. A condition is evaluated in the statement of the role
-- that calls relay_snapshot, with its rights, settings and search path, under its row level
-- security. What travels from there to the relay is a list of primary keys: neither the
-- relay nor the table's owner ever sees the condition.

-- +function pgtrickle._relay_snapshot_table(text): the table whose rows a snapshot of a pipeline reads, null without one
CREATE OR REPLACE FUNCTION pgtrickle._relay_snapshot_table(p_name text) RETURNS regclass
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF to_regprocedure('pgtrickle._relay_rows_function(text)') IS NULL THEN
        RETURN NULL; -- the extension's outboxes record the changes of stream tables
    END IF;
    RETURN (SELECT pgtrickle._relay_stream_oid(pgtrickle._relay_outbox_table(pgtrickle._relay_config_name(c.config, '{stream_table,outbox}')))
            FROM pgtrickle.relay_outbox_config c WHERE c.name = p_name);
END $fn$;
-- +end

-- +function pgtrickle._relay_snapshot_runs(text): whether a snapshot of a pipeline runs, or waits for its relay
CREATE OR REPLACE FUNCTION pgtrickle._relay_snapshot_runs(p_name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT EXISTS (SELECT FROM pgtrickle.relay_snapshot_requests r WHERE r.pipeline = p_name AND r.finished_at IS NULL AND NOT r.cancels)
        OR EXISTS (SELECT FROM pgtrickle.relay_cursors c WHERE c.pipeline = p_name AND c.direction = 'forward' AND c.checkpoint ? 'backfill')
$fn$;
-- +end

-- +function pgtrickle._relay_request_snapshot(text, name, boolean): stores a request for the rows of a pipeline's table, or for some of them
CREATE OR REPLACE FUNCTION pgtrickle._relay_request_snapshot(p_name text, p_caller name, p_some boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    t       regclass := pgtrickle._relay_snapshot_table(p_name);
    refusal record;
BEGIN
    IF t IS NULL THEN
        RAISE EXCEPTION 'relay: pipeline "%" has no captured table to read', p_name USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'A snapshot needs an outbox that enable_outbox of the relay made.';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('pgtrickle relay snapshot'), hashtext(p_name));
    IF pgtrickle._relay_snapshot_runs(p_name) THEN
        RAISE EXCEPTION 'relay: a snapshot of pipeline "%" runs already', p_name USING ERRCODE = 'object_in_use',
            HINT = format('status shows how far it is; SELECT pgtrickle.relay_snapshot_cancel(%L) ends it.', p_name);
    END IF;
    SELECT f.problem, f.cure INTO refusal FROM pgtrickle.relay_outbox_config c,
        pgtrickle._relay_rows_function(pgtrickle._relay_outbox_table(pgtrickle._relay_config_name(c.config, '{stream_table,outbox}'))) f WHERE c.name = p_name;
    IF refusal.cure NOT LIKE 'GRANT %' THEN -- the rights that count are the relay's, which checks them
        RAISE EXCEPTION 'relay: no snapshot of pipeline "%": %', p_name, refusal.problem USING ERRCODE = 'object_not_in_prerequisite_state', HINT = refusal.cure;
    END IF;
    DELETE FROM pgtrickle.relay_snapshot_requests WHERE pipeline = p_name AND finished_at IS NOT NULL;
    INSERT INTO pgtrickle.relay_snapshot_requests (pipeline, requested_by, rows) VALUES (p_name, p_caller, CASE WHEN p_some THEN 0 END);
    PERFORM pgtrickle._relay_notify_snapshot(p_name);
END $fn$;
-- +end

-- +function pgtrickle._relay_add_snapshot_keys(text, name, text[]): adds keys to the request that the same transaction made
CREATE OR REPLACE FUNCTION pgtrickle._relay_add_snapshot_keys(p_name text, p_caller name, p_keys text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    max_rows constant bigint := 10000000;
    added    constant integer := array_length(p_keys, 1);
    r        record;
BEGIN
    UPDATE pgtrickle.relay_snapshot_requests q SET rows = q.rows + added
        WHERE q.pipeline = p_name AND q.requested_by = p_caller AND q.in_xid = pg_current_xact_id() AND q.rows IS NOT NULL AND q.finished_at IS NULL AND NOT q.cancels
        RETURNING q.id, q.rows INTO r;
    IF NOT FOUND OR array_ndims(p_keys) IS DISTINCT FROM 2 OR added > 1000 THEN
        RAISE EXCEPTION 'relay: keys of a snapshot come from relay_snapshot alone' USING ERRCODE = 'insufficient_privilege';
    ELSIF r.rows > max_rows THEN
        RAISE EXCEPTION 'relay: the condition selects more than % rows', max_rows USING ERRCODE = 'program_limit_exceeded',
            HINT = 'Select fewer, or leave the condition out: then no keys are stored.';
    END IF;
    INSERT INTO pgtrickle.relay_snapshot_keys (request, block, keys)
        SELECT r.id, coalesce(max(k.block) + 1, 0), p_keys FROM pgtrickle.relay_snapshot_keys k WHERE k.request = r.id;
END $fn$;
-- +end

-- +function pgtrickle._relay_cancel_snapshot(text, name): stores a request to end the snapshot of a pipeline
CREATE OR REPLACE FUNCTION pgtrickle._relay_cancel_snapshot(p_name text, p_caller name) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('pgtrickle relay snapshot'), hashtext(p_name));
    IF NOT pgtrickle._relay_snapshot_runs(p_name) THEN
        RAISE EXCEPTION 'relay: no snapshot of pipeline "%" runs', p_name USING ERRCODE = 'no_data_found';
    END IF;
    UPDATE pgtrickle.relay_snapshot_requests SET finished_at = now(), error = 'cancelled' WHERE pipeline = p_name AND finished_at IS NULL;
    INSERT INTO pgtrickle.relay_snapshot_requests (pipeline, requested_by, cancels) VALUES (p_name, p_caller, true);
    PERFORM pgtrickle._relay_notify_snapshot(p_name);
END $fn$;
-- +end

-- +function pgtrickle._relay_notify_snapshot(text): tells running relays that a pipeline has another request
CREATE OR REPLACE FUNCTION pgtrickle._relay_notify_snapshot(p_name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pg_notify('pgtrickle_relay_config', json_build_object('direction', 'relay_outbox_config', 'event', 'UPDATE', 'name', p_name, 'enabled', true)::text)
$fn$;
-- +end

-- +function pgtrickle._relay_key_text(anyelement): a value of a key as text that does not depend on the session's settings
CREATE OR REPLACE FUNCTION pgtrickle._relay_key_text(p_value anyelement) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, MDY' SET "IntervalStyle" = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = '1' SET lc_monetary = 'C' SET quote_all_identifiers = 'off' AS $fn$
BEGIN
    RETURN format('%s', p_value);
END $fn$;
-- +end

-- +function pgtrickle.relay_snapshot(text, text): sends the rows of a pipeline's table again, or those that a condition selects with the caller's rights; returns their number, null for all
-- It has no search path of its own: the condition is the caller's.
CREATE OR REPLACE FUNCTION pgtrickle.relay_snapshot(p_name text, p_where text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql AS $fn$
DECLARE
    t        pg_catalog.regclass;
    rel      pg_catalog.text;
    keys     pg_catalog.text;
    selected pg_catalog.int8;
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, enabled) VALUES ('snapshot', p_name, p_where IS NOT NULL);
    IF p_where IS NULL THEN
        RETURN NULL;
    END IF;
    t := pgtrickle._relay_snapshot_table(p_name);
    SELECT pg_catalog.format('%s%I.%I', CASE WHEN c.relkind OPERATOR(pg_catalog.=) 'p' THEN '' ELSE 'ONLY ' END, n.nspname, c.relname) INTO rel
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace WHERE c.oid OPERATOR(pg_catalog.=) t::pg_catalog.oid;
    SELECT pg_catalog.string_agg(pg_catalog.format(CASE WHEN pg_catalog.cardinality(pgtrickle._relay_text_settings(t)) OPERATOR(pg_catalog.=) 0
               THEN 'pg_catalog.format(''%%s'', %I)' ELSE 'pgtrickle._relay_key_text(%I)' END, k.attname), ', ' ORDER BY k.pos) INTO keys
        FROM pgtrickle._relay_key_columns(t) k;
    EXECUTE pg_catalog.format($q$
        INSERT INTO pgtrickle._relay_pipeline_requests (action, name, keys)
        SELECT 'snapshot keys', %L, pg_catalog.array_agg(k.key) FROM (
            SELECT ARRAY[%s] AS key, (pg_catalog.row_number() OVER () OPERATOR(pg_catalog.-) 1) OPERATOR(pg_catalog./) 1000 AS block FROM %s WHERE (%s
            )) k GROUP BY k.block$q$, p_name, keys, rel, p_where);
    RETURN pgtrickle._relay_snapshot_rows(p_name);
END $fn$;
-- +end

-- +function pgtrickle._relay_snapshot_rows(text): how many rows the newest request for a pipeline selects
CREATE OR REPLACE FUNCTION pgtrickle._relay_snapshot_rows(p_name text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT r.rows FROM pgtrickle.relay_snapshot_requests r WHERE r.pipeline = p_name ORDER BY r.id DESC LIMIT 1
$fn$;
-- +end

-- +function pgtrickle.relay_snapshot_cancel(text): ends the snapshot of a pipeline; what was sent stays
CREATE OR REPLACE FUNCTION pgtrickle.relay_snapshot_cancel(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name) VALUES ('cancel snapshot', p_name);
END $fn$;
-- +end

-- +function pgtrickle.get_relay_config(text): the caller's pipelines of a name, one for each direction, with their secrets
CREATE OR REPLACE FUNCTION pgtrickle.get_relay_config(p_name text)
RETURNS TABLE (name text, direction text, enabled boolean, config jsonb)
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT c.name, c.direction, c.enabled, c.config FROM pgtrickle.relay_pipelines c WHERE c.name = p_name ORDER BY 2;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'relay: pipeline "%" not found', p_name USING ERRCODE = 'no_data_found';
    END IF;
END $fn$;
-- +end

-- +function pgtrickle.list_relay_configs(): the caller's pipelines, by name, without their secrets
CREATE OR REPLACE FUNCTION pgtrickle.list_relay_configs()
RETURNS TABLE (name text, direction text, enabled boolean, config jsonb)
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    -- Relays of earlier releases read their pipelines by this function, and go on beside newer
    -- ones. They are known by their statement; a role that sends it can read the tables anyway.
    RETURN QUERY
        SELECT c.name, c.direction, c.enabled, CASE WHEN older THEN c.config ELSE pgtrickle._relay_mask(c.config) END
        FROM pgtrickle.relay_pipelines c,
            (SELECT has_table_privilege('pgtrickle.relay_outbox_config', 'SELECT') AND has_table_privilege('pgtrickle.relay_inbox_config', 'SELECT')
                AND current_query() ~ '^SELECT name, direction, enabled, (config::text|CASE WHEN pg_catalog[.]octet_length)' AS older) o
        ORDER BY 1, 2;
END $fn$;
-- +end
