-- Outboxes on plain tables.
--
-- What a caller does to its own table it does with its own rights: the functions
-- that create and drop triggers run as the caller, so that PostgreSQL itself asks
-- who may. What belongs to us they ask for by a row in _relay_requests.
--
-- A SECURITY DEFINER function cannot tell who called it. session_user is no answer:
-- ANALYZE, REINDEX and the like switch to a table's owner before they run the code
-- in its indexes, but the session stays the superuser's or autovacuum's. A column's
-- default and a trigger's condition are evaluated with the rights of whoever
-- inserts, so there current_user is the caller, and what says otherwise is refused.

-- +function pgtrickle._relay_find(text, text): the oid of a relation, null when there is none; unlike to_regclass it needs no rights on the schema
CREATE OR REPLACE FUNCTION pgtrickle._relay_find(p_schema text, p_name text) RETURNS regclass
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = p_schema AND c.relname = p_name
$fn$;
-- +end

-- The role that owned the table when enable_outbox was called. Null in what was made before.
DO $do$
BEGIN
    IF to_regclass('pgtrickle.relay_outboxes') IS NOT NULL THEN
        ALTER TABLE pgtrickle.relay_outboxes ADD COLUMN IF NOT EXISTS stream_owner text;
    END IF;
END $do$;

-- +plain-table pgtrickle._relay_requests: what roles ask of us; a trigger does it at once, so no row is ever stored
CREATE TABLE pgtrickle._relay_requests (
    caller name NOT NULL DEFAULT current_user,
    action text NOT NULL,
    target text NOT NULL,
    detail jsonb,
    CONSTRAINT caller_must_be_current_user CHECK (false)
);
GRANT INSERT ON pgtrickle._relay_requests TO PUBLIC; -- the trigger says who may what
-- +end

-- +plain-function pgtrickle._relay_request(): does what a row of _relay_requests asks for, if its caller owns the table that it is about
CREATE OR REPLACE FUNCTION pgtrickle._relay_request() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    t     regclass;
    owner oid;
    what  text;
BEGIN
    IF NEW.action = 'create outbox' THEN
        t := NEW.target::oid;
        what := 'table ' || coalesce(pgtrickle._relay_table_name(t), NEW.target);
    ELSIF NEW.action IN ('drop outbox', 'describe outbox', 'upgrade outbox') THEN
        t := pgtrickle._relay_stream_oid(NEW.target);
        what := 'the table of outbox ' || NEW.target;
    ELSIF NEW.action = 'register inbox' THEN
        t := pgtrickle._relay_find(NEW.detail ->> 'inbox_schema', NEW.detail ->> 'inbox_name');
        what := 'table ' || NEW.target;
    ELSIF NEW.action = 'unregister inbox' THEN
        t := pgtrickle._relay_find(NEW.detail ->> 'inbox_schema', NEW.detail ->> 'inbox_name');
        what := 'inbox ' || NEW.target;
    END IF;
    owner := (SELECT c.relowner FROM pg_class c WHERE c.oid = t);
    IF t IS NULL AND NEW.action IN ('drop outbox', 'unregister inbox') THEN -- the table is gone, or there never was one
        owner := (SELECT n.nspowner FROM pg_namespace n WHERE n.nspname = 'pgtrickle');
    END IF;
    IF pg_has_role(NEW.caller, owner, 'USAGE') IS NOT TRUE THEN
        RAISE EXCEPTION 'must be owner of %', what USING ERRCODE = 'insufficient_privilege';
    ELSIF NEW.action = 'create outbox' AND NOT has_function_privilege(NEW.caller, 'pgtrickle.enable_outbox(text, integer)', 'EXECUTE') THEN
        RAISE EXCEPTION 'permission denied for function enable_outbox' USING ERRCODE = 'insufficient_privilege',
            HINT = 'Let the owner of schema pgtrickle run: GRANT EXECUTE ON FUNCTION pgtrickle.enable_outbox TO ' || quote_ident(NEW.caller);
    ELSIF NEW.action = 'register inbox' THEN
        PERFORM pgtrickle._relay_may_register(NEW.caller, t, NEW.target);
    END IF;
    CASE NEW.action
        WHEN 'create outbox' THEN PERFORM pgtrickle._relay_create_outbox(t, (NEW.detail ->> 'retention_hours')::integer);
        WHEN 'drop outbox' THEN PERFORM pgtrickle._relay_drop_outbox(NEW.target);
        WHEN 'describe outbox' THEN PERFORM pgtrickle._relay_describe_outbox(NEW.target, t, NEW.detail ->> 'policy');
        WHEN 'upgrade outbox' THEN PERFORM pgtrickle._relay_upgrade_outbox(NEW.target);
        WHEN 'register inbox' THEN PERFORM pgtrickle._relay_register_inbox(NEW.detail);
        WHEN 'unregister inbox' THEN DELETE FROM pgtrickle.pgt_inbox_config i
            WHERE i.inbox_schema = NEW.detail ->> 'inbox_schema' AND i.inbox_name = NEW.detail ->> 'inbox_name';
    END CASE;
    RETURN NULL;
END $fn$;
-- +end

-- +plain-trigger _relay_request on pgtrickle._relay_requests
CREATE TRIGGER _relay_request BEFORE INSERT ON pgtrickle._relay_requests
    FOR EACH ROW WHEN (NEW.caller = current_user) EXECUTE FUNCTION pgtrickle._relay_request();
ALTER TABLE pgtrickle._relay_requests ENABLE ALWAYS TRIGGER _relay_request;
-- +end

