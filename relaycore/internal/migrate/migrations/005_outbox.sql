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
    ELSIF NEW.action IN ('drop outbox', 'set truncate policy') THEN
        t := pgtrickle._relay_stream_oid(NEW.target);
        what := 'the table of outbox ' || NEW.target;
    ELSIF NEW.action = 'register inbox' THEN
        t := pgtrickle._relay_find(NEW.detail ->> 'inbox_schema', NEW.detail ->> 'inbox_name');
        what := 'table ' || NEW.target;
    ELSIF NEW.action = 'unregister inbox' THEN
        t := (SELECT pgtrickle._relay_find(i.inbox_schema, i.inbox_name) FROM pgtrickle.pgt_inbox_config i WHERE i.inbox_name = NEW.target);
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
    END IF;
    CASE NEW.action
        WHEN 'create outbox' THEN PERFORM pgtrickle._relay_create_outbox(t, (NEW.detail ->> 'retention_hours')::integer);
        WHEN 'drop outbox' THEN PERFORM pgtrickle._relay_drop_outbox(NEW.target);
        WHEN 'set truncate policy' THEN PERFORM pgtrickle._relay_set_truncate_policy(NEW.target, NEW.detail ->> 'policy');
        WHEN 'register inbox' THEN INSERT INTO pgtrickle.pgt_inbox_config SELECT (jsonb_populate_record(NULL::pgtrickle.pgt_inbox_config, NEW.detail)).*;
        WHEN 'unregister inbox' THEN DELETE FROM pgtrickle.pgt_inbox_config i WHERE i.inbox_name = NEW.target;
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
CREATE OR REPLACE FUNCTION pgtrickle._relay_stream_oid(p_outbox text) RETURNS regclass
LANGUAGE sql STABLE STRICT SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT coalesce(
        -- A table that was renamed is known by its triggers, one that was restored by its name.
        (SELECT t.tgrelid FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname = 'pgtrickle' AND p.proname = o.capture_function
              AND NOT EXISTS (SELECT FROM pg_inherits i JOIN pg_trigger t2 ON t2.tgrelid = i.inhparent
                              WHERE i.inhrelid = t.tgrelid AND t2.tgfoid = t.tgfoid)
            ORDER BY t.tgrelid LIMIT 1),
        pgtrickle._relay_find(o.stream_schema, o.stream_table))::regclass
    FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = p_outbox AND o.stream_table IS NOT NULL
$fn$;
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
        payload        jsonb,
        xid            xid8        NOT NULL DEFAULT pg_current_xact_id())', outbox);
    EXECUTE format('CREATE INDEX %I ON pgtrickle.%I (xid, id)', pgtrickle._relay_name(outbox, '_xid_idx'), outbox);
    EXECUTE format('COMMENT ON TABLE pgtrickle.%I IS %L', outbox, 'pgtrickle-relay: outbox of ' || p_label);
    IF p_stream_schema IS NOT NULL THEN
        capture := pgtrickle._relay_name(outbox, '_capture');
        IF to_regprocedure(format('pgtrickle.%I()', capture)) IS NOT NULL THEN
            capture := pgtrickle._relay_name(outbox, '_capture_' || left(md5(p_label), 7));
        END IF;
    END IF;
    -- A restored database has other oids: an entry may hold the oid of what is now another table.
    UPDATE pgtrickle.pgt_outbox_config c
        SET stream_table_oid = coalesce(pgtrickle._relay_stream_oid(c.outbox_table_name),
                                        to_regclass(format('pgtrickle.%I', c.outbox_table_name)))
        WHERE c.stream_table_oid = p_oid;
    INSERT INTO pgtrickle.pgt_outbox_config (stream_table_oid, stream_table_name, outbox_table_name, retention_hours)
        VALUES (coalesce(p_oid, to_regclass(format('pgtrickle.%I', outbox))), p_stream_table, outbox, p_retention_hours);
    INSERT INTO pgtrickle.relay_outboxes (outbox_table_name, stream_schema, stream_table, capture_function)
        VALUES (outbox, p_stream_schema, CASE WHEN p_stream_schema IS NOT NULL THEN p_stream_table END, capture);
    PERFORM pgtrickle.relay_grant_access();
    RETURN outbox;