-- +function pgtrickle._relay_name(text, text): base and suffix as one identifier of at most 63 bytes
CREATE OR REPLACE FUNCTION pgtrickle._relay_name(base text, suffix text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    room constant integer := 63 - octet_length(suffix);
    cut  text := left(base, room);
BEGIN
    WHILE octet_length(cut) > room LOOP
        cut := left(cut, -1);
    END LOOP;
    RETURN cut || suffix;
END $fn$;
-- +end

-- +function pgtrickle._relay_unique_name(text): a name as an identifier of at most 63 bytes; one that is longer ends in a hash of all of it
CREATE OR REPLACE FUNCTION pgtrickle._relay_unique_name(p_name text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE WHEN octet_length(p_name) <= 63 THEN p_name
        ELSE pgtrickle._relay_name(p_name, '_' || left(encode(sha256(convert_to(p_name, 'UTF8')), 'hex'), 8)) END
$fn$;
-- +end

-- +plain-function pgtrickle._relay_trigger(text, text): the name of a trigger of an outbox; p_kind is row or truncate
CREATE OR REPLACE FUNCTION pgtrickle._relay_trigger(p_outbox text, p_kind text) RETURNS name
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pgtrickle._relay_unique_name('!pgtrickle_' || p_outbox || '_' || p_kind)::name
$fn$;
-- +end

-- +function pgtrickle._relay_outbox_table(text, name[]): the outbox that a user calls by its own name or by its stream table, null when there is none
-- An unqualified table is looked for in p_path, and everywhere when that is empty.
CREATE OR REPLACE FUNCTION pgtrickle._relay_outbox_table(p_name text, p_path name[] DEFAULT '{}') RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    ident text[];
    found text[];
BEGIN
    SELECT ARRAY[c.outbox_table_name] INTO found FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = p_name;
    IF found IS NOT NULL THEN
        RETURN found[1];
    END IF;
    BEGIN
        ident := parse_ident(p_name);
    EXCEPTION WHEN invalid_parameter_value THEN
        ident := NULL; -- not SQL syntax: it can still be a name as it is
    END;
    SELECT array_agg(c.outbox_table_name) INTO found FROM pgtrickle.pgt_outbox_config c
        WHERE p_name = 'pgtrickle.' || c.outbox_table_name OR ident IN (ARRAY[c.outbox_table_name], ARRAY['pgtrickle', c.outbox_table_name]);
    IF found IS NULL AND to_regclass('pgtrickle.relay_outboxes') IS NULL THEN
        SELECT array_agg(c.outbox_table_name) INTO found FROM pgtrickle.pgt_outbox_config c
            WHERE c.stream_table_name IN (p_name, ident[cardinality(ident)], substr(p_name, strpos(p_name, '.') + 1));
    ELSIF found IS NULL THEN
        SELECT array_agg(o.outbox_table_name) INTO found
            FROM pgtrickle.relay_outboxes o JOIN pgtrickle.pgt_outbox_config c USING (outbox_table_name)
            WHERE o.stream_schema IS NULL AND (c.stream_table_name = p_name OR ident = ARRAY[c.stream_table_name]);
    END IF;
    IF found IS NULL AND to_regclass('pgtrickle.relay_outboxes') IS NOT NULL THEN
        SELECT array_agg(t.outbox_table_name ORDER BY array_position(p_path, t.s::name)) INTO found FROM (
            SELECT o.outbox_table_name, coalesce(n.nspname::text, o.stream_schema) AS s, coalesce(r.relname::text, o.stream_table) AS t
            FROM pgtrickle.relay_outboxes o
            LEFT JOIN pg_class r ON r.oid = pgtrickle._relay_stream_oid(o.outbox_table_name)
            LEFT JOIN pg_namespace n ON n.oid = r.relnamespace
            WHERE o.stream_schema IS NOT NULL) t
            WHERE p_name = t.s || '.' || t.t OR ident = ARRAY[t.s, t.t]
               OR ((p_name = t.t OR ident = ARRAY[t.t]) AND (p_path = '{}' OR t.s::name = ANY (p_path)));
        IF p_path <> '{}' THEN
            found := found[1:1];
        END IF;
    END IF;
    IF cardinality(found) > 1 THEN
        RAISE EXCEPTION 'outbox "%" is ambiguous: it could be %', p_name, array_to_string(found, ', ')
            USING ERRCODE = 'ambiguous_alias', HINT = 'Name the table with its schema, or the outbox table.';
    END IF;
    RETURN found[1];
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_resolve(text, name[]): the table that a user calls so, by SQL syntax or as it is
CREATE OR REPLACE FUNCTION pgtrickle._relay_resolve(p_name text, p_path name[]) RETURNS regclass
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    ident text[];
    found oid;
BEGIN
    BEGIN
        ident := parse_ident(p_name);
    EXCEPTION WHEN invalid_parameter_value THEN
        ident := NULL;
    END;
    SELECT c.oid INTO found
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
          AND (ident = ARRAY[n.nspname::text, c.relname::text]
               OR p_name = n.nspname || '.' || c.relname
               OR ((ident = ARRAY[c.relname::text] OR p_name = c.relname) AND n.nspname = ANY (p_path)))
        ORDER BY ident = ARRAY[n.nspname::text, c.relname::text] DESC,
                 (ident = ARRAY[c.relname::text] AND n.nspname = ANY (p_path)) DESC,
                 array_position(p_path, n.nspname)
        LIMIT 1;
    IF found IS NULL THEN
        RAISE EXCEPTION 'stream table not found: %', p_name
            USING ERRCODE = 'undefined_table', HINT = 'Name an existing table as schema.table.';
    END IF;
    RETURN found;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_table_name(regclass): a table's name as schema.table, unquoted
CREATE OR REPLACE FUNCTION pgtrickle._relay_table_name(t regclass) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t
$fn$;
-- +end

-- +plain-function pgtrickle._relay_stream_oid(text): the oid of the table of an outbox, null when it is gone or never was
-- It is in PL/pgSQL, which keeps its plans: an idle pipeline asks every two seconds, and a
-- function in SQL with a search_path is planned whole at each call.
CREATE OR REPLACE FUNCTION pgtrickle._relay_stream_oid(p_outbox text) RETURNS regclass
LANGUAGE plpgsql STABLE STRICT SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    o     record;
    t     oid;
    mine  name;
BEGIN
    SELECT r.stream_owner, r.stream_schema, r.stream_table, r.capture_function, c.stream_table_oid INTO o
        FROM pgtrickle.relay_outboxes r JOIN pgtrickle.pgt_outbox_config c USING (outbox_table_name)
        WHERE r.outbox_table_name = p_outbox AND r.stream_table IS NOT NULL;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    -- A table that was renamed keeps its oid.
    mine := pgtrickle._relay_trigger(p_outbox, 'row');
    SELECT g.tgrelid INTO t FROM pg_trigger g WHERE g.tgrelid = o.stream_table_oid AND g.tgname = mine;
    IF FOUND THEN
        RETURN t;
    END IF;
    -- One that was restored from a dump has another, and is known by its trigger, or by its
    -- name. A trigger and a name can be anybody's: they count only at a table of the role
    -- that called enable_outbox.
    RETURN coalesce(
        (SELECT g.tgrelid FROM pg_trigger g JOIN pg_class r ON r.oid = g.tgrelid JOIN pg_roles w ON w.oid = r.relowner
            WHERE g.tgname = mine AND w.rolname = o.stream_owner AND NOT r.relispartition
            ORDER BY g.tgrelid LIMIT 1),
        -- The triggers of an outbox that was made before capture by row.
        (SELECT g.tgrelid FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = 'pgtrickle' AND p.proname = o.capture_function
              AND NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_trigger g2 ON g2.tgrelid = i.inhparent
                              WHERE i.inhrelid = g.tgrelid AND g2.tgfoid = g.tgfoid)
            ORDER BY g.tgrelid LIMIT 1),
        (SELECT r.oid FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace JOIN pg_roles w ON w.oid = r.relowner
            WHERE n.nspname = o.stream_schema AND r.relname = o.stream_table AND w.rolname = coalesce(o.stream_owner, w.rolname)));
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_new_outbox(text, text, text, integer, oid): creates an outbox table and registers it; returns its name
CREATE OR REPLACE FUNCTION pgtrickle._relay_new_outbox(
    p_stream_schema text, p_stream_table text, p_label text, p_retention_hours integer, p_oid oid
) RETURNS text
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox  text := pgtrickle._relay_name('outbox_' || p_stream_table, '');
    capture text;
BEGIN
    IF coalesce(p_retention_hours, 0) <= 0 THEN
        RAISE EXCEPTION 'retention_hours must be a positive number of hours, not %', coalesce(p_retention_hours::text, 'null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF EXISTS (SELECT FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = outbox)
       OR to_regclass(format('pgtrickle.%I', outbox)) IS NOT NULL THEN
        outbox := pgtrickle._relay_name('outbox_' || p_stream_table, '_' || left(md5(p_label), 7));
        IF to_regclass(format('pgtrickle.%I', outbox)) IS NOT NULL THEN
            RAISE EXCEPTION 'pgtrickle.% exists already', outbox USING ERRCODE = 'duplicate_table';
        END IF;
    END IF;
    EXECUTE format('CREATE TABLE pgtrickle.%I (
        id             bigint      GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
        pgt_id         uuid        NOT NULL DEFAULT gen_random_uuid(),
        refresh_id     uuid,
        created_at     timestamptz NOT NULL DEFAULT now(),
        inserted_count bigint      NOT NULL DEFAULT 0,
        deleted_count  bigint      NOT NULL DEFAULT 0,
        is_claim_check boolean     NOT NULL DEFAULT false,
        payload        json,
        xid            xid8        NOT NULL DEFAULT pg_current_xact_id())', outbox);
    PERFORM pgtrickle._relay_add_columns(outbox);
    EXECUTE format('CREATE INDEX %I ON pgtrickle.%I (xid, id)', pgtrickle._relay_unique_name(outbox || '_xid_idx'), outbox);
    EXECUTE format('COMMENT ON TABLE pgtrickle.%I IS %L', outbox, 'pgtrickle-relay: outbox of ' || p_label);
    IF p_stream_schema IS NOT NULL THEN
        capture := pgtrickle._relay_unique_name('pgtrickle_' || outbox);
    END IF;
    -- A restored database has other oids: an entry may hold the oid of what is now another table.
    UPDATE pgtrickle.pgt_outbox_config c
        SET stream_table_oid = coalesce(pgtrickle._relay_stream_oid(c.outbox_table_name),
                                        to_regclass(format('pgtrickle.%I', c.outbox_table_name)))
        WHERE c.stream_table_oid = p_oid;
    INSERT INTO pgtrickle.pgt_outbox_config (stream_table_oid, stream_table_name, outbox_table_name, retention_hours)
        VALUES (coalesce(p_oid, to_regclass(format('pgtrickle.%I', outbox))), p_stream_table, outbox, p_retention_hours);
    INSERT INTO pgtrickle.relay_outboxes (outbox_table_name, stream_schema, stream_table, capture_function, stream_owner)
        VALUES (outbox, p_stream_schema, CASE WHEN p_stream_schema IS NOT NULL THEN p_stream_table END, capture,
                (SELECT r.rolname FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner WHERE c.oid = p_oid));
    PERFORM pgtrickle._relay_write_publish();
    PERFORM pgtrickle.relay_grant_access();
    RETURN outbox;
END $fn$;
-- +end

-- Capture: one row trigger writes one outbox row for each row that changes.
--
-- A row trigger gets the old and the new row together. PostgreSQL itself clones the
-- trigger to partitions when they are attached and removes it when they are detached.
-- A row that moves to another partition is a delete and an insert.
--
-- The trigger function belongs to the owner of the table and stands in the table's
-- schema. So casts, index expressions and row security of the table run with the
-- rights of the table's owner, and never with those of the owner of this schema.
--
-- The name of the trigger begins with "!", so that it fires before the user's own
-- triggers and before those of foreign keys: what these change is recorded later.

-- +plain-function pgtrickle._relay_capturing(): always true; the triggers of captured tables depend on it, so that they go with schema pgtrickle
-- PostgreSQL inlines the function, so that a row pays nothing for it. That needs a
-- function without a SET clause, and the right of everybody to execute it.
CREATE OR REPLACE FUNCTION pgtrickle._relay_capturing() RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $fn$ SELECT true $fn$;
-- +end

-- +plain-function pgtrickle._relay_header_problem(text, text): why a name and a value cannot be a header, null when they can
-- A name is a token of RFC 9110, section 5.6.2. Reserved names are those that the relay
-- or a broker sets itself.
CREATE OR REPLACE FUNCTION pgtrickle._relay_header_problem(p_name text, p_value text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE
        WHEN p_name !~ '^[!#$%&''*+.^_`|~0-9A-Za-z-]{1,128}$' THEN 'a header name is 1 to 128 letters, digits and !#$%&''*+-.^_`|~'
        WHEN p_name ~* '^(nats-|pgtrickle-|webhook-|ce-|aws\.)' OR lower(p_name) IN ('idempotency-key', 'content-type') THEN 'the name is reserved'
        WHEN p_value ~ '[[:cntrl:]]' THEN 'the value holds a control character'
    END
$fn$;
-- +end

-- +plain-function pgtrickle._relay_headers(text): the headers of a captured row, from setting pgtrickle.headers of its transaction
-- The writer never fails. What cannot be a header is left out, and the member
-- Pgtrickle-Dropped of the result tells how many were; null when there is nothing.
CREATE OR REPLACE FUNCTION pgtrickle._relay_headers(p_setting text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    kept    jsonb;
    dropped integer;
BEGIN
    IF coalesce(p_setting, '') = '' THEN
        RETURN NULL;
    END IF;
    SELECT jsonb_object_agg(h.key, h.value) FILTER (WHERE h.good), count(*) FILTER (WHERE NOT h.good) INTO kept, dropped
    FROM (SELECT e.key, e.value, jsonb_typeof(e.value) = 'string' AND pgtrickle._relay_header_problem(e.key, e.value #>> '{}') IS NULL AS good
          FROM jsonb_each(p_setting::jsonb) e) h;
    RETURN CASE WHEN dropped > 0 THEN coalesce(kept, '{}') || jsonb_build_object('Pgtrickle-Dropped', dropped::text) ELSE kept END;
EXCEPTION WHEN others THEN
    RETURN jsonb_build_object('Pgtrickle-Dropped', 'all');
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_text_settings(regclass): the settings on which the text of a table's rows depends, with the values that capture uses
-- A setting costs each row about 0.3 microseconds, so a table gets only those that its
-- types need. A base type that is not PostgreSQL's own gets all of them.
CREATE OR REPLACE FUNCTION pgtrickle._relay_text_settings(t regclass) RETURNS text[]
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    WITH RECURSIVE types(oid, in_range) AS (
        SELECT a.atttypid, false FROM pg_attribute a WHERE a.attrelid = t AND a.attnum > 0 AND NOT a.attisdropped
        UNION
        SELECT part.oid, types.in_range OR y.typtype IN ('r', 'm')
        FROM types JOIN pg_type y ON y.oid = types.oid
        CROSS JOIN LATERAL (
            SELECT y.typbasetype WHERE y.typtype = 'd'
            UNION ALL SELECT y.typelem WHERE y.typelem <> 0 AND y.typlen = -1
            UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE y.oid IN (r.rngtypid, (to_jsonb(r) ->> 'rngmultitypid')::oid)
            UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE y.typtype = 'c' AND a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        ) part(oid)
    )
    SELECT coalesce(array_agg(DISTINCT s.name || '=' || s.value), '{}')
    FROM types JOIN pg_type y ON y.oid = types.oid JOIN (VALUES
        ('TimeZone', 'UTC', '{timestamptz}'::name[], false),
        ('DateStyle', 'ISO, MDY', '{date,timestamp,timestamptz}', true),
        ('IntervalStyle', 'postgres', '{interval}', false),
        ('bytea_output', 'hex', '{bytea}', false),
        ('extra_float_digits', '1', '{float4,float8,point,line,lseg,box,path,polygon,circle}', false),
        ('lc_monetary', 'C', '{money}', false),
        ('quote_all_identifiers', 'off', '{regproc,regprocedure,regoper,regoperator,regclass,regcollation,regtype,regrole,regnamespace,regconfig,regdictionary}', false)
    ) AS s(name, value, types, only_in_range)
        ON y.typtype = 'b' AND (y.typnamespace <> 'pg_catalog'::regnamespace OR (y.typname = ANY (s.types) AND (types.in_range OR NOT s.only_in_range)))
$fn$;
-- +end

-- +plain-function pgtrickle._relay_row_json(regclass, text): the expression that makes JSON of a row of a table; p_row is the row's name in it
-- Virtual generated columns are left out: a trigger's row has nulls for them.
CREATE OR REPLACE FUNCTION pgtrickle._relay_row_json(t regclass, p_row text) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE WHEN bool_or(a.attgenerated = 'v') IS NOT TRUE THEN format('row_to_json(%s.*)', p_row)
        ELSE format('(SELECT row_to_json(kept.*) FROM (SELECT %s) kept)',
            string_agg(format('%s.%I', p_row, a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attgenerated <> 'v')) END
    FROM pg_attribute a WHERE a.attrelid = t AND a.attnum > 0 AND NOT a.attisdropped
$fn$;
-- +end

-- +plain-function pgtrickle._relay_capture_source(text, regclass): the source of the trigger function of a table with an outbox
CREATE OR REPLACE FUNCTION pgtrickle._relay_capture_source(p_outbox text, t regclass) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format($capture$
DECLARE
    headers  text := current_setting('pgtrickle.headers', true);
    ordering text := current_setting('pgtrickle.key', true);
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pgtrickle._relay_capture_truncate(TG_RELID, TG_NAME, TG_ARGV[0], %1$L, headers, ordering);
    ELSIF headers <> '' OR ordering <> '' THEN
        INSERT INTO pgtrickle.%1$I (inserted_count, deleted_count, payload, headers, key)
            VALUES ((TG_OP <> 'DELETE')::integer, (TG_OP <> 'INSERT')::integer, (CASE TG_OP
                WHEN 'INSERT' THEN '{"v":1,"inserted":[' || %2$s || '],"updated":[],"deleted":[]}'
                WHEN 'UPDATE' THEN '{"v":1,"inserted":[],"updated":[{"old":' || %3$s || ',"new":' || %2$s || '}],"deleted":[]}'
                ELSE '{"v":1,"inserted":[],"updated":[],"deleted":[' || %3$s || ']}' END)::json,
                pgtrickle._relay_headers(headers), nullif(ordering, ''));
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO pgtrickle.%1$I (inserted_count, payload)
            VALUES (1, ('{"v":1,"inserted":[' || %2$s || '],"updated":[],"deleted":[]}')::json);
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO pgtrickle.%1$I (inserted_count, deleted_count, payload)
            VALUES (1, 1, ('{"v":1,"inserted":[],"updated":[{"old":' || %3$s || ',"new":' || %2$s || '}],"deleted":[]}')::json);
    ELSE
        INSERT INTO pgtrickle.%1$I (deleted_count, payload)
            VALUES (1, ('{"v":1,"inserted":[],"updated":[],"deleted":[' || %3$s || ']}')::json);
    END IF;
    RETURN NULL;
END $capture$, p_outbox, pgtrickle._relay_row_json(t, 'NEW'), pgtrickle._relay_row_json(t, 'OLD'))
$fn$;
-- +end

-- +plain-function pgtrickle._relay_capture_truncate(oid, name, text, text, text, text): what TRUNCATE of a table with an outbox does, with the rights of the table's owner
-- A partitioned table is truncated with all its partitions, and the triggers of these
-- run as well: a partition that has one of its own is not read here.
CREATE OR REPLACE FUNCTION pgtrickle._relay_capture_truncate(
    p_table oid, p_trigger name, p_policy text, p_outbox text, p_headers text, p_key text
) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET row_security = off AS $fn$
DECLARE
    rel text := (SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || c.oid::regclass FROM pg_class c WHERE c.oid = p_table);
BEGIN
    IF p_policy = 'refuse' THEN
        RAISE EXCEPTION 'TRUNCATE of % is refused: its outbox pgtrickle.% records every change', pgtrickle._relay_table_name(p_table), p_outbox
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Use DELETE, or allow TRUNCATE with SELECT pgtrickle.outbox_truncate_policy(table, ''delete'').';
    END IF;
    EXECUTE format($q$
        INSERT INTO pgtrickle.%I (deleted_count, payload, headers, key)
        SELECT 1, ('{"v":1,"inserted":[],"updated":[],"deleted":[' || %s || ']}')::json, pgtrickle._relay_headers($1), nullif($2, '')
        FROM %s x WHERE x.tableoid NOT IN (SELECT g.tgrelid FROM pg_trigger g JOIN pg_partition_tree($3) p ON p.relid = g.tgrelid AND p.level > 0 WHERE g.tgname = $4)$q$,
        p_outbox, pgtrickle._relay_row_json(p_table, 'x'), rel) USING p_headers, p_key, p_table::regclass, p_trigger;
END $fn$;
-- +end

-- Rows that were there before: a function beside the trigger's reads them for startup
-- snapshot, with the rights of the table's owner and as the text that capture makes.

-- +plain-function pgtrickle._relay_key_columns(regclass): the columns of a table's primary key, with the operators of its index, and what makes a text of array element pos comparable
CREATE OR REPLACE FUNCTION pgtrickle._relay_key_columns(t regclass, OUT pos integer, OUT attname name, OUT gt text, OUT eq text, OUT as_type text) RETURNS SETOF record
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT u.pos, a.attname, format('%I.%s', gn.nspname, g.oprname), format('%I.%s', en.nspname, e.oprname),
        '::' || format_type(a.atttypid, a.atttypmod)
            || coalesce((SELECT format(' COLLATE %I.%I', ln.nspname, l.collname) FROM pg_collation l JOIN pg_namespace ln ON ln.oid = l.collnamespace
                         WHERE l.oid = i.indcollation[u.pos - 1]), '')
    FROM pg_index i
    CROSS JOIN LATERAL generate_series(1, i.indnkeyatts::integer) u(pos)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[u.pos - 1]
    JOIN pg_opclass oc ON oc.oid = i.indclass[u.pos - 1]
    JOIN pg_amop ga ON ga.amopfamily = oc.opcfamily AND ga.amoplefttype = oc.opcintype AND ga.amoprighttype = oc.opcintype AND ga.amopstrategy = 5
    JOIN pg_operator g ON g.oid = ga.amopopr JOIN pg_namespace gn ON gn.oid = g.oprnamespace
    JOIN pg_amop ea ON ea.amopfamily = oc.opcfamily AND ea.amoplefttype = oc.opcintype AND ea.amoprighttype = oc.opcintype AND ea.amopstrategy = 3
    JOIN pg_operator e ON e.oid = ea.amopopr JOIN pg_namespace en ON en.oid = e.oprnamespace
    WHERE i.indrelid = t AND i.indisprimary
$fn$;
-- +end

-- +plain-function pgtrickle._relay_keyed_source(regclass): the source of the function that reads the rows of some primary keys of a captured table; null without a primary key
-- It reads row by row: one query for all of them would sort them with their contents.
CREATE OR REPLACE FUNCTION pgtrickle._relay_keyed_source(t regclass) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format($rows$
#variable_conflict use_variable
DECLARE
    total bigint := 0;
    found_rows integer := 0;
BEGIN
    FOR i IN p_from + 1 .. coalesce(array_length(p_keys, 1), 0) LOOP
        SELECT ARRAY[%1$s], %2$s::text INTO key, "row" FROM %3$s x WHERE %4$s;
        CONTINUE WHEN NOT FOUND;
        n := i;
        length := octet_length("row");
        IF length > p_large THEN
            EXIT WHEN found_rows > 0;
            "row" := NULL;
        END IF;
        RETURN NEXT;
        found_rows := found_rows + 1;
        total := total + length;
        EXIT WHEN "row" IS NULL OR found_rows >= p_rows OR total >= p_bytes;
    END LOOP;
    IF EXISTS (SELECT FROM pg_class c WHERE (c.oid = %5$s OR c.oid IN (SELECT relid FROM pg_partition_tree(%5$s)))
               AND c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)) THEN
        RAISE EXCEPTION 'the table was rewritten or truncated meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
END $rows$, k.texts, pgtrickle._relay_row_json(t, 'x'), (SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || c.oid::regclass FROM pg_class c WHERE c.oid = t), k.equal, t::oid)
    FROM (
        SELECT string_agg(format('format(''%%s'', x.%I)', o.attname), ', ' ORDER BY o.pos) AS texts,
            string_agg(format('x.%I OPERATOR(%s) p_keys[i][%s]%s', o.attname, o.eq, o.pos, o.as_type), ' AND ' ORDER BY o.pos) AS equal
        FROM pgtrickle._relay_key_columns(t) o
    ) k WHERE k.equal IS NOT NULL
$fn$;
-- +end

-- +plain-function pgtrickle._relay_rows_source(regclass): the source of the function that reads the rows of a captured table in chunks, in the order of its primary key; null without one
-- A key is compared by the operators and collations of the primary key's index, whatever
-- the search path finds. Where the operators of all columns lie in one schema, that is a
-- comparison of rows, which the index answers by itself.
--
-- A table that was rewritten or truncated by a transaction that the snapshot does not see
-- looks empty. Its file tells: pg_class shows the one of the snapshot, and
-- pg_relation_filenode the present one, which cannot change under the lock of the read.
CREATE OR REPLACE FUNCTION pgtrickle._relay_rows_source(t regclass) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format($rows$
DECLARE
    r     record;
    total bigint := 0;
    found integer := 0;
BEGIN
    FOR r IN %1$s
    LOOP
        key := r.key;
        length := octet_length(r.row);
        "row" := CASE WHEN length <= p_large THEN r.row END;
        EXIT WHEN "row" IS NULL AND found > 0;
        RETURN NEXT;
        found := found + 1;
        total := total + length;
        EXIT WHEN "row" IS NULL OR found >= p_rows OR total >= p_bytes;
    END LOOP;
    IF EXISTS (SELECT FROM pg_class c WHERE (c.oid = %2$s OR c.oid IN (SELECT relid FROM pg_partition_tree(%2$s)))
               AND c.relkind = 'r' AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)) THEN
        RAISE EXCEPTION 'the table was rewritten or truncated meanwhile' USING ERRCODE = 'serialization_failure';
    END IF;
END $rows$,
        CASE WHEN k.simple THEN format('SELECT ARRAY[%1$s] AS key, %2$s::text AS row FROM %3$s x WHERE p_after IS NULL OR (%4$s) OPERATOR(%5$s) (%6$s) ORDER BY %4$s',
                k.texts, pgtrickle._relay_row_json(t, 'x'), k.rel, k.columns, k.gt, k.params)
            ELSE format('SELECT ARRAY[%1$s] AS key, %2$s::text AS row FROM %3$s x WHERE p_after IS NULL OR %4$s ORDER BY %5$s',
                k.texts, pgtrickle._relay_row_json(t, 'x'), k.rel, k.behind, k.columns) END,
        t::oid)
    FROM (
        SELECT count(DISTINCT o.gt) = 1 AS simple, min(o.gt) AS gt,
            string_agg(format('format(''%%s'', x.%I)', o.attname), ', ' ORDER BY o.pos) AS texts,
            string_agg(format('x.%I', o.attname), ', ' ORDER BY o.pos) AS columns,
            string_agg(format('p_after[%s]%s', o.pos, o.as_type), ', ' ORDER BY o.pos) AS params,
            string_agg(format('x.%1$I OPERATOR(%2$s) p_after[%3$s]%4$s OR (x.%1$I OPERATOR(%5$s) p_after[%3$s]%4$s AND (', o.attname, o.gt, o.pos, o.as_type, o.eq), '' ORDER BY o.pos)
                || 'false' || repeat('))', count(*)::integer) AS behind,
            (SELECT CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || c.oid::regclass FROM pg_class c WHERE c.oid = t) AS rel
        FROM pgtrickle._relay_key_columns(t) o
    ) k WHERE k.columns IS NOT NULL
$fn$;
-- +end

-- +plain-function pgtrickle._relay_rows_name(text): the name of the function that reads the rows of a captured table, by that of its trigger function
CREATE OR REPLACE FUNCTION pgtrickle._relay_rows_name(p_capture text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pgtrickle._relay_unique_name(p_capture || '_rows')
$fn$;
-- +end

-- +plain-function pgtrickle._relay_rows_function(text): the function that reads the rows of the table of an outbox; a problem with its cure when a relay cannot call it
CREATE OR REPLACE FUNCTION pgtrickle._relay_rows_function(p_outbox text, OUT fn text, OUT estimate bigint, OUT problem text, OUT cure text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    t      regclass := pgtrickle._relay_stream_oid(p_outbox);
    called text := pgtrickle._relay_table_name(t);
    rel    record;
BEGIN
    IF t IS NULL THEN
        problem := format('outbox %s records the changes of no table', p_outbox);
        cure := 'set startup to earliest or latest';
        RETURN;
    END IF;
    SELECT r.oid, r.proname, n.nspname, r.prosrc, k.prosrc AS keyed INTO rel
        FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
        LEFT JOIN pg_proc r ON r.pronamespace = n.oid AND r.proname = pgtrickle._relay_rows_name(p.proname) AND r.proowner = p.proowner AND r.pronargs = 4
        LEFT JOIN pg_proc k ON k.pronamespace = n.oid AND k.proname = r.proname AND k.proowner = p.proowner AND k.pronargs = 5
        WHERE g.tgrelid = t AND g.tgname = pgtrickle._relay_trigger(p_outbox, 'row');
    IF pgtrickle._relay_rows_source(t) IS NULL THEN
        problem := format('table %s has no primary key', called);
        cure := format('add one, then SELECT pgtrickle.outbox_upgrade(%L)', p_outbox);
    ELSIF rel.oid IS NULL OR rel.prosrc IS DISTINCT FROM pgtrickle._relay_rows_source(t) OR rel.keyed IS DISTINCT FROM pgtrickle._relay_keyed_source(t) THEN
        problem := format('the function that reads the rows of %s is missing or outdated', called);
        cure := format('SELECT pgtrickle.outbox_upgrade(%L)', p_outbox);
    ELSIF NOT has_schema_privilege((SELECT p.pronamespace FROM pg_proc p WHERE p.oid = rel.oid), 'USAGE') THEN
        problem := format('the relay may not use schema %s', rel.nspname);
        cure := format('GRANT USAGE ON SCHEMA %I TO pgtrickle_relay', rel.nspname);
    ELSIF NOT has_function_privilege(rel.oid, 'EXECUTE') THEN
        problem := format('the relay may not read the rows of %s', called);
        cure := format('GRANT EXECUTE ON FUNCTION %s TO pgtrickle_relay', rel.oid::regprocedure);
    END IF;
    IF problem IS NOT NULL THEN
        RETURN;
    END IF;
    fn := format('%I.%I', rel.nspname, rel.proname);
    estimate := (SELECT sum(c.reltuples)::bigint FROM pg_class c
                 WHERE (c.oid = t OR c.oid IN (SELECT relid FROM pg_partition_tree(t))) AND c.relkind = 'r' AND c.reltuples > 0);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_write_capture(text, regclass): makes the trigger function and the triggers of an outbox, or brings them to the present form
-- It runs with the caller's rights, and makes the objects as the owner of the table: a
-- SET LOCAL of a function that has SET clauses ends with its call.
CREATE OR REPLACE FUNCTION pgtrickle._relay_write_capture(p_outbox text, t regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    o       pgtrickle.relay_outboxes;
    rel     record;
    fn      text;
    part    regclass;
    setting text;
    clauses text := '';
    name_of_rows text;
    reader  record;
BEGIN
    SELECT r.* INTO o FROM pgtrickle.relay_outboxes r WHERE r.outbox_table_name = p_outbox;
    SELECT c.relowner, c.relowner::regrole AS owner, n.nspname AS sch INTO rel FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t;
    -- A function of that name can be left of the owner before.
    fn := format('%I.%I', rel.sch, CASE
        WHEN EXISTS (SELECT FROM pg_proc p WHERE p.oid = to_regprocedure(format('%I.%I()', rel.sch, o.capture_function)) AND p.proowner <> rel.relowner)
        THEN pgtrickle._relay_unique_name(o.capture_function || '_' || pg_get_userbyid(rel.relowner)) ELSE o.capture_function END);
    IF NOT has_schema_privilege(rel.owner, rel.sch, 'CREATE') THEN
        RAISE EXCEPTION 'role % may not create the trigger function of % in schema %', rel.owner, pgtrickle._relay_table_name(t), rel.sch
            USING ERRCODE = 'insufficient_privilege', HINT = format('Let the owner of the schema run: GRANT CREATE ON SCHEMA %I TO %s', rel.sch, rel.owner);
    END IF;
    FOREACH setting IN ARRAY pgtrickle._relay_text_settings(t) LOOP
        clauses := clauses || format(' SET %I = %L', split_part(setting, '=', 1), split_part(setting, '=', 2));
    END LOOP;
    IF current_user <> pg_get_userbyid(rel.relowner) THEN
        PERFORM set_config('role', pg_get_userbyid(rel.relowner), true);
    END IF;
    EXECUTE format('CREATE OR REPLACE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp%s AS %L',
        fn, clauses, pgtrickle._relay_capture_source(p_outbox, t));
    EXECUTE format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', fn);
    EXECUTE format('COMMENT ON FUNCTION %s() IS %L', fn, 'pgtrickle-relay: writes outbox ' || p_outbox);
    IF pgtrickle._relay_rows_source(t) IS NOT NULL THEN
        name_of_rows := pgtrickle._relay_rows_name((SELECT p.proname FROM pg_proc p WHERE p.oid = to_regprocedure(fn || '()')));
        FOR reader IN
            SELECT format('%I.%I(%s)', rel.sch, name_of_rows, r.arguments) AS signature, r.* FROM (VALUES
                ('p_after text[], p_rows integer, p_bytes bigint, p_large bigint', 'key text[], "row" text, length bigint',
                 ' SET plan_cache_mode = force_custom_plan SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off', pgtrickle._relay_rows_source(t)),
                ('p_keys text[], p_from integer, p_rows integer, p_bytes bigint, p_large bigint', 'n integer, key text[], "row" text, length bigint',
                 ' SET enable_seqscan = off', pgtrickle._relay_keyed_source(t))) r(arguments, results, settings, source)
        LOOP
            EXECUTE format('CREATE OR REPLACE FUNCTION %s RETURNS TABLE (%s) LANGUAGE plpgsql STABLE SECURITY DEFINER '
                'SET search_path = pg_catalog, pg_temp SET row_security = off%s SET jit = off%s AS %L',
                reader.signature, reader.results, reader.settings, clauses, reader.source);
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', reader.signature);
            EXECUTE format('COMMENT ON FUNCTION %s IS %L', reader.signature, 'pgtrickle-relay: reads the rows of ' || t);
            IF to_regrole('pgtrickle_relay') IS NOT NULL THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO pgtrickle_relay', reader.signature);
                PERFORM pgtrickle._relay_grant('USAGE', 'SCHEMA', to_regnamespace(quote_ident(rel.sch)));
            END IF;
        END LOOP;
    END IF;
    EXECUTE format('CREATE TRIGGER %I AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW WHEN (pgtrickle._relay_capturing()) EXECUTE FUNCTION %s()',
        pgtrickle._relay_trigger(p_outbox, 'row'), t, fn);
    IF o.truncate_policy <> 'ignore' THEN
        -- A statement trigger is not cloned: each partition gets one, for a TRUNCATE of its own.
        FOR part IN SELECT t UNION SELECT pt.relid FROM pg_partition_tree(t) pt JOIN pg_class c ON c.oid = pt.relid WHERE c.relkind IN ('r', 'p') LOOP
            IF NOT pg_has_role(rel.owner, (SELECT c.relowner FROM pg_class c WHERE c.oid = part), 'USAGE') THEN
                RAISE WARNING 'a TRUNCATE of partition % alone is not recorded: it belongs to another role', pgtrickle._relay_table_name(part)
                    USING HINT = format('ALTER TABLE %s OWNER TO %s, then SELECT pgtrickle.outbox_upgrade(...)', part, rel.owner);
                CONTINUE;
            END IF;
            EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %s FOR EACH STATEMENT WHEN (pgtrickle._relay_capturing()) EXECUTE FUNCTION %s(%L)',
                pgtrickle._relay_trigger(p_outbox, 'truncate'), part, fn, o.truncate_policy);
        END LOOP;
    END IF;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_triggers(text, regclass): the triggers of an outbox on its table and the partitions, but for those that PostgreSQL cloned
CREATE OR REPLACE FUNCTION pgtrickle._relay_triggers(p_outbox text, t regclass) RETURNS TABLE (rel regclass, trigger_name name)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT g.tgrelid, g.tgname FROM pg_trigger g
    WHERE g.tgparentid = 0
      AND ((g.tgname IN (pgtrickle._relay_trigger(p_outbox, 'row'), pgtrickle._relay_trigger(p_outbox, 'truncate'))
            AND (g.tgrelid = t OR g.tgrelid IN (SELECT pt.relid FROM pg_partition_tree(t) pt)))
           -- The statement triggers of an older version.
           OR g.tgfoid = (SELECT to_regprocedure(format('pgtrickle.%I()', o.capture_function)) FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = p_outbox))
$fn$;
-- +end

-- +plain-function pgtrickle._relay_create_outbox(regclass, integer): makes the outbox of a table; returns its name
CREATE OR REPLACE FUNCTION pgtrickle._relay_create_outbox(t regclass, p_retention_hours integer) RETURNS text
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    rel    record;
    outbox text;
BEGIN
    SELECT c.relname, c.relowner, n.nspname INTO rel FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t;
    LOCK TABLE pgtrickle.pgt_outbox_config IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pgtrickle.relay_outboxes o WHERE pgtrickle._relay_stream_oid(o.outbox_table_name) = t) THEN
        RAISE EXCEPTION 'outbox already enabled for stream table: %', pgtrickle._relay_table_name(t) USING ERRCODE = 'duplicate_object',
            HINT = 'If its changes are not recorded, call outbox_upgrade.';
    END IF;
    outbox := pgtrickle._relay_new_outbox(rel.nspname, rel.relname, pgtrickle._relay_table_name(t), p_retention_hours, t);
    PERFORM pgtrickle._relay_grant_capture(outbox, rel.relowner);
    RETURN outbox;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_grant_capture(text, oid): gives the owner of a table what its trigger function needs on the outbox, and nothing else of it
CREATE OR REPLACE FUNCTION pgtrickle._relay_grant_capture(p_outbox text, p_owner oid) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT (inserted_count, deleted_count, payload, headers, key) ON pgtrickle.%I TO %s', p_outbox, p_owner::regrole);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_enable_outbox(text, name[], integer): enable_outbox with the caller's search path
CREATE OR REPLACE FUNCTION pgtrickle._relay_enable_outbox(p_name text, p_path name[], p_retention_hours integer) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    t     regclass := pgtrickle._relay_resolve(p_name, p_path);
    rel   record;
    early text;
BEGIN
    SELECT c.relkind, c.relpersistence, c.relispartition, c.relowner, n.nspname, c.relname INTO rel
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t;
    IF rel.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table: only tables have changes to record', pgtrickle._relay_table_name(t) USING ERRCODE = 'wrong_object_type';
    ELSIF rel.relpersistence = 't' THEN
        RAISE EXCEPTION '% is a temporary table: no relay can outlive it', pgtrickle._relay_table_name(t) USING ERRCODE = 'wrong_object_type';
    ELSIF rel.nspname = 'pgtrickle' THEN
        RAISE EXCEPTION '% belongs to the relay itself', pgtrickle._relay_table_name(t) USING ERRCODE = 'wrong_object_type';
    ELSIF NOT pg_has_role(current_user, rel.relowner, 'USAGE') THEN
        RAISE EXCEPTION 'must be owner of table %', pgtrickle._relay_table_name(t) USING ERRCODE = 'insufficient_privilege';
    ELSIF rel.relispartition THEN
        -- A statement fires the triggers of the table that it names, and no other's.
        RAISE EXCEPTION '% is a partition of %: its outbox would not record what is written through that table',
            pgtrickle._relay_table_name(t), pgtrickle._relay_table_name(pg_partition_root(t))
            USING ERRCODE = 'wrong_object_type',
                  HINT = format('Call enable_outbox for %s: its outbox records what is written to the partitions, too.', pg_partition_root(t));
    END IF;
    IF rel.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = t) THEN
        RAISE WARNING '% has children by INHERITS: what changes their rows is recorded by outboxes of their own only', pgtrickle._relay_table_name(t)
            USING HINT = 'Call enable_outbox for the children, too, or make the table a partitioned one.';
    END IF;
    SELECT string_agg(quote_ident(g.tgname), ', ') INTO early FROM pg_trigger g
        WHERE g.tgrelid = t AND NOT g.tgisinternal AND g.tgtype & 67 = 1 AND g.tgname < '!pgtrickle_'; -- AFTER ... FOR EACH ROW
    IF early IS NOT NULL THEN
        RAISE EXCEPTION 'AFTER ROW trigger % of % fires before the changes are recorded', early, pgtrickle._relay_table_name(t)
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Give it a name that begins with a letter: ALTER TRIGGER ... RENAME TO ...';
    END IF;
    IF EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t AND NOT g.tgisinternal AND g.tgtype & 67 = 1) THEN
        RAISE WARNING '% has AFTER ROW triggers: if one of them changes a row that the same statement changes later, that change is recorded first',
            pgtrickle._relay_table_name(t) USING HINT = 'Change rows of the same table in a BEFORE trigger, or in an AFTER STATEMENT trigger.';
    END IF;
    INSERT INTO pgtrickle._relay_requests (action, target, detail)
        VALUES ('create outbox', t::oid::text, jsonb_build_object('retention_hours', p_retention_hours));
    PERFORM pgtrickle._relay_write_capture(o.outbox_table_name, t)
        FROM pgtrickle.relay_outboxes o WHERE pgtrickle._relay_stream_oid(o.outbox_table_name) = t;
    PERFORM pgtrickle._relay_wake('');
END $fn$;
-- +end

-- +plain-function pgtrickle.enable_outbox(text, integer): records every change of a table in an outbox
-- Runs with the caller's search path, and so names nothing without its schema.
CREATE OR REPLACE FUNCTION pgtrickle.enable_outbox(p_name text, p_retention_hours integer DEFAULT 24) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_enable_outbox(p_name, pg_catalog.current_schemas(false), p_retention_hours);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_drop_outbox(text): drops an outbox
CREATE OR REPLACE FUNCTION pgtrickle._relay_drop_outbox(p_outbox text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    o pgtrickle.relay_outboxes;
BEGIN
    SELECT r.* INTO o FROM pgtrickle.relay_outboxes r WHERE r.outbox_table_name = p_outbox FOR UPDATE;
    EXECUTE format('DROP TABLE IF EXISTS pgtrickle.%I', p_outbox);
    IF o.capture_function IS NOT NULL THEN -- of an older version
        EXECUTE format('DROP FUNCTION IF EXISTS pgtrickle.%I()', o.capture_function);
    END IF;
    DELETE FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = p_outbox;
    DELETE FROM pgtrickle.relay_outboxes r WHERE r.outbox_table_name = p_outbox;
    PERFORM pgtrickle._relay_write_publish();
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_drop_capture(text, regclass): drops the triggers of an outbox and their function, as the owner of the table
CREATE OR REPLACE FUNCTION pgtrickle._relay_drop_capture(p_outbox text, t regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    fn oid := (SELECT g.tgfoid FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_class c ON c.oid = g.tgrelid
               WHERE g.tgrelid = t AND g.tgname = pgtrickle._relay_trigger(p_outbox, 'row') AND p.proowner = c.relowner);
    g  record;
BEGIN
    FOR g IN SELECT * FROM pgtrickle._relay_triggers(p_outbox, t) LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', g.trigger_name, g.rel);
    END LOOP;
    IF fn IS NOT NULL THEN
        EXECUTE (SELECT format('DROP FUNCTION IF EXISTS %1$I.%2$I(text[], integer, bigint, bigint), %1$I.%2$I(text[], integer, integer, bigint, bigint)',
                     n.nspname, pgtrickle._relay_rows_name(p.proname))
                 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid = fn);
        EXECUTE format('DROP FUNCTION %s', fn::regprocedure);
    END IF;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_disable_outbox(text, name[], boolean): disable_outbox with the caller's search path
CREATE OR REPLACE FUNCTION pgtrickle._relay_disable_outbox(p_name text, p_path name[], p_if_exists boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_name, p_path);
    t      regclass;
BEGIN
    IF outbox IS NULL THEN
        IF p_if_exists THEN
            RETURN;
        END IF;
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_name USING ERRCODE = 'undefined_object';
    END IF;
    t := pgtrickle._relay_stream_oid(outbox);
    IF t IS NOT NULL AND NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class c WHERE c.oid = t), 'USAGE') THEN
        RAISE EXCEPTION 'must be owner of table %', pgtrickle._relay_table_name(t) USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF t IS NOT NULL THEN
        PERFORM pgtrickle._relay_drop_capture(outbox, t);
    END IF;
    INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('drop outbox', outbox);
END $fn$;
-- +end

-- +plain-function pgtrickle.disable_outbox(text, boolean): stops recording the changes of a table and drops what is recorded
CREATE OR REPLACE FUNCTION pgtrickle.disable_outbox(p_name text, p_if_exists boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_disable_outbox(p_name, pg_catalog.current_schemas(false), p_if_exists);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_reattach(text, name[], text): outbox_upgrade and outbox_truncate_policy with the caller's search path; p_policy is null to keep it
CREATE OR REPLACE FUNCTION pgtrickle._relay_reattach(p_name text, p_path name[], p_policy text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_name, p_path);
    t      regclass := pgtrickle._relay_stream_oid(outbox);
BEGIN
    IF t IS NULL THEN
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_name USING ERRCODE = 'undefined_object';
    END IF;
    -- While the triggers are there: they tell which table it is.
    INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES ('describe outbox', outbox, jsonb_build_object('policy', p_policy));
    PERFORM pgtrickle._relay_drop_capture(outbox, t);
    INSERT INTO pgtrickle._relay_requests (action, target) VALUES ('upgrade outbox', outbox);
    PERFORM pgtrickle._relay_write_capture(outbox, t);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_describe_outbox(text, regclass, text): remembers which table an outbox belongs to, its owner and its TRUNCATE policy; p_policy is null to keep it
CREATE OR REPLACE FUNCTION pgtrickle._relay_describe_outbox(p_outbox text, t regclass, p_policy text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    before text := (SELECT o.stream_owner FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = p_outbox FOR UPDATE);
    rel    record;
BEGIN
    IF p_policy IS NOT NULL AND p_policy NOT IN ('delete', 'refuse', 'ignore') THEN
        RAISE EXCEPTION 'unknown TRUNCATE policy "%": must be delete, refuse or ignore', p_policy USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT c.relname, c.relowner, n.nspname, pg_get_userbyid(c.relowner) AS owner INTO rel
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t;
    UPDATE pgtrickle.relay_outboxes SET stream_schema = rel.nspname, stream_table = rel.relname, stream_owner = rel.owner,
        truncate_policy = coalesce(p_policy, truncate_policy) WHERE outbox_table_name = p_outbox;
    UPDATE pgtrickle.pgt_outbox_config SET stream_table_oid = t WHERE outbox_table_name = p_outbox AND stream_table_oid <> t::oid;
    -- The owner before may write the outbox no longer.
    IF before <> rel.owner AND to_regrole(quote_ident(before)) IS NOT NULL THEN
        EXECUTE format('REVOKE ALL ON pgtrickle.%I FROM %I', p_outbox, before);
    END IF;
    PERFORM pgtrickle._relay_grant_capture(p_outbox, rel.relowner);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_upgrade_outbox(text): brings an outbox without its triggers to the present form
-- A change of type rewrites the table under an ACCESS EXCLUSIVE lock.
CREATE OR REPLACE FUNCTION pgtrickle._relay_upgrade_outbox(p_outbox text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    capture constant text := pgtrickle._relay_unique_name('pgtrickle_' || p_outbox);
BEGIN
    PERFORM pgtrickle._relay_add_columns(p_outbox);
    IF (SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = to_regclass(format('pgtrickle.%I', p_outbox)) AND a.attname = 'payload') = 'jsonb'::regtype THEN
        EXECUTE format('ALTER TABLE pgtrickle.%I ALTER COLUMN payload TYPE json USING payload::text::json', p_outbox);
        PERFORM pgtrickle._relay_write_publish();
    END IF;
    EXECUTE (SELECT format('DROP FUNCTION IF EXISTS pgtrickle.%I()', o.capture_function) FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = p_outbox);
    UPDATE pgtrickle.relay_outboxes SET capture_function = capture WHERE outbox_table_name = p_outbox AND capture_function <> capture;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_add_columns(text): gives an outbox the columns for headers, keys and event ids, if it was made before there were any; without a rewrite
CREATE OR REPLACE FUNCTION pgtrickle._relay_add_columns(p_outbox text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    rel regclass := to_regclass(format('pgtrickle.%I', p_outbox));
BEGIN
    IF (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = rel AND a.attname IN ('headers', 'key', 'event_id') AND NOT a.attisdropped) = 3 THEN
        RETURN;
    END IF;
    EXECUTE format('ALTER TABLE %s ADD COLUMN IF NOT EXISTS headers jsonb, ADD COLUMN IF NOT EXISTS key text, ADD COLUMN IF NOT EXISTS event_id text', rel);
    IF (SELECT c.relkind FROM pg_class c WHERE c.oid = rel) = 'r' THEN
        EXECUTE format('CREATE UNIQUE INDEX %I ON %s (event_id) WHERE event_id IS NOT NULL', pgtrickle._relay_unique_name(p_outbox || '_event_id_idx'), rel);
    END IF;
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_truncate_policy(text, text): what TRUNCATE does: delete, refuse or ignore
CREATE OR REPLACE FUNCTION pgtrickle.outbox_truncate_policy(p_name text, p_policy text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), p_policy);
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_upgrade(text): brings the capture of a table to the present form of its columns, its owner, its partitions and this version
CREATE OR REPLACE FUNCTION pgtrickle.outbox_upgrade(p_name text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), NULL);
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_attach_partitions(text): captures TRUNCATE of partitions that were added after enable_outbox; the same as outbox_upgrade
CREATE OR REPLACE FUNCTION pgtrickle.outbox_attach_partitions(p_name text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), NULL);
END $fn$;
-- +end

-- +plain-function pgtrickle.create_outbox(text, integer): makes an outbox for events that an application writes with outbox_publish; returns its table's name
CREATE OR REPLACE FUNCTION pgtrickle.create_outbox(p_name text, p_retention_hours integer DEFAULT 24) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF coalesce(p_name, '') = '' THEN
        RAISE EXCEPTION 'outbox name must not be empty' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    LOCK TABLE pgtrickle.pgt_outbox_config IN SHARE ROW EXCLUSIVE MODE;
    IF pgtrickle._relay_outbox_table(p_name) IS NOT NULL THEN
        RAISE EXCEPTION 'outbox already enabled for stream table: %', p_name USING ERRCODE = 'duplicate_object';
    END IF;
    RETURN pgtrickle._relay_new_outbox(NULL, p_name, p_name, p_retention_hours, NULL);
END $fn$;
-- +end

-- +function pgtrickle.outbox_grant_publish(text, text): lets a role write events with outbox_publish
CREATE OR REPLACE FUNCTION pgtrickle.outbox_grant_publish(p_outbox text, p_role text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox  text := pgtrickle._relay_outbox_table(p_outbox);
    numbers regclass;
BEGIN
    IF outbox IS NULL THEN
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_outbox USING ERRCODE = 'undefined_object';
    END IF;
    EXECUTE format('GRANT USAGE ON SCHEMA pgtrickle TO %I', p_role);
    -- Not id and not xid: these say in which order readers see the rows.
    EXECUTE format('GRANT SELECT (id), INSERT (%s) ON pgtrickle.%I TO %I', (SELECT string_agg(quote_ident(a.attname), ', ') FROM pg_attribute a
        WHERE a.attrelid = to_regclass(format('pgtrickle.%I', outbox)) AND NOT a.attisdropped
          AND a.attname IN ('refresh_id', 'inserted_count', 'deleted_count', 'payload', 'headers', 'key', 'event_id')), outbox, p_role);
    -- pg_trickle's outboxes are numbered by a default, which takes the caller's rights
    -- on the sequence. An identity column has no default and takes none.
    SELECT d.refobjid INTO numbers
        FROM pg_attribute a JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
        JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_class'::regclass
        JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
        WHERE a.attrelid = to_regclass(format('pgtrickle.%I', outbox)) AND a.attname = 'id';
    IF numbers IS NOT NULL THEN
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %I', numbers, p_role);
    END IF;
    EXECUTE format('GRANT EXECUTE ON FUNCTION pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid, jsonb, text, text) TO %I', p_role);
END $fn$;
-- +end

-- outbox_publish is made anew whenever there is another outbox, with a statement of its
-- own for each: so a call plans nothing and looks nothing up. An outbox of pg_trickle
-- has no such statement, and takes the one that is planned at each call.

-- +function pgtrickle._relay_publish_problem(jsonb, text, jsonb, jsonb, text): refuses what cannot be published
CREATE OR REPLACE FUNCTION pgtrickle._relay_publish_problem(p_payload jsonb, p_op text, p_old jsonb, p_headers jsonb, p_event_id text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    problem text;
BEGIN
    IF p_op IS NULL OR p_op NOT IN ('insert', 'update', 'delete') THEN
        RAISE EXCEPTION 'unknown operation "%": must be insert, update or delete', p_op USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_payload IS NULL OR jsonb_typeof(p_payload) NOT IN ('object', 'array') OR jsonb_path_exists(p_payload, 'strict $[*] ? (@.type() != "object")', '{}', true) THEN
        RAISE EXCEPTION 'the payload must be a JSON object or a list of objects' USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_old IS NOT NULL AND (p_op <> 'update' OR jsonb_typeof(p_payload) <> 'object' OR jsonb_typeof(p_old) <> 'object') THEN
        RAISE EXCEPTION 'the old row belongs to an update of one row' USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_event_id IS NOT NULL AND (jsonb_typeof(p_payload) <> 'object' OR p_event_id = '') THEN
        RAISE EXCEPTION 'an event id belongs to one event, and must not be empty' USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_headers IS NOT NULL AND (jsonb_typeof(p_headers) <> 'object' OR jsonb_path_exists(p_headers, '$.* ? (@.type() != "string")')) THEN
        RAISE EXCEPTION 'headers must be a JSON object of strings' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT format('header "%s": %s', h.key, pgtrickle._relay_header_problem(h.key, h.value)) INTO problem
        FROM jsonb_each_text(p_headers) h WHERE pgtrickle._relay_header_problem(h.key, h.value) IS NOT NULL LIMIT 1;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $fn$;
-- +end

-- +function pgtrickle._relay_publish_payload(jsonb, text, jsonb): the payload of an outbox row for one event or a list of them, as text
CREATE OR REPLACE FUNCTION pgtrickle._relay_publish_payload(p_payload jsonb, p_op text, p_old jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('{"v":1,"inserted":[%s],"updated":[%s],"deleted":[%s]}',
        string_agg(e.j::text, ',' ORDER BY e.n) FILTER (WHERE p_op = 'insert'),
        string_agg('{"old":' || coalesce(p_old::text, 'null') || ',"new":' || e.j::text || '}', ',' ORDER BY e.n) FILTER (WHERE p_op = 'update'),
        string_agg(e.j::text, ',' ORDER BY e.n) FILTER (WHERE p_op = 'delete'))
    FROM jsonb_array_elements(CASE jsonb_typeof(p_payload) WHEN 'array' THEN p_payload ELSE jsonb_build_array(p_payload) END) WITH ORDINALITY AS e(j, n)
$fn$;
-- +end

-- +function pgtrickle._relay_publish_insert(text, text[]): the statement that writes an event to an outbox
-- p_values are the expressions for refresh_id, inserted_count, deleted_count, payload, headers, key and event_id.
CREATE OR REPLACE FUNCTION pgtrickle._relay_publish_insert(p_outbox text, p_values text[]) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('INSERT INTO pgtrickle.%I (refresh_id, inserted_count, deleted_count, payload%s) VALUES (%s::%s%s) RETURNING id', p_outbox,
        CASE WHEN count(*) > 1 THEN ', headers, key, event_id' END, array_to_string(p_values[1:4], ', '),
        max(a.atttypid::regtype::text) FILTER (WHERE a.attname = 'payload'),
        CASE WHEN count(*) > 1 THEN ', ' || array_to_string(p_values[5:7], ', ') END)
    FROM pg_attribute a WHERE a.attrelid = to_regclass(format('pgtrickle.%I', p_outbox)) AND a.attname IN ('payload', 'headers') AND NOT a.attisdropped
$fn$;
-- +end

-- +function pgtrickle._relay_write_publish(): makes outbox_publish anew, with a branch for each outbox that there is
CREATE OR REPLACE FUNCTION pgtrickle._relay_write_publish() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    branches text := '';
    o        record;
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid, jsonb, text, text)', false) THEN
        RETURN;
    END IF;
    IF to_regclass('pgtrickle.relay_outboxes') IS NOT NULL THEN
        FOR o IN
            SELECT r.outbox_table_name AS outbox, CASE WHEN r.stream_schema IS NULL AND NOT EXISTS
                    (SELECT FROM pgtrickle.relay_outboxes other WHERE other.outbox_table_name = c.stream_table_name) THEN c.stream_table_name END AS name
            FROM pgtrickle.relay_outboxes r JOIN pgtrickle.pgt_outbox_config c USING (outbox_table_name)
            WHERE to_regclass(format('pgtrickle.%I', r.outbox_table_name)) IS NOT NULL ORDER BY 1
        LOOP
            branches := branches || format(E'\n    ELSIF p_outbox IN (%L%s) THEN\n        %s INTO row_id;', o.outbox, ', ' || quote_literal(o.name),
                pgtrickle._relay_publish_insert(o.outbox, '{p_refresh_id,added,removed,event,p_headers,p_key,p_event_id}'));
        END LOOP;
    END IF;
    EXECUTE format($source$
CREATE OR REPLACE FUNCTION pgtrickle.outbox_publish(
    p_outbox text, p_payload jsonb, p_op text DEFAULT 'insert', p_old jsonb DEFAULT NULL, p_refresh_id uuid DEFAULT NULL,
    p_headers jsonb DEFAULT NULL, p_key text DEFAULT NULL, p_event_id text DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS %L$source$, format($body$
#variable_conflict use_variable
DECLARE
    added   bigint := 1;
    removed bigint := 0;
    event   text;
    outbox  text;
    row_id  bigint;
BEGIN
    IF p_op = 'insert' AND jsonb_typeof(p_payload) = 'object' AND p_old IS NULL AND p_headers IS NULL AND p_event_id IS NULL THEN
        event := '{"v":1,"inserted":[' || p_payload::text || '],"updated":[],"deleted":[]}';
    ELSE
        PERFORM pgtrickle._relay_publish_problem(p_payload, p_op, p_old, p_headers, p_event_id);
        event := pgtrickle._relay_publish_payload(p_payload, p_op, p_old);
        added := CASE jsonb_typeof(p_payload) WHEN 'array' THEN jsonb_array_length(p_payload) ELSE 1 END;
        removed := CASE p_op WHEN 'insert' THEN 0 ELSE added END;
        added := CASE p_op WHEN 'delete' THEN 0 ELSE added END;
    END IF;
    IF p_outbox IS NULL THEN
        RAISE EXCEPTION 'outbox name must not be null' USING ERRCODE = 'null_value_not_allowed';%s
    ELSE
        outbox := pgtrickle._relay_outbox_table(p_outbox);
        IF outbox IS NULL THEN
            RAISE EXCEPTION 'outbox not enabled for stream table: %%', p_outbox
                USING ERRCODE = 'undefined_object', HINT = 'Make one with SELECT pgtrickle.create_outbox(name).';
        ELSIF (p_headers IS NOT NULL OR p_key IS NOT NULL OR p_event_id IS NOT NULL)
              AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass(format('pgtrickle.%%I', outbox)) AND a.attname = 'headers') THEN
            RAISE EXCEPTION 'outbox pgtrickle.%% has no columns for headers, keys and event ids', outbox USING ERRCODE = 'undefined_column',
                HINT = 'Publish to an outbox that create_outbox makes.';
        END IF;
        EXECUTE pgtrickle._relay_publish_insert(outbox, '{$1,$2,$3,$4,$5,$6,$7}') INTO row_id USING p_refresh_id, added, removed, event, p_headers, p_key, p_event_id;
    END IF;
    RETURN row_id;
END $body$, branches));
    COMMENT ON FUNCTION pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid, jsonb, text, text) IS
        'pgtrickle-relay: writes one event, or a list of events, to an outbox with the caller''s rights; returns the id of the outbox row';
END $fn$;
-- +end

-- outbox_publish had five parameters before it had headers, a key and an event id. Whoever
-- may call that one may call this one.
DO $do$
DECLARE
    old     regprocedure := to_regprocedure('pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid)');
    grantee record;
BEGIN
    PERFORM pgtrickle._relay_write_publish();
    IF old IS NULL OR coalesce(obj_description(old, 'pg_proc') LIKE 'pgtrickle-relay:%', false) IS FALSE THEN
        RETURN;
    END IF;
    FOR grantee IN
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS name
        FROM pg_proc p, aclexplode(p.proacl) a WHERE p.oid = old AND a.privilege_type = 'EXECUTE'
    LOOP
        EXECUTE format('GRANT EXECUTE ON FUNCTION pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid, jsonb, text, text) TO %s', grantee.name);
    END LOOP;
    EXECUTE format('DROP FUNCTION %s', old);
END $do$;

-- +function pgtrickle.outbox_add_xid(regclass): gives an outbox that the caller owns the column that snapshot windows need; returns the statement that makes its index, null when that is there
-- The default is stable, so it is evaluated once and the table is not rewritten:
-- what was there before bears the number of this transaction.
CREATE OR REPLACE FUNCTION pgtrickle.outbox_add_xid(p_table regclass) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    rel record;
    col record;
    n   bigint;
BEGIN
    SELECT c.relkind, c.relname, format('%I.%I', n.nspname, c.relname) AS name INTO rel
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = p_table;
    IF rel.relkind IS NULL OR rel.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION '% is not a table: only a table can be an outbox', p_table USING ERRCODE = 'wrong_object_type';
    END IF;
    -- As a relay looks for it: a column that takes the number by itself, else one called xid.
    SELECT a.attname, a.attnum, a.attnotnull, format_type(a.atttypid, NULL) AS type,
           coalesce(pg_get_expr(d.adbin, d.adrelid), '') LIKE '%pg_current_xact_id()%' AS filled INTO col
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = p_table AND a.attnum > 0 AND NOT a.attisdropped
          AND (a.attname = 'xid' OR a.atttypid = 'xid8'::regtype AND pg_get_expr(d.adbin, d.adrelid) LIKE '%pg_current_xact_id()%')
        ORDER BY a.atttypid = 'xid8'::regtype AND d.adbin IS NOT NULL DESC, a.attname LIMIT 1;
    IF col.attname IS NULL THEN
        EXECUTE format('ALTER TABLE %s ADD COLUMN xid xid8 NOT NULL DEFAULT pg_current_xact_id()', rel.name);
        SELECT 'xid'::name AS attname, a.attnum INTO col FROM pg_attribute a WHERE a.attrelid = p_table AND a.attname = 'xid' AND NOT a.attisdropped;
    ELSIF col.type <> 'xid8' THEN
        RAISE EXCEPTION 'column xid of % has type %: must be xid8', rel.name, col.type USING ERRCODE = 'datatype_mismatch',
            HINT = format('ALTER TABLE %s RENAME COLUMN xid TO ..., and call this again.', rel.name);
    ELSIF NOT col.attnotnull OR NOT col.filled THEN
        -- Rows without a number would never be seen by windows. Those that are here
        -- get this transaction's, as rows before ADD COLUMN do.
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', rel.name);
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET DEFAULT pg_current_xact_id()', rel.name, col.attname);
        EXECUTE format('UPDATE %s SET %I = pg_current_xact_id() WHERE %2$I IS NULL', rel.name, col.attname);
        EXECUTE format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', rel.name, col.attname);
    END IF;
    SELECT count(*) INTO n FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
        WHERE i.indrelid = p_table AND i.indkey[0] = col.attnum AND i.indisvalid AND i.indpred IS NULL AND m.amname = 'btree';
    IF n > 0 THEN
        RETURN NULL;
    END IF;
    RETURN format('CREATE INDEX %sON %s (%I)', CASE rel.relkind WHEN 'r' THEN 'CONCURRENTLY ' ELSE '' END, rel.name, col.attname);
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_drop_partition(text, bigint): drops one partition of an outbox of ours of which every row is past its retention and up to an id that all readers have; returns its name and its rows, nothing when there is none
-- A partition goes only when no row can come to it any more: by id, when its range
-- ends at that id; by created_at, when its range is past the retention.
--
-- A relay asks once a minute, so a partition that has to stay must cost next to
-- nothing: its newest row says so, by the primary key. Those after it have to stay
-- as well. Only what is about to go is read as a whole, and that before it is locked.
CREATE OR REPLACE FUNCTION pgtrickle._relay_drop_partition(p_outbox text, p_floor bigint, OUT part text, OUT deleted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp SET lock_timeout = '300ms' AS $fn$
DECLARE
    c    record;
    over boolean;
BEGIN
    FOR c IN
        SELECT b.* FROM (
            SELECT format('%I.%I', n.nspname, r.relname) AS rel, a.attname, young.since, substring(pg_get_expr(r.relpartbound, r.oid) FROM $re$ TO \('?([^'),]+)'?\)$$re$) AS upper
            FROM pgtrickle.pgt_outbox_config o
            JOIN pg_class t ON t.oid = to_regclass(format('pgtrickle.%I', o.outbox_table_name)) AND obj_description(t.oid, 'pg_class') LIKE 'pgtrickle-relay:%'
            JOIN pg_partitioned_table pt ON pt.partrelid = t.oid AND pt.partstrat = 'r' AND pt.partnatts = 1
            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = pt.partattrs[0] AND a.attname IN ('id', 'created_at')
            JOIN pg_inherits i ON i.inhparent = t.oid
            JOIN pg_class r ON r.oid = i.inhrelid AND r.relkind = 'r'
            JOIN pg_namespace n ON n.oid = r.relnamespace
            CROSS JOIN LATERAL (SELECT now() - make_interval(hours => o.retention_hours)) young(since)
            WHERE o.outbox_table_name = p_outbox AND o.retention_hours > 0 OFFSET 0) b
        WHERE b.upper NOT IN ('MINVALUE', 'MAXVALUE') -- nor null, which is the default partition's
        ORDER BY CASE b.attname WHEN 'id' THEN b.upper::bigint END, CASE b.attname WHEN 'created_at' THEN b.upper::timestamptz END
    LOOP
        IF c.attname = 'id' THEN
            EXIT WHEN c.upper::bigint - 1 > p_floor;
            EXECUTE format('SELECT created_at < $1 FROM ONLY %s ORDER BY id DESC LIMIT 1', c.rel) INTO over USING c.since;
        ELSE
            EXIT WHEN c.upper::timestamptz > c.since;
            EXECUTE format('SELECT id <= $1 FROM ONLY %s ORDER BY id DESC LIMIT 1', c.rel) INTO over USING p_floor;
        END IF;
        EXIT WHEN NOT over; -- null: it is empty
        EXECUTE format('SELECT count(*), coalesce(bool_and(created_at < $1), true) FROM ONLY %s', c.rel) INTO deleted, over USING c.since;
        EXIT WHEN NOT over;
        BEGIN
            -- Whoever has written to it and not ended holds a lock, and it is left alone.
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', c.rel);
            EXECUTE format('SELECT coalesce(max(id) <= $1, true) FROM ONLY %s', c.rel) INTO over USING p_floor;
            EXIT WHEN NOT over;
            part := c.rel;
            EXECUTE format('DROP TABLE %s', part);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            part := NULL;
        END;
    END LOOP;
    deleted := 0;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_outbox_problems(text): why changes of a table may not be recorded as they should, with the cure
CREATE OR REPLACE FUNCTION pgtrickle._relay_outbox_problems(p_outbox text) RETURNS TABLE (problem text, cure text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    o       pgtrickle.relay_outboxes;
    t       regclass := pgtrickle._relay_stream_oid(p_outbox);
    called  text := pgtrickle._relay_table_name(t);
    upgrade text := format('SELECT pgtrickle.outbox_upgrade(%L)', p_outbox);
    fn      record;
BEGIN
    SELECT r.* INTO o FROM pgtrickle.relay_outboxes r WHERE r.outbox_table_name = p_outbox;
    IF o.stream_table IS NULL THEN
        RETURN; -- an application writes it with outbox_publish
    ELSIF t IS NULL THEN
        RETURN QUERY SELECT format('table %s.%s is gone, or belongs to another role', o.stream_schema, o.stream_table),
            format('SELECT pgtrickle.disable_outbox(%L), when its readers have everything', p_outbox);
        RETURN;
    END IF;
    SELECT p.oid, p.prosrc, p.proowner, coalesce(p.proconfig, '{}') AS config, g.tgenabled, c.relowner INTO fn
        FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_class c ON c.oid = g.tgrelid
        WHERE g.tgrelid = t AND g.tgname = pgtrickle._relay_trigger(p_outbox, 'row');
    IF fn.oid IS NULL AND to_regprocedure(format('pgtrickle.%I()', o.capture_function)) IS NOT NULL
       AND EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t AND g.tgfoid = to_regprocedure(format('pgtrickle.%I()', o.capture_function))) THEN
        RETURN QUERY SELECT format('the changes of %s are captured by statement triggers of an older version', called), upgrade;
    ELSIF fn.oid IS NULL THEN
        RETURN QUERY SELECT format('%s has no trigger that records its changes', called), upgrade;
    ELSIF fn.tgenabled NOT IN ('O', 'A') THEN
        RETURN QUERY SELECT format('the trigger that records the changes of %s is disabled', called), upgrade;
    ELSIF fn.proowner <> fn.relowner THEN
        RETURN QUERY SELECT format('%s has another owner than the function that records its changes', called), upgrade;
    ELSIF fn.prosrc <> pgtrickle._relay_capture_source(p_outbox, t)
       OR NOT ARRAY(SELECT s FROM unnest(fn.config) s WHERE s NOT LIKE 'search_path=%') @> pgtrickle._relay_text_settings(t) THEN
        RETURN QUERY SELECT format('the columns of %s have changed since its changes are recorded', called), upgrade;
    END IF;
    RETURN QUERY SELECT format('the trigger that records the changes of partition %s is disabled', pgtrickle._relay_table_name(g.tgrelid)), upgrade
        FROM pg_trigger g WHERE g.tgrelid <> t AND g.tgrelid IN (SELECT pt.relid FROM pg_partition_tree(t) pt)
          AND g.tgname = pgtrickle._relay_trigger(p_outbox, 'row') AND g.tgenabled NOT IN ('O', 'A');
    RETURN QUERY SELECT format('trigger %I of %s fires before its changes are recorded', g.tgname, called), 'rename it, so that its name begins with a letter'
        FROM pg_trigger g WHERE g.tgrelid = t AND NOT g.tgisinternal AND g.tgtype & 67 = 1 AND g.tgname < '!pgtrickle_';
    RETURN QUERY SELECT format('a TRUNCATE of %s is not recorded', pgtrickle._relay_table_name(pt.relid)), upgrade
        FROM (SELECT t UNION SELECT p.relid FROM pg_partition_tree(t) p) pt(relid) JOIN pg_class c ON c.oid = pt.relid
        WHERE o.truncate_policy <> 'ignore' AND fn.oid IS NOT NULL AND c.relkind IN ('r', 'p')
          AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = pt.relid AND g.tgname = pgtrickle._relay_trigger(p_outbox, 'truncate') AND g.tgenabled IN ('O', 'A'));
    RETURN QUERY SELECT format('outbox pgtrickle.%I has a payload of type jsonb, which costs more', p_outbox), upgrade
        FROM pg_attribute a WHERE a.attrelid = to_regclass(format('pgtrickle.%I', p_outbox)) AND a.attname = 'payload' AND a.atttypid = 'jsonb'::regtype;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_outbox_status(text, name[]): outbox_status with the caller's search path
CREATE OR REPLACE FUNCTION pgtrickle._relay_outbox_status(p_name text, p_path name[]) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_name, p_path);
    status jsonb;
BEGIN
    IF outbox IS NULL THEN
        RETURN jsonb_build_object('enabled', false, 'stream_table', p_name);
    END IF;
    EXECUTE format('SELECT jsonb_build_object(''enabled'', true, ''stream_table'', $1, ''outbox_table'', $2,
            ''row_count'', count(*), ''oldest_row'', min(created_at), ''newest_row'', max(created_at)) FROM pgtrickle.%I', outbox)
        INTO status USING p_name, 'pgtrickle.' || outbox;
    RETURN status || (SELECT to_jsonb(c) FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = outbox)
        || jsonb_build_object('problems', (SELECT coalesce(jsonb_agg(jsonb_build_object('problem', p.problem, 'cure', p.cure)), '[]')
                                           FROM pgtrickle._relay_outbox_problems(outbox) p));
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_status(text): what an outbox holds
CREATE OR REPLACE FUNCTION pgtrickle.outbox_status(p_name text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN pgtrickle._relay_outbox_status(p_name, pg_catalog.current_schemas(false));
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_rows_consumed(text, bigint): forgets the claim-check rows up to an outbox row, which every consumer must have delivered
CREATE OR REPLACE FUNCTION pgtrickle.outbox_rows_consumed(p_stream_table text, p_outbox_id bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_stream_table);
    delta  text;
    n      bigint := 0;
BEGIN
    IF outbox IS NULL THEN
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_stream_table USING ERRCODE = 'undefined_object';
    END IF;
    SELECT 'outbox_delta_rows_' || left(c.stream_table_name, 48) INTO delta FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = outbox;
    IF to_regclass(format('pgtrickle.%I', delta)) IS NOT NULL THEN
        EXECUTE format('DELETE FROM pgtrickle.%I WHERE outbox_id <= $1', delta) USING p_outbox_id;
        GET DIAGNOSTICS n = ROW_COUNT;
    END IF;
    UPDATE pgtrickle.pgt_outbox_config SET last_drained_at = now(), last_drained_count = n WHERE outbox_table_name = outbox;
END $fn$;
-- +end