END $fn$;
-- +end

-- One statement of the user makes one outbox row, or, when its rows come to more
-- than 4 MiB, several in the same order: a jsonb holds 256 MiB at most, and whoever
-- reads the outbox holds a row in memory.
--
-- Rows are numbered in the order in which PostgreSQL stored them. An update adds to
-- both transition tables for each row, so equal numbers are the same row.
--
-- A row must look the same whoever writes it, for it may be a key: hence the SETs.
--
-- Virtual generated columns are left out: transition tables have nulls for them.
-- Statements of one row take a short cut, which looks for such columns only when
-- the row has nulls.
--
-- A table can have a column of any name. x.* is the row even where one is called x,
-- which x alone is not; and a variable goes before a column of its name.

-- +plain-function pgtrickle._relay_virtual_columns(oid): the virtual generated columns of a table
CREATE OR REPLACE FUNCTION pgtrickle._relay_virtual_columns(t oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = t AND a.attgenerated = 'v')
$fn$;
-- +end

-- +plain-function pgtrickle._relay_capture_source(text): the source of the trigger function of an outbox
CREATE OR REPLACE FUNCTION pgtrickle._relay_capture_source(p_outbox text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format($capture$
#variable_conflict use_variable
DECLARE
    n      integer := 0;
    j      jsonb;
    before jsonb;
    hidden text[];
    none   constant jsonb := '[]';
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM pgtrickle._relay_capture_truncate(TG_RELID, TG_ARGV[0], %1$L);
        RETURN NULL;
    ELSIF TG_OP = 'DELETE' THEN
        FOR j IN SELECT to_jsonb(x.*) FROM old_rows x LIMIT 2 LOOP
            n := n + 1;
        END LOOP;
    ELSE
        FOR j IN SELECT to_jsonb(x.*) FROM new_rows x LIMIT 2 LOOP
            n := n + 1;
        END LOOP;
    END IF;
    IF n = 0 THEN
        RETURN NULL;
    ELSIF n > 1 OR j @? '$.* ? (@ == null)' THEN
        hidden := pgtrickle._relay_virtual_columns(TG_RELID);
    END IF;

    IF TG_OP = 'INSERT' AND n = 1 THEN
        INSERT INTO pgtrickle.%1$I (inserted_count, payload) VALUES (1, jsonb_build_object('v', 1,
            'inserted', jsonb_build_array(j - coalesce(hidden, '{}')), 'updated', none, 'deleted', none));
    ELSIF TG_OP = 'DELETE' AND n = 1 THEN
        INSERT INTO pgtrickle.%1$I (deleted_count, payload) VALUES (1, jsonb_build_object('v', 1,
            'inserted', none, 'updated', none, 'deleted', jsonb_build_array(j - coalesce(hidden, '{}'))));
    ELSIF TG_OP = 'UPDATE' AND n = 1 THEN
        SELECT to_jsonb(x.*) INTO before FROM old_rows x;
        INSERT INTO pgtrickle.%1$I (inserted_count, deleted_count, payload) VALUES (1, 1, jsonb_build_object('v', 1,
            'inserted', none, 'updated', jsonb_build_array(jsonb_build_object(
                'old', before - coalesce(hidden, '{}'), 'new', j - coalesce(hidden, '{}'))), 'deleted', none));
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO pgtrickle.%1$I (inserted_count, payload)
        SELECT count(*), jsonb_build_object('v', 1, 'inserted', jsonb_agg(r.j ORDER BY r.n), 'updated', none, 'deleted', none)
        FROM (SELECT s.j, row_number() OVER w AS n, sum(pg_column_size(s.j)) OVER w / 4194304 AS part
              FROM (SELECT to_jsonb(x.*) - hidden AS j FROM new_rows x OFFSET 0) s WINDOW w AS (ROWS UNBOUNDED PRECEDING)) r
        GROUP BY r.part ORDER BY r.part;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO pgtrickle.%1$I (deleted_count, payload)
        SELECT count(*), jsonb_build_object('v', 1, 'inserted', none, 'updated', none, 'deleted', jsonb_agg(r.j ORDER BY r.n))
        FROM (SELECT s.j, row_number() OVER w AS n, sum(pg_column_size(s.j)) OVER w / 4194304 AS part
              FROM (SELECT to_jsonb(x.*) - hidden AS j FROM old_rows x OFFSET 0) s WINDOW w AS (ROWS UNBOUNDED PRECEDING)) r
        GROUP BY r.part ORDER BY r.part;
    ELSE
        INSERT INTO pgtrickle.%1$I (inserted_count, deleted_count, payload)
        SELECT count(*), count(*), jsonb_build_object('v', 1, 'inserted', none, 'updated', jsonb_agg(r.j ORDER BY r.n), 'deleted', none)
        FROM (SELECT s.j, s.n, sum(pg_column_size(s.j)) OVER (ORDER BY s.n ROWS UNBOUNDED PRECEDING) / 4194304 AS part
              FROM (SELECT o.n, jsonb_build_object('old', o.j - hidden, 'new', w.j - hidden) AS j
                    FROM (SELECT to_jsonb(x.*) AS j, row_number() OVER () AS n FROM old_rows x) o
                    JOIN (SELECT to_jsonb(x.*) AS j, row_number() OVER () AS n FROM new_rows x) w ON w.n = o.n) s) r
        GROUP BY r.part ORDER BY r.part;
    END IF;
    RETURN NULL;
END $capture$, p_outbox)
$fn$;
-- +end

-- +plain-function pgtrickle._relay_write_capture(text, text): creates or replaces the trigger function of an outbox
CREATE OR REPLACE FUNCTION pgtrickle._relay_write_capture(p_outbox text, p_capture text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    EXECUTE format('CREATE OR REPLACE FUNCTION pgtrickle.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pgtrickle, pg_catalog, pg_temp SET TimeZone = ''UTC'' SET IntervalStyle = ''postgres''
        SET bytea_output = ''hex'' SET extra_float_digits = 1 AS %L', p_capture, pgtrickle._relay_capture_source(p_outbox));
    EXECUTE format('COMMENT ON FUNCTION pgtrickle.%I() IS %L', p_capture, 'pgtrickle-relay: writes outbox ' || p_outbox);
END $fn$;
-- +end

-- A partitioned table is truncated with all its partitions, and the triggers of
-- these run as well: a partition that has none is captured here.

-- +plain-function pgtrickle._relay_capture_truncate(oid, text, text): what TRUNCATE of a table with an outbox does
CREATE OR REPLACE FUNCTION pgtrickle._relay_capture_truncate(p_table oid, p_policy text, p_outbox text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp SET row_security = off AS $fn$
DECLARE
    part regclass;
BEGIN
    IF p_policy = 'refuse' THEN
        RAISE EXCEPTION 'TRUNCATE of % is refused: its outbox pgtrickle.% records every change', pgtrickle._relay_table_name(p_table), p_outbox
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'Use DELETE, or allow TRUNCATE with SELECT pgtrickle.outbox_truncate_policy(table, ''delete'').';
    END IF;
    FOR part IN
        SELECT c.oid FROM pg_class c WHERE c.oid = p_table AND c.relkind = 'r'
        UNION ALL
        SELECT pt.relid FROM pg_partition_tree(p_table) pt
            WHERE pt.isleaf AND pt.relid <> p_table
              AND NOT EXISTS (SELECT FROM pg_trigger g JOIN pg_trigger own ON own.tgfoid = g.tgfoid AND own.tgname = g.tgname
                              WHERE g.tgrelid = pt.relid AND own.tgrelid = p_table AND g.tgname = 'pgtrickle_outbox_truncate')
    LOOP
        EXECUTE format($q$
            INSERT INTO pgtrickle.%1$I (deleted_count, payload)
            SELECT count(*), jsonb_build_object('v', 1, 'inserted', '[]'::jsonb, 'updated', '[]'::jsonb, 'deleted', jsonb_agg(r.j ORDER BY r.n))
            FROM (SELECT s.j, row_number() OVER w AS n, sum(pg_column_size(s.j)) OVER w / 4194304 AS part
                  FROM (SELECT to_jsonb(x.*) - $1 AS j FROM ONLY %2$s x OFFSET 0) s WINDOW w AS (ROWS UNBOUNDED PRECEDING)) r
            GROUP BY r.part ORDER BY r.part$q$, p_outbox, part)
            USING pgtrickle._relay_virtual_columns(part);
    END LOOP;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_create_outbox(regclass, integer): makes the outbox of a table; returns its name
CREATE OR REPLACE FUNCTION pgtrickle._relay_create_outbox(t regclass, p_retention_hours integer) RETURNS text
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    rel     record;
    outbox  text;
    capture text;
BEGIN
    SELECT c.relname, c.relowner, n.nspname INTO rel FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t;
    LOCK TABLE pgtrickle.pgt_outbox_config IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pgtrickle.relay_outboxes o WHERE pgtrickle._relay_stream_oid(o.outbox_table_name) = t) THEN
        RAISE EXCEPTION 'outbox already enabled for stream table: %', pgtrickle._relay_table_name(t) USING ERRCODE = 'duplicate_object';
    END IF;
    outbox := pgtrickle._relay_new_outbox(rel.nspname, rel.relname, pgtrickle._relay_table_name(t), p_retention_hours, t);
    SELECT o.capture_function INTO capture FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = outbox;
    PERFORM pgtrickle._relay_write_capture(outbox, capture);
    -- Whoever may attach it may write the outbox: its owner only.
    EXECUTE format('REVOKE ALL ON FUNCTION pgtrickle.%I() FROM PUBLIC', capture);
    EXECUTE format('GRANT EXECUTE ON FUNCTION pgtrickle.%I() TO %s', capture, rel.relowner::regrole);
    EXECUTE format('GRANT SELECT ON pgtrickle.%I TO %s', outbox, rel.relowner::regrole);
    RETURN outbox;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_captured(regclass): a table and the partitions whose direct writes are captured with it
CREATE OR REPLACE FUNCTION pgtrickle._relay_captured(t regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT t
    UNION
    SELECT pt.relid FROM pg_partition_tree(t) pt JOIN pg_class c ON c.oid = pt.relid WHERE c.relkind IN ('r', 'p')
$fn$;
-- +end

-- +plain-function pgtrickle._relay_attach(regclass, text, text): puts the triggers on a table and its partitions, where they are not yet, with the caller's rights
CREATE OR REPLACE FUNCTION pgtrickle._relay_attach(t regclass, p_capture text, p_policy text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    rel     regclass;
    definer name;
BEGIN
    SELECT r.rolname INTO definer FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_roles r ON r.oid = p.proowner
        WHERE n.nspname = 'pgtrickle' AND p.proname = p_capture;
    FOR rel IN SELECT c FROM pgtrickle._relay_captured(t) c LOOP
        -- A table that had an outbox of its own when it became a partition.
        IF EXISTS (SELECT FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid
                   WHERE g.tgrelid = rel AND g.tgname LIKE 'pgtrickle\_outbox\_%' AND p.proname <> p_capture) THEN
            RAISE WARNING 'partition % has an outbox of its own: what is written to it directly is not recorded in the outbox of %',
                pgtrickle._relay_table_name(rel), pgtrickle._relay_table_name(t)
                USING HINT = 'When its readers have everything, call disable_outbox for the partition, and then outbox_attach_partitions.';
            CONTINUE;
        END IF;
        IF NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = rel AND g.tgname = 'pgtrickle_outbox_insert') THEN
            EXECUTE format('CREATE TRIGGER pgtrickle_outbox_insert AFTER INSERT ON %s
                REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION pgtrickle.%I()', rel, p_capture);
            EXECUTE format('CREATE TRIGGER pgtrickle_outbox_update AFTER UPDATE ON %s
                REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION pgtrickle.%I()', rel, p_capture);
            EXECUTE format('CREATE TRIGGER pgtrickle_outbox_delete AFTER DELETE ON %s
                REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION pgtrickle.%I()', rel, p_capture);
        END IF;
        IF EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = rel AND g.tgname = 'pgtrickle_outbox_truncate') THEN
            EXECUTE format('DROP TRIGGER pgtrickle_outbox_truncate ON %s', rel);
        END IF;
        IF p_policy <> 'ignore' THEN
            EXECUTE format('CREATE TRIGGER pgtrickle_outbox_truncate BEFORE TRUNCATE ON %s
                FOR EACH STATEMENT EXECUTE FUNCTION pgtrickle.%I(%L)', rel, p_capture, p_policy);
        END IF;
        -- The rows that TRUNCATE deletes are read from the table itself.
        IF p_policy = 'delete' AND NOT has_table_privilege(definer, rel, 'SELECT') THEN
            EXECUTE format('GRANT SELECT ON %s TO %I', rel, definer);
        END IF;
    END LOOP;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_enable_outbox(text, name[], integer): enable_outbox with the caller's search path
CREATE OR REPLACE FUNCTION pgtrickle._relay_enable_outbox(p_name text, p_path name[], p_retention_hours integer) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    t   regclass := pgtrickle._relay_resolve(p_name, p_path);
    rel record;
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
    IF EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = t) THEN
        RAISE WARNING '% inherits from %: what UPDATE, DELETE and MERGE of that table do to its rows is not recorded', pgtrickle._relay_table_name(t),
            (SELECT string_agg(pgtrickle._relay_table_name(i.inhparent), ', ' ORDER BY i.inhseqno) FROM pg_inherits i WHERE i.inhrelid = t)
            USING HINT = 'Name the table itself in statements that change its rows, or make it a partition of a partitioned table.';
    END IF;
    IF rel.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = t) THEN
        RAISE WARNING '% has children by INHERITS: what is written to a child directly, and what TRUNCATE deletes from one, is not recorded', pgtrickle._relay_table_name(t)
            USING HINT = 'Call enable_outbox for the children, too, or make the table a partitioned one.';
    END IF;
    IF EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid IN (SELECT pgtrickle._relay_captured(t))
               AND NOT g.tgisinternal AND g.tgtype & 1 = 1 AND g.tgtype & 66 = 0) THEN -- AFTER … FOR EACH ROW
        RAISE WARNING '% has AFTER ROW triggers: if one of them writes to the same table, its change is recorded before the one that fired it',
            pgtrickle._relay_table_name(t) USING HINT = 'Change rows of the same table in a BEFORE trigger.';
    END IF;
    INSERT INTO pgtrickle._relay_requests (action, target, detail)
        VALUES ('create outbox', t::oid::text, jsonb_build_object('retention_hours', p_retention_hours));
    PERFORM pgtrickle._relay_attach(t, o.capture_function, 'delete')
        FROM pgtrickle.relay_outboxes o WHERE pgtrickle._relay_stream_oid(o.outbox_table_name) = t;
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
    IF o.capture_function IS NOT NULL THEN
        EXECUTE format('DROP FUNCTION IF EXISTS pgtrickle.%I()', o.capture_function);
    END IF;
    DELETE FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = p_outbox;
    DELETE FROM pgtrickle.relay_outboxes r WHERE r.outbox_table_name = p_outbox;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_disable_outbox(text, name[], boolean): disable_outbox with the caller's search path
CREATE OR REPLACE FUNCTION pgtrickle._relay_disable_outbox(p_name text, p_path name[], p_if_exists boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_name, p_path);
    t      regclass;
    g      record;
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
    FOR g IN
        SELECT tg.tgname, tg.tgrelid::regclass AS rel
        FROM pg_trigger tg JOIN pg_proc p ON p.oid = tg.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
        JOIN pgtrickle.relay_outboxes o ON o.capture_function = p.proname
        WHERE n.nspname = 'pgtrickle' AND o.outbox_table_name = outbox
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', g.tgname, g.rel);
    END LOOP;
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

-- +plain-function pgtrickle._relay_reattach(text, name[], text): puts missing triggers on new partitions, with the same or a new policy
CREATE OR REPLACE FUNCTION pgtrickle._relay_reattach(p_name text, p_path name[], p_policy text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_name, p_path);
    t      regclass := pgtrickle._relay_stream_oid(outbox);
BEGIN
    IF t IS NULL THEN
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_name USING ERRCODE = 'undefined_object';
    END IF;
    INSERT INTO pgtrickle._relay_requests (action, target, detail) VALUES ('set truncate policy', outbox, jsonb_build_object('policy', p_policy));
    PERFORM pgtrickle._relay_attach(t, o.capture_function, o.truncate_policy)
        FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = outbox;
END $fn$;
-- +end

-- +plain-function pgtrickle._relay_set_truncate_policy(text, text): remembers the policy of an outbox, unless it is null
CREATE OR REPLACE FUNCTION pgtrickle._relay_set_truncate_policy(p_outbox text, p_policy text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF p_policy IS NOT NULL AND p_policy NOT IN ('delete', 'refuse', 'ignore') THEN
        RAISE EXCEPTION 'unknown TRUNCATE policy "%": must be delete, refuse or ignore', p_policy USING ERRCODE = 'invalid_parameter_value';
    END IF;
    UPDATE pgtrickle.relay_outboxes SET truncate_policy = p_policy WHERE outbox_table_name = p_outbox AND p_policy IS NOT NULL;
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_truncate_policy(text, text): what TRUNCATE does: delete, refuse or ignore
CREATE OR REPLACE FUNCTION pgtrickle.outbox_truncate_policy(p_name text, p_policy text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), p_policy);
END $fn$;
-- +end

-- +plain-function pgtrickle.outbox_attach_partitions(text): captures direct writes to partitions that were added after enable_outbox
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
    EXECUTE format('GRANT SELECT (id), INSERT (refresh_id, inserted_count, deleted_count, payload) ON pgtrickle.%I TO %I', outbox, p_role);
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
    EXECUTE format('GRANT EXECUTE ON FUNCTION pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid) TO %I', p_role);
END $fn$;
-- +end

-- +function pgtrickle.outbox_publish(text, jsonb, text, jsonb, uuid): writes one event, or a list of events, to an outbox with the caller's rights; returns the id of the outbox row
CREATE OR REPLACE FUNCTION pgtrickle.outbox_publish(
    p_outbox text, p_payload jsonb, p_op text DEFAULT 'insert', p_old jsonb DEFAULT NULL, p_refresh_id uuid DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    outbox text := pgtrickle._relay_outbox_table(p_outbox);
    events jsonb := CASE jsonb_typeof(p_payload) WHEN 'array' THEN p_payload ELSE jsonb_build_array(p_payload) END;
    n      bigint;
    id     bigint;
BEGIN
    IF outbox IS NULL THEN
        RAISE EXCEPTION 'outbox not enabled for stream table: %', p_outbox
            USING ERRCODE = 'undefined_object', HINT = 'Make one with SELECT pgtrickle.create_outbox(name).';
    ELSIF p_op IS NULL OR p_op NOT IN ('insert', 'update', 'delete') THEN
        RAISE EXCEPTION 'unknown operation "%": must be insert, update or delete', p_op USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_payload IS NULL OR jsonb_path_exists(events, '$[*] ? (@.type() != "object")') THEN
        RAISE EXCEPTION 'the payload must be a JSON object or a list of objects' USING ERRCODE = 'invalid_parameter_value';
    ELSIF p_old IS NOT NULL AND (p_op <> 'update' OR jsonb_typeof(p_payload) <> 'object' OR jsonb_typeof(p_old) <> 'object') THEN
        RAISE EXCEPTION 'the old row belongs to an update of one row' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    n := jsonb_array_length(events);
    EXECUTE format('INSERT INTO pgtrickle.%I (refresh_id, inserted_count, deleted_count, payload) VALUES ($1, $2, $3, $4) RETURNING id', outbox)
        INTO id USING p_refresh_id,
            CASE p_op WHEN 'delete' THEN 0 ELSE n END,
            CASE p_op WHEN 'insert' THEN 0 ELSE n END,
            jsonb_build_object('v', 1,
                'inserted', CASE p_op WHEN 'insert' THEN events ELSE '[]' END,
                'updated', CASE p_op WHEN 'update' THEN (
                    SELECT coalesce(jsonb_agg(jsonb_build_object('old', p_old, 'new', e.j) ORDER BY e.n), '[]')
                    FROM jsonb_array_elements(events) WITH ORDINALITY AS e(j, n)) ELSE '[]' END,
                'deleted', CASE p_op WHEN 'delete' THEN events ELSE '[]' END);
    RETURN id;
END $fn$;
-- +end

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
            HINT = format('ALTER TABLE %s RENAME COLUMN xid TO …, and call this again.', rel.name);
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
    RETURN status || (SELECT to_jsonb(c) FROM pgtrickle.pgt_outbox_config c WHERE c.outbox_table_name = outbox);
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
