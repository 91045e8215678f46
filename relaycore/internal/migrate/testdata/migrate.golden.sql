-- The catalog of pgtrickle-relay, version 7.

BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL check_function_bodies = on;
SELECT pg_catalog.pg_advisory_xact_lock(7283460186294519713);

-- Runs first, and reads PostgreSQL's own catalogs alone: the schema's objects may be a
-- stranger's. It decides which role owns the catalog, and goes on as that role, so that
-- no function of ours has a superuser's rights. pgtrickle_relay.owner names the role.
DO $do$
DECLARE
    named  constant text := nullif(current_setting('pgtrickle_relay.owner', true), '');
    super  constant boolean := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
    become constant text := CASE WHEN current_setting('server_version_num')::integer >= 160000 THEN 'SET' ELSE 'MEMBER' END;
    beside constant boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trickle');
    holder text;
    held   boolean; -- by a superuser
    target text := coalesce(named, CASE WHEN super THEN 'pgtrickle_owner' ELSE current_user END);
    refused text;
    statement text;
    done   text[] := '{}';
BEGIN
    PERFORM set_config('pgtrickle_relay.handed_over', '', true), set_config('pgtrickle_relay.refused', '', true);
    -- The relay's role belongs to the whole cluster: another database may be making it now.
    BEGIN
        IF to_regrole('pgtrickle_relay') IS NULL THEN
            CREATE ROLE pgtrickle_relay NOLOGIN;
        END IF;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN
            NULL;
        WHEN insufficient_privilege THEN
            RAISE WARNING 'role pgtrickle_relay does not exist, and % may not create it', current_user
                USING HINT = 'Let an administrator run CREATE ROLE pgtrickle_relay NOLOGIN, then migrate again; until then the relay needs the rights of ' || target || '.';
    END;

    SELECT r.rolname, r.rolsuper INTO holder, held FROM pg_namespace n JOIN pg_roles r ON r.oid = n.nspowner WHERE n.nspname = 'pgtrickle';
    IF NOT beside AND holder <> target AND NOT (held AND super) THEN
        refused := format('schema pgtrickle belongs to role %1$I, not to %2$I: migrate as %1$I, or with --owner=%1$I if you trust that role', holder, target);
        -- A relay trusts the schema's owner in any case. It may find that there is nothing to do.
        IF NOT super AND pg_has_role(current_user, (SELECT oid FROM pg_roles WHERE rolname = 'pgtrickle_relay'), 'USAGE') THEN
            PERFORM set_config('pgtrickle_relay.refused', refused, true);
            RETURN;
        END IF;
        RAISE EXCEPTION '%', refused USING ERRCODE = 'insufficient_privilege';
    END IF;

    IF to_regrole(quote_ident(target)) IS NULL THEN
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', target);
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'role % does not exist: let an administrator run CREATE ROLE % NOLOGIN; GRANT % TO %',
                    target, quote_ident(target), quote_ident(target), quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
        END;
    ELSIF (SELECT rolsuper FROM pg_roles WHERE rolname = target) THEN
        RAISE EXCEPTION 'owner role % is a superuser: name a role without such rights with --owner', quote_ident(target)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF target <> current_user AND NOT pg_has_role(current_user, target, become) THEN
        BEGIN
            EXECUTE format('GRANT %I TO %I', target, current_user);
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;
        END;
        IF NOT pg_has_role(current_user, target, become) THEN
            RAISE EXCEPTION 'role % may not become the owner: let an administrator run GRANT % TO %',
                current_user, quote_ident(target), quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
        END IF;
    END IF;

    IF holder IS NULL THEN
        EXECUTE format('CREATE SCHEMA pgtrickle AUTHORIZATION %I', target);
    END IF;
    IF super THEN
        -- What a superuser has made before. Beside the extension, what is marked as ours.
        FOR statement IN
            SELECT s || format(' OWNER TO %I', target) FROM (
                SELECT 1, 'ALTER SCHEMA pgtrickle', nspowner FROM pg_namespace WHERE nspname = 'pgtrickle' AND NOT beside
                UNION ALL
                SELECT 3, format('ALTER TABLE %I.%I', 'pgtrickle', c.relname), c.relowner FROM pg_class c
                    WHERE c.relnamespace = to_regnamespace('pgtrickle') AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
                      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                          AND (d.deptype = 'e' OR (c.relkind = 'S' AND d.deptype IN ('a', 'i'))))
                      AND (NOT beside OR c.relname = 'relay_migrations' OR c.relname LIKE 'relay\_saved\_%' OR obj_description(c.oid, 'pg_class') LIKE 'pgtrickle-relay:%')
                UNION ALL
                SELECT 4, format('ALTER ROUTINE %s', p.oid::regprocedure), p.proowner FROM pg_proc p
                    WHERE p.pronamespace = to_regnamespace('pgtrickle')
                      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
                      AND (NOT beside OR obj_description(p.oid, 'pg_proc') LIKE 'pgtrickle-relay:%')
            ) o(n, s, owner) JOIN pg_roles r ON r.oid = o.owner AND r.rolsuper ORDER BY n, s
        LOOP
            EXECUTE statement;
            done := done || statement;
        END LOOP;
    END IF;
    IF super AND beside THEN
        -- The owner works beside the extension, and a relay reads what the extension owns.
        FOR statement IN
            SELECT format('GRANT %s ON SCHEMA pgtrickle TO %I WITH GRANT OPTION', p, target) FROM unnest(ARRAY['USAGE', 'CREATE']) p
                WHERE NOT has_schema_privilege(target, 'pgtrickle', p || ' WITH GRANT OPTION')
            UNION ALL
            SELECT 'GRANT USAGE ON SCHEMA pgtrickle TO pgtrickle_relay' WHERE NOT has_schema_privilege('pgtrickle_relay', 'pgtrickle', 'USAGE')
            UNION ALL
            SELECT format('GRANT %s ON %I.%I TO %I%s', p, 'pgtrickle', c.relname, grantee, CASE WHEN grantee = target AND c.relname LIKE 'outbox\_%' THEN ' WITH GRANT OPTION' ELSE '' END)
                FROM pg_extension e JOIN pg_class c ON c.relowner = e.extowner AND c.relnamespace = to_regnamespace('pgtrickle') AND c.relkind IN ('r', 'p', 'v'),
                unnest(ARRAY[target, 'pgtrickle_relay']) grantee,
                LATERAL unnest(CASE
                    WHEN grantee <> target AND (c.relkind = 'v' OR c.relname LIKE 'pgt\_%' AND c.relname <> ALL
                        ('{pgt_outbox_config,pgt_inbox_config,pgt_consumer_groups,pgt_consumer_offsets,pgt_stream_tables}')) THEN '{}'::text[]
                    WHEN c.relname LIKE 'pgt\_%' THEN '{SELECT}'
                    WHEN c.relname LIKE 'outbox\_delta\_rows\_%' THEN '{SELECT,DELETE}'
                    WHEN c.relname LIKE 'outbox\_%' AND grantee <> target THEN '{SELECT}'
                    WHEN c.relname = 'relay_consumer_offsets' THEN '{SELECT,INSERT,UPDATE}'
                    WHEN c.relname IN ('relay_outbox_config', 'relay_inbox_config') AND grantee = target THEN '{SELECT,INSERT,UPDATE,DELETE}'
                    WHEN c.relname LIKE 'relay\_%' THEN '{SELECT}'
                    ELSE '{SELECT,INSERT}' END) p -- an inbox, or an outbox for outbox_grant_publish
                WHERE e.extname = 'pg_trickle' AND NOT has_table_privilege(grantee, c.oid, p)
            UNION ALL
            SELECT format('GRANT UPDATE (%I) ON pgtrickle.pgt_outbox_config TO pgtrickle_relay', a.attname) FROM pg_attribute a
                WHERE a.attrelid = to_regclass('pgtrickle.pgt_outbox_config') AND a.attname IN ('last_drained_at', 'last_drained_count')
                  AND NOT has_column_privilege('pgtrickle_relay', a.attrelid, a.attnum, 'UPDATE')
            UNION ALL
            SELECT format('GRANT %s ON SEQUENCE %I.%I TO %s', g.p, 'pgtrickle', c.relname, g.grantee)
                FROM pg_extension e JOIN pg_class c ON c.relowner = e.extowner AND c.relnamespace = to_regnamespace('pgtrickle') AND c.relkind = 'S',
                (VALUES ('SELECT', 'pgtrickle_relay', 'pgtrickle_relay'), ('USAGE', target, quote_ident(target) || ' WITH GRANT OPTION')) g(p, role, grantee)
                WHERE e.extname = 'pg_trickle' AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(g.role, c.oid, g.p) END
        LOOP
            EXECUTE statement;
        END LOOP;
    END IF;
    PERFORM set_config('pgtrickle_relay.handed_over', array_to_string(done, E'\n'), true);
    IF target <> current_user THEN
        PERFORM set_config('role', target, true);
    END IF;
END $do$;

-- Runs before every migration, on an empty database and on a migrated one.

DO $do$
BEGIN
    IF obj_description(to_regnamespace('pgtrickle')::oid, 'pg_namespace') IS NULL
       AND pg_has_role((SELECT nspowner FROM pg_namespace WHERE nspname = 'pgtrickle'), 'USAGE') THEN
        COMMENT ON SCHEMA pgtrickle IS 'pgtrickle-relay: pipelines, outboxes and inboxes';
    END IF;
END $do$;

CREATE TABLE IF NOT EXISTS pgtrickle.relay_migrations (
    version    integer     NOT NULL PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- Whether an object is ours to create or to replace. Ours carry a comment that
-- says so; what is there without one is pg_trickle's or the user's and is kept.
-- p_plain asks for objects that exist only where pg_trickle does not own the outboxes.
CREATE OR REPLACE FUNCTION pgtrickle._relay_claim(p_kind text, p_name text, p_plain boolean) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    mark    constant text := 'pgtrickle-relay:%';
    outboxes oid := to_regclass('pgtrickle.pgt_outbox_config');
    found   oid;
    holder  oid;
BEGIN
    -- From 0.46 on, pg_trickle has no outboxes of its own. migrate then writes another name
    -- for pgt_outbox_config into these files, but not here.
    IF p_plain AND (EXISTS (SELECT FROM pg_extension e, pg_attribute a WHERE e.extname = 'pg_trickle'
                        AND a.attrelid = to_regclass('pgtrickle.pgt_' || 'outbox_config') AND a.attname = 'outbox_table_name')
                    OR (outboxes IS NOT NULL AND obj_description(outboxes, 'pg_class') LIKE mark IS NOT TRUE)) THEN
        RETURN false;
    END IF;
    -- A name of ours at an object of a third role is no extension's object to keep.
    SELECT o.oid, o.owner INTO found, holder FROM (
        SELECT p.oid, p.proowner, 'pg_proc'::regclass FROM pg_proc p WHERE p_kind = 'function' AND p.oid = to_regprocedure(p_name)
        UNION ALL
        SELECT c.oid, c.relowner, 'pg_class'::regclass FROM pg_class c WHERE p_kind <> 'function' AND c.oid = to_regclass(p_name)) o(oid, owner, class)
        WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e');
    IF holder <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
       AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_trickle' AND e.extowner = holder) THEN
        RAISE EXCEPTION '% % belongs to role %, and % migrates: drop it, or let a superuser give it to that role',
            p_kind, p_name, holder::regrole, quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF p_kind = 'function' THEN
        found := to_regprocedure(p_name);
        RETURN found IS NULL OR coalesce(obj_description(found, 'pg_proc') LIKE mark, false);
    ELSIF p_kind = 'trigger' THEN -- on a table of ours
        RETURN coalesce(obj_description(to_regclass(p_name), 'pg_class') LIKE mark, false);
    END IF;
    RETURN to_regclass(p_name) IS NULL;
END $fn$;
COMMENT ON FUNCTION pgtrickle._relay_claim(text, text, boolean) IS 'pgtrickle-relay: whether migrate may create or replace an object';

-- The catalog's tables. Where pg_trickle owns one of its own, that one is kept.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_outbox_config', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_outbox_config (
    name    text    NOT NULL PRIMARY KEY,
    enabled boolean NOT NULL DEFAULT true,
    config  jsonb   NOT NULL
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_outbox_config IS 'pgtrickle-relay: forward pipelines, outbox to broker';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_inbox_config', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_inbox_config (
    name    text    NOT NULL PRIMARY KEY,
    enabled boolean NOT NULL DEFAULT true,
    config  jsonb   NOT NULL
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_inbox_config IS 'pgtrickle-relay: reverse pipelines, broker to inbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_consumer_offsets', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_consumer_offsets (
    relay_group_id text        NOT NULL,
    pipeline_id    text        NOT NULL,
    last_change_id bigint      NOT NULL DEFAULT 0,
    worker_id      text,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (relay_group_id, pipeline_id)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_consumer_offsets IS 'pgtrickle-relay: public view of how far each forward pipeline is';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_instances', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_instances (
    instance_id    text        NOT NULL PRIMARY KEY,
    relay_group_id text        NOT NULL,
    binary_name    text,
    version        text,
    backends       text[]      NOT NULL,
    hostname       text,
    pid            integer,
    lock_key       bigint      NOT NULL,
    draining       boolean     NOT NULL DEFAULT false,
    started_at     timestamptz NOT NULL DEFAULT now()
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_instances IS 'pgtrickle-relay: relay processes; lock_key is held as an advisory lock for as long as the process lives';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_cursors', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
-- Rewritten at every checkpoint: the free space in each page keeps the updates HOT.
CREATE TABLE pgtrickle.relay_cursors (
    relay_group_id    text        NOT NULL,
    direction         text        NOT NULL CHECK (direction IN ('forward', 'reverse')),
    pipeline          text        NOT NULL,
    epoch             bigint      NOT NULL DEFAULT 0,
    owner             text,
    source            text,
    checkpoint        jsonb,
    last_id           bigint      NOT NULL DEFAULT 0,
    sink_position     text,
    far_ends          jsonb,
    delivered         bigint      NOT NULL DEFAULT 0,
    skipped           bigint      NOT NULL DEFAULT 0,
    filtered          bigint      NOT NULL DEFAULT 0,
    dead_lettered     bigint      NOT NULL DEFAULT 0,
    system_identifier text,
    status            text        NOT NULL DEFAULT 'new',
    error             text,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (relay_group_id, direction, pipeline)
) WITH (fillfactor = 50);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_cursors IS 'pgtrickle-relay: checkpoint and lease epoch of each pipeline in each group';
END $do$;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS far_ends jsonb;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS filtered bigint NOT NULL DEFAULT 0;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS identity text;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS expired bigint NOT NULL DEFAULT 0;
ALTER TABLE pgtrickle.relay_cursors ADD COLUMN IF NOT EXISTS unexpected bigint NOT NULL DEFAULT 0;

-- Relays that do not know identities write no id_form.
ALTER TABLE pgtrickle.relay_instances ADD COLUMN IF NOT EXISTS id_form smallint NOT NULL DEFAULT 0;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_outbox_identities', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_outbox_identities (
    outbox    oid         NOT NULL PRIMARY KEY,
    identity  text        NOT NULL,
    origin    jsonb       NOT NULL,
    legacy_to bigint      NOT NULL,
    made_at   timestamptz NOT NULL DEFAULT now()
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_outbox_identities IS 'pgtrickle-relay: what tells the rows of an outbox from those of all others in the world';
END $do$;
-- A dump and restore changes oids; the relay finds an outbox in another database by this.
ALTER TABLE pgtrickle.relay_outbox_identities ADD COLUMN IF NOT EXISTS name text;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_dead_letters', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_dead_letters (
    id             bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay_group_id text        NOT NULL,
    direction      text        NOT NULL CHECK (direction IN ('forward', 'reverse')),
    pipeline       text        NOT NULL,
    message_id     text        NOT NULL,
    key            text        NOT NULL DEFAULT '',
    subject        text,
    op             text,
    body           bytea       NOT NULL,
    before         bytea,
    content_type   text,
    headers        jsonb       NOT NULL DEFAULT '[]',
    stream_table   text,
    outbox_id      bigint,
    refresh_id     text,
    full_refresh   boolean     NOT NULL DEFAULT false,
    origin         text,
    message_time   timestamptz,
    error          text        NOT NULL,
    class          text        NOT NULL,
    attempts       integer     NOT NULL DEFAULT 1,
    status         text        NOT NULL CHECK (status IN ('dead', 'parked', 'retry')),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    UNIQUE (relay_group_id, direction, pipeline, message_id)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_dead_letters IS 'pgtrickle-relay: messages that no retry can deliver, and those parked behind one of the same key';
END $do$;

ALTER TABLE pgtrickle.relay_dead_letters ADD COLUMN IF NOT EXISTS by_reference boolean NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS relay_dead_letters_by_key
    ON pgtrickle.relay_dead_letters (relay_group_id, direction, pipeline, key, id);

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_snapshots', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_snapshots (
    id             bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay_group_id text     NOT NULL,
    pipeline       text     NOT NULL,
    outbox_table   bigint   NOT NULL,
    sequence_file  bigint   NOT NULL,
    emitted_id     bigint   NOT NULL,
    compared_id    bigint   NOT NULL,
    removed_id     bigint   NOT NULL,
    full_refresh   boolean  NOT NULL,
    columns        text[],
    UNIQUE (relay_group_id, pipeline)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_snapshots IS 'pgtrickle-relay: for each pipeline that compares snapshots, how far it is in its outbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_snapshot_rows', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_snapshot_rows (
    snapshot_id bigint  NOT NULL,
    row_id      text    NOT NULL,
    occurrence  integer NOT NULL,
    hash        bytea   NOT NULL,
    row         jsonb   NOT NULL,
    PRIMARY KEY (snapshot_id, row_id, occurrence)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_snapshot_rows IS 'pgtrickle-relay: the rows of the last snapshot that was compared';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_snapshot_changes', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_snapshot_changes (
    snapshot_id  bigint  NOT NULL,
    outbox_id    bigint  NOT NULL,
    n            integer NOT NULL,
    op           text    NOT NULL,
    row_id       text    NOT NULL,
    occurrence   integer NOT NULL,
    full_refresh boolean NOT NULL,
    row          jsonb   NOT NULL,
    before       jsonb,
    PRIMARY KEY (snapshot_id, outbox_id, n)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_snapshot_changes IS 'pgtrickle-relay: the changes that outbox rows brought, until they are delivered';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_snapshot_requests', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_snapshot_requests (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline     text        NOT NULL,
    requested_by text        NOT NULL,
    requested_at timestamptz NOT NULL DEFAULT now(),
    in_xid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    cancels      boolean     NOT NULL DEFAULT false,
    rows         bigint,
    finished_at  timestamptz,
    error        text
);
CREATE INDEX relay_snapshot_requests_by_pipeline ON pgtrickle.relay_snapshot_requests (pipeline, id);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_snapshot_requests IS 'pgtrickle-relay: what relay_snapshot asked for; the newest of a pipeline counts';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_snapshot_keys', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_snapshot_keys (
    request bigint  NOT NULL REFERENCES pgtrickle.relay_snapshot_requests ON DELETE CASCADE,
    block   integer NOT NULL,
    keys    text[]  NOT NULL,
    PRIMARY KEY (request, block)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_snapshot_keys IS 'pgtrickle-relay: the primary keys that a condition selected, up to 1,000 in a row';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_backend_keys', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_backend_keys (
    backend       text    NOT NULL,
    direction     text    NOT NULL CHECK (direction IN ('forward', 'reverse')),
    key           text    NOT NULL,
    type          text    NOT NULL,
    required      boolean NOT NULL DEFAULT false,
    aliases       text[]  NOT NULL DEFAULT '{}',
    enum          text[]  NOT NULL DEFAULT '{}',
    doc           text    NOT NULL DEFAULT '',
    unit          text,
    minimum       bigint,
    default_value jsonb,
    position      integer NOT NULL DEFAULT 0,
    PRIMARY KEY (backend, direction, key)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_backend_keys IS 'pgtrickle-relay: what each backend accepts in a configuration; backend * holds the keys of every pipeline';
END $do$;

-- Outboxes and inboxes: the extension's own catalog where it is installed.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_outbox_config', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_outbox_config (
    stream_table_oid   oid         NOT NULL PRIMARY KEY,
    stream_table_name  text        NOT NULL,
    outbox_table_name  text        NOT NULL CONSTRAINT uq_outbox_table_name UNIQUE,
    retention_hours    integer     NOT NULL DEFAULT 24,
    created_at         timestamptz NOT NULL DEFAULT now(),
    last_drained_at    timestamptz,
    last_drained_count bigint      NOT NULL DEFAULT 0
);
CREATE INDEX idx_pgt_outbox_config_name ON pgtrickle.pgt_outbox_config (stream_table_name);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_outbox_config IS 'pgtrickle-relay: outboxes; stream_table_oid is the table''s oid';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_outboxes', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
-- Names and not oids, because a dump and restore changes oids.
CREATE TABLE pgtrickle.relay_outboxes (
    outbox_table_name text NOT NULL PRIMARY KEY,
    stream_schema     text,
    stream_table      text,
    capture_function  text,
    truncate_policy   text NOT NULL DEFAULT 'delete' CHECK (truncate_policy IN ('delete', 'refuse', 'ignore')),
    granted_to        text
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_outboxes IS 'pgtrickle-relay: what the extension''s catalog has no column for: where an outbox''s rows come from';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_consumer_groups', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_consumer_groups (
    group_name        text NOT NULL PRIMARY KEY,
    outbox_name       text NOT NULL,
    auto_offset_reset text NOT NULL DEFAULT 'latest' CHECK (auto_offset_reset IN ('earliest', 'latest')),
    created_at        timestamptz DEFAULT now()
);
CREATE INDEX idx_pgt_consumer_groups_outbox ON pgtrickle.pgt_consumer_groups (outbox_name);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_consumer_groups IS 'pgtrickle-relay: consumer groups of outboxes';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_consumer_offsets', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_consumer_offsets (
    group_name        text        NOT NULL REFERENCES pgtrickle.pgt_consumer_groups ON DELETE CASCADE,
    consumer_id       text        NOT NULL,
    committed_offset  bigint      NOT NULL DEFAULT 0,
    last_committed_at timestamptz,
    last_heartbeat_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (group_name, consumer_id)
);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_consumer_offsets IS 'pgtrickle-relay: offsets of consumers';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_consumer_leases', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_consumer_leases (
    group_name    text        NOT NULL,
    consumer_id   text        NOT NULL,
    batch_start   bigint      NOT NULL,
    batch_end     bigint      NOT NULL,
    lease_expires timestamptz NOT NULL,
    PRIMARY KEY (group_name, consumer_id),
    FOREIGN KEY (group_name, consumer_id) REFERENCES pgtrickle.pgt_consumer_offsets ON DELETE CASCADE
);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_consumer_leases IS 'pgtrickle-relay: batches that consumers hold';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_inbox_config', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_inbox_config (
    inbox_name          text        NOT NULL,
    inbox_schema        text        NOT NULL DEFAULT 'pgtrickle',
    max_retries         integer     NOT NULL DEFAULT 3,
    schedule            text        NOT NULL DEFAULT '1s',
    with_dead_letter    boolean     NOT NULL DEFAULT true,
    with_stats          boolean     NOT NULL DEFAULT true,
    retention_hours     integer     NOT NULL DEFAULT 72,
    id_column           text        NOT NULL DEFAULT 'event_id',
    processed_at_column text        NOT NULL DEFAULT 'processed_at',
    retry_count_column  text        NOT NULL DEFAULT 'retry_count',
    error_column        text        NOT NULL DEFAULT 'error',
    received_at_column  text        NOT NULL DEFAULT 'received_at',
    event_type_column   text        NOT NULL DEFAULT 'event_type',
    is_managed          boolean     NOT NULL DEFAULT true,
    created_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (inbox_schema, inbox_name)
);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_inbox_config IS 'pgtrickle-relay: inboxes';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_inbox_ordering_config', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_inbox_ordering_config (
    inbox_name       text        NOT NULL PRIMARY KEY,
    aggregate_id_col text        NOT NULL,
    sequence_num_col text        NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now()
);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_inbox_ordering_config IS 'pgtrickle-relay: order of inboxes';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.pgt_inbox_priority_config', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.pgt_inbox_priority_config (
    inbox_name   text        NOT NULL PRIMARY KEY,
    priority_col text        NOT NULL,
    tiers        jsonb,
    created_at   timestamptz NOT NULL DEFAULT now()
);
$sql$;
    COMMENT ON TABLE pgtrickle.pgt_inbox_priority_config IS 'pgtrickle-relay: priorities of inboxes';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (1, 'tables', 'e87f7356c7563bff')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

-- What is wrong with a configuration, in the words and by the rules of package
-- relaycfg and of the catalog's normaliser. The keys are those of the backends'
-- Go structs, which migrate puts into relay_backend_keys.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_distance(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_distance(a text, b text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    before integer[];
    prev   integer[] := ARRAY(SELECT generate_series(0, length(b)));
    cur    integer[];
    d      integer;
BEGIN
    FOR i IN 1..length(a) LOOP
        cur := ARRAY[i];
        FOR j IN 1..length(b) LOOP
            d := least(cur[j] + 1, prev[j + 1] + 1,
                       prev[j] + CASE WHEN substr(a, i, 1) = substr(b, j, 1) THEN 0 ELSE 1 END);
            IF i > 1 AND j > 1 AND substr(a, i, 1) = substr(b, j - 1, 1) AND substr(a, i - 1, 1) = substr(b, j, 1) THEN
                d := least(d, before[j - 1] + 1);
            END IF;
            cur[j + 1] := d;
        END LOOP;
        before := prev;
        prev := cur;
    END LOOP;
    RETURN prev[length(b) + 1];
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_distance(text, text) IS 'pgtrickle-relay: insertions, deletions, substitutions and swaps of neighbours between two words';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_nearest(text, text[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_nearest(word text, candidates text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT c FROM (
        SELECT c, n, pgtrickle._relay_distance(left(word, 100), c) AS d, greatest(2, length(word) / 3) AS far
        FROM unnest(candidates) WITH ORDINALITY AS u(c, n)
        WHERE abs(length(c) - length(word)) <= greatest(2, length(word) / 3)
    ) near WHERE d <= far ORDER BY d, n LIMIT 1
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_nearest(text, text[]) IS 'pgtrickle-relay: the candidate most like a word, null when none is like it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_kind(jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_kind(v jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE jsonb_typeof(v)
        WHEN 'object' THEN 'an object'
        WHEN 'array' THEN 'a list'
        WHEN 'string' THEN 'the string ' || v::text
        ELSE 'the ' || jsonb_typeof(v) || ' ' || v::text
    END
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_kind(jsonb) IS 'pgtrickle-relay: a JSON value in words, for errors';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_template_problem(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_template_problem(template text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    variables constant text[] := ARRAY['stream_table', 'op', 'outbox_id', 'refresh_id'];
    rest text := regexp_replace(template, '\$\{(env|ENV|file):[^}]*\}', '', 'g');
    open integer;
    name text;
    near text;
BEGIN
    LOOP
        open := strpos(rest, '{');
        EXIT WHEN open = 0;
        IF substr(rest, open, 2) = '{{' THEN
            rest := substr(rest, open + 2);
            CONTINUE;
        END IF;
        rest := substr(rest, open);
        IF strpos(rest, '}') = 0 THEN
            RETURN format('template "%s": no closing brace for "%s"', template, rest);
        END IF;
        name := substr(rest, 2, strpos(rest, '}') - 2);
        IF NOT name = ANY (variables) AND name !~ '^row\..' THEN
            near := pgtrickle._relay_nearest(name, variables);
            RETURN format('template "%s": unknown variable {%s}; ', template, name)
                || CASE WHEN near IS NULL THEN 'there are {stream_table}, {op}, {outbox_id}, {refresh_id} and {row.FIELD}'
                        ELSE format('did you mean {%s}?', near) END;
        END IF;
        rest := substr(rest, strpos(rest, '}') + 1);
    END LOOP;
    RETURN NULL;
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_template_problem(text) IS 'pgtrickle-relay: what is wrong with a template, null when nothing is';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_value_problem(pgtrickle.relay_backend_keys, text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_value_problem(k pgtrickle.relay_backend_keys, spelled text, v jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    kind   text := jsonb_typeof(v);
    s      text := CASE WHEN jsonb_typeof(v) = 'string' THEN v #>> '{}' END;
    wants  text := format('wants %s, not %s', k.type, pgtrickle._relay_kind(v));
    near   text;
    member record;
    has_unit constant boolean := coalesce(k.unit, '') <> '' OR spelled ~ '_(ms|seconds)$';
BEGIN
    -- What a reference stands for is known in the relay's process only.
    IF kind = 'null' OR s ~ '\$\{(env|ENV|file):' THEN
        RETURN NULL;
    END IF;
    CASE k.type
    WHEN 'integer', 'number' THEN
        IF kind <> 'number' OR (k.type = 'integer' AND (v #>> '{}')::numeric % 1 <> 0) THEN
            RETURN wants;
        END IF;
    WHEN 'boolean' THEN
        IF kind <> 'boolean' THEN
            RETURN wants;
        END IF;
    WHEN 'duration' THEN
        -- A number has its unit from its key; without one not even 0 is a duration.
        IF kind = 'number' AND NOT has_unit THEN
            RETURN format('wants a duration with a unit, such as "%ss", not the number %s', v, v);
        ELSIF kind = 'number' AND (v #>> '{}')::numeric < 0 THEN
            RETURN format('is %s; must not be negative', v);
        ELSIF kind <> 'number' AND NOT coalesce(
            -- Both signs for micro are written as bytes, which no database encoding changes.
            encode(convert_to(s, 'UTF8'), 'escape') ~ '^([+-]0|\+?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|\\302\\265s|\\316\\274s|ms|s|m|h))+)$'
            OR (has_unit AND s ~ '^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$'), false) THEN
            RETURN format('wants a duration such as "250ms" or "30s", not %s', pgtrickle._relay_kind(v));
        END IF;
    WHEN 'size' THEN
        IF (kind = 'number' AND (v #>> '{}')::numeric < 0)
           OR (kind <> 'number' AND coalesce(s !~* '^[0-9]+(\.[0-9]+)? *([kmg]i?b|b)?$', true)) THEN
            RETURN format('wants a size such as 65536 or "64MiB", not %s', pgtrickle._relay_kind(v));
        END IF;
    WHEN 'list' THEN
        IF jsonb_typeof(k.default_value -> 0) = 'number' THEN
            IF kind NOT IN ('number', 'array') OR jsonb_path_exists(v, '$[*] ? (@.type() != "number")') THEN
                RETURN wants;
            END IF;
        ELSIF kind NOT IN ('string', 'array') OR jsonb_path_exists(v, '$[*] ? (@.type() != "string")') THEN
            RETURN wants;
        END IF;
    WHEN 'object' THEN
        IF kind <> 'object' THEN
            RETURN wants;
        END IF;
        FOR member IN SELECT key, value FROM jsonb_each(v) LOOP
            IF jsonb_typeof(member.value) <> 'string' THEN
                RETURN format('wants strings as values, but %s has %s', member.key, pgtrickle._relay_kind(member.value));
            ELSIF k.backend = '*' AND pgtrickle._relay_template_problem(member.value #>> '{}') IS NOT NULL THEN
                RETURN format('%s: %s', member.key, pgtrickle._relay_template_problem(member.value #>> '{}'));
            END IF;
        END LOOP;
    WHEN 'settings' THEN -- the relay knows the keys inside
        IF kind <> 'object' THEN
            RETURN format('wants an object, not %s', pgtrickle._relay_kind(v));
        END IF;
    WHEN 'secret' THEN
        -- The value stays out of the error.
        IF kind NOT IN ('string', 'array') OR jsonb_path_exists(v, '$[*] ? (@.type() != "string")') THEN
            RETURN 'wants a string';
        END IF;
    ELSE
        IF kind <> 'string' THEN
            RETURN wants;
        ELSIF k.type = 'template' AND pgtrickle._relay_template_problem(s) IS NOT NULL THEN
            RETURN pgtrickle._relay_template_problem(s);
        END IF;
    END CASE;
    IF k.key IN ('url', 'queue_url') AND k.backend IN ('redis', 'rabbitmq', 'webhook', 'sqs')
       AND jsonb_path_exists(v, '$[*] ? (@ != "" && !(@ like_regex "://") && !(@ like_regex "[$][{](env|ENV|file):"))') THEN
        RETURN 'has no scheme; ' || k.doc; -- the value may hold a password
    END IF;
    IF k.type = 'duration' THEN -- its minimum is in nanoseconds; only what no unit makes right is refused here
        IF k.minimum > 0 AND kind = 'number' AND (v #>> '{}')::numeric <= 0 THEN
            RETURN format('is %s; must be greater than 0', v);
        END IF;
    ELSIF k.minimum IS NOT NULL AND kind = 'number' AND (v #>> '{}')::numeric < k.minimum THEN
        RETURN format('is %s; must be at least %s', v, k.minimum);
    END IF;
    IF cardinality(k.enum) > 0 AND s IS NOT NULL AND NOT s = ANY (k.enum) THEN
        near := CASE WHEN length(s) > 1 THEN pgtrickle._relay_nearest(s, k.enum) END; -- short words are like any other
        RETURN format('unknown value "%s"; ', s)
            || CASE WHEN near IS NULL THEN 'must be one of ' || array_to_string(k.enum, ', ')
                    ELSE format('did you mean "%s"?', near) END;
    END IF;
    RETURN NULL;
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_value_problem(pgtrickle.relay_backend_keys, text, jsonb) IS 'pgtrickle-relay: what is wrong with the value of a key, null when nothing is';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_find_key(text, text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_find_key(p_backend text, p_direction text, p_spelled text)
RETURNS SETOF pgtrickle.relay_backend_keys
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT k.* FROM pgtrickle.relay_backend_keys k
    WHERE k.backend = p_backend AND k.direction = p_direction AND k.type <> 'backend'
      AND (p_spelled = k.key OR p_spelled = ANY (k.aliases)
           OR (k.type = 'duration' AND p_spelled ~ '_(ms|seconds)$'
               AND regexp_replace(p_spelled, '_(ms|seconds)$', '') = ANY (k.aliases || k.key)))
    ORDER BY (p_spelled = k.key) DESC, k.position LIMIT 1
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_find_key(text, text, text) IS 'pgtrickle-relay: the key that a configuration spells so, by its name, an alias, or either with a unit';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_key_names(text, text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_key_names(p_backend text, p_direction text, p_prefix text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT coalesce(array_agg(p_prefix || n ORDER BY k.position, u.i), '{}')
    FROM pgtrickle.relay_backend_keys k, unnest(k.key || k.aliases) WITH ORDINALITY AS u(n, i)
    WHERE k.backend = p_backend AND k.direction = p_direction AND k.type <> 'backend'
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_key_names(text, text, text) IS 'pgtrickle-relay: names and aliases of a backend''s keys, each behind a prefix';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_prefixed(text, text[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_prefixed(p_path text, p_candidates text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT c FROM (
        SELECT c, n, regexp_replace(c, '^.*[.]', '') AS theirs, regexp_replace(p_path, '^.*[.]', '') AS ours
        FROM unnest(p_candidates) WITH ORDINALITY AS u(c, n)
    ) named WHERE right(theirs, length(ours) + 1) = '_' || ours OR right(ours, length(theirs) + 1) = '_' || theirs
    ORDER BY abs(length(theirs) - length(ours)), n LIMIT 1
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_prefixed(text, text[]) IS 'pgtrickle-relay: the candidate that differs from a key by the prefix of a backend alone, null when there is none';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_unknown(text, text[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_unknown(p_path text, p_candidates text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT format('key "%s": unknown key; ', p_path)
        || coalesce('did you mean "' || coalesce(pgtrickle._relay_prefixed(p_path, p_candidates), pgtrickle._relay_nearest(p_path, p_candidates)) || '"?',
                    'valid keys are ' || array_to_string(ARRAY(SELECT unnest(p_candidates) ORDER BY 1), ', '))
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_unknown(text, text[]) IS 'pgtrickle-relay: the problem of a key that does not exist';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_config_problems(text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_config_problems(p_direction text, p_config jsonb) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    far       constant text := CASE p_direction WHEN 'forward' THEN 'sink' ELSE 'source' END;
    near      constant text := CASE p_direction WHEN 'forward' THEN 'source' ELSE 'sink' END;
    near_type constant text[] := CASE p_direction WHEN 'forward' THEN ARRAY['outbox'] ELSE ARRAY['pg-inbox', 'pg_inbox', 'inbox'] END;
    problems  text[] := '{}';
    spelled   text;                        -- the backend as the configuration says it
    own       text;                        -- its own name
    prefix    text;
    type_path text;
    item      record;
    k         pgtrickle.relay_backend_keys;
    rest      text;
    other     text;
    seen      jsonb := '{}';               -- "backend key" -> path
    problem   text;
    nested    boolean;
    candidate text;
BEGIN
    IF p_config IS NULL OR jsonb_typeof(p_config) <> 'object' THEN
        RETURN ARRAY['config is not a JSON object'];
    END IF;
    FOREACH candidate IN ARRAY ARRAY[far, near] LOOP
        IF jsonb_typeof(p_config -> candidate) NOT IN ('object', 'null') THEN
            problems := problems || format('key "%s": wants an object, not %s', candidate, pgtrickle._relay_kind(p_config -> candidate));
        END IF;
        FOREACH type_path IN ARRAY ARRAY[candidate || '_type', candidate || '.type'] LOOP
            IF jsonb_typeof(p_config #> string_to_array(type_path, '.')) NOT IN ('string', 'null') THEN
                problems := problems || format('key "%s": wants string, not %s', type_path,
                                               pgtrickle._relay_kind(p_config #> string_to_array(type_path, '.')));
            END IF;
        END LOOP;
    END LOOP;
    IF problems <> '{}' THEN
        RETURN problems;
    END IF;

    -- The near end is ours; the far end is a backend.
    spelled := coalesce(nullif(p_config ->> (near || '_type'), ''), nullif(p_config -> near ->> 'type', ''));
    IF NOT spelled = ANY (near_type) THEN
        problems := problems || format('key "%s": is "%s"; leave it out, or say "%s"',
            CASE WHEN p_config ? (near || '_type') THEN near || '_type' ELSE near || '.type' END, spelled, near_type[1]);
    END IF;
    nested := coalesce(jsonb_typeof(p_config -> far) = 'object', false);
    spelled := coalesce(nullif(p_config ->> (far || '_type'), ''), nullif(p_config -> far ->> 'type', ''));
    type_path := CASE WHEN p_config ->> (far || '_type') <> '' OR NOT nested THEN far || '_type' ELSE far || '.type' END;
    IF spelled IS NULL THEN
        RETURN problems || format('key "%s": is required; there are %s', type_path,
            (SELECT string_agg(t.backend, ', ' ORDER BY t.backend) FROM pgtrickle.relay_backend_keys t WHERE t.direction = p_direction AND t.type = 'backend'));
    END IF;
    IF nullif(p_config -> far ->> 'type', '') <> spelled THEN
        problems := problems || format('key "%s": is "%s", but %s.type is "%s"', type_path, spelled, far, p_config -> far ->> 'type');
    END IF;
    SELECT t.backend INTO own FROM pgtrickle.relay_backend_keys t
        WHERE t.direction = p_direction AND t.type = 'backend' AND (t.backend = spelled OR spelled = ANY (t.aliases));
    IF own IS NULL THEN
        IF EXISTS (SELECT FROM pgtrickle.relay_backend_keys t WHERE t.type = 'backend' AND (t.backend = spelled OR spelled = ANY (t.aliases))) THEN
            RETURN problems || format('key "%s": backend "%s" has no %s', type_path, spelled, far);
        END IF;
        candidate := pgtrickle._relay_nearest(spelled, ARRAY(
            SELECT unnest(t.backend || t.aliases) FROM pgtrickle.relay_backend_keys t WHERE t.direction = p_direction AND t.type = 'backend'));
        RETURN problems || (format('key "%s": unknown backend "%s"; ', type_path, spelled)
            || coalesce('did you mean "' || candidate || '"?', 'there are ' || (
                SELECT string_agg(t.backend, ', ' ORDER BY t.backend) FROM pgtrickle.relay_backend_keys t
                WHERE t.direction = p_direction AND t.type = 'backend')));
    END IF;
    prefix := replace(own, '-', '_') || '_';

    FOR item IN
        SELECT 'top' AS at, e.key AS name, e.key AS path, e.value FROM jsonb_each(p_config) e
            WHERE e.key NOT IN ('sink', 'source', 'sink_type', 'source_type')
        UNION ALL SELECT 'far', e.key, far || '.' || e.key, e.value
            FROM jsonb_each(CASE WHEN nested THEN p_config -> far ELSE '{}' END) e WHERE e.key <> 'type'
        UNION ALL SELECT 'near', e.key, near || '.' || e.key, e.value
            FROM jsonb_each(CASE WHEN jsonb_typeof(p_config -> near) = 'object' THEN p_config -> near ELSE '{}' END) e WHERE e.key <> 'type'
        ORDER BY 3
    LOOP
        k := NULL;
        other := NULL;
        problem := NULL;
        IF item.at = 'far' THEN            -- the backend's keys go before the common ones
            SELECT f.* INTO k FROM pgtrickle._relay_find_key(own, p_direction, item.name) f;
        END IF;
        IF k.key IS NULL THEN
            SELECT f.* INTO k FROM pgtrickle._relay_find_key('*', p_direction, item.name) f;
        END IF;
        IF k.key IS NULL AND item.at = 'top' THEN
            FOREACH candidate IN ARRAY ARRAY[prefix, replace(spelled, '-', '_') || '_'] || ARRAY(
                SELECT replace(a, '-', '_') || '_' FROM pgtrickle.relay_backend_keys t, unnest(t.aliases) a
                WHERE t.backend = own AND t.direction = p_direction AND t.type = 'backend')
            LOOP
                rest := CASE WHEN starts_with(item.name, candidate) THEN substr(item.name, length(candidate) + 1) END;
                IF rest <> '' THEN
                    SELECT f.* INTO k FROM pgtrickle._relay_find_key(own, p_direction, rest) f;
                    EXIT;
                END IF;
            END LOOP;
            IF k.key IS NULL THEN          -- such as inbox_table of a pg-inbox sink
                SELECT t.* INTO k FROM pgtrickle.relay_backend_keys t
                    WHERE t.backend = own AND t.direction = p_direction AND t.type <> 'backend' AND item.name = ANY (t.aliases);
            END IF;
            IF k.key IS NULL THEN
                SELECT t.backend INTO other FROM pgtrickle.relay_backend_keys t
                    WHERE t.direction = p_direction AND t.type = 'backend' AND t.backend <> own
                      AND starts_with(item.name, replace(t.backend, '-', '_') || '_');
            END IF;
        END IF;

        IF other IS NOT NULL THEN
            problem := format('key "%s": belongs to backend "%s", but %s_type is "%s"', item.path, other, far, spelled);
        ELSIF k.key IS NULL THEN
            problem := pgtrickle._relay_unknown(item.path, CASE item.at
                WHEN 'top' THEN pgtrickle._relay_key_names('*', p_direction, '') || pgtrickle._relay_key_names(own, p_direction, prefix)
                                || ARRAY[far, far || '_type']
                WHEN 'far' THEN pgtrickle._relay_key_names(own, p_direction, far || '.') || pgtrickle._relay_key_names('*', p_direction, far || '.')
                ELSE pgtrickle._relay_key_names('*', p_direction, near || '.') END);
        ELSIF jsonb_typeof(item.value) = 'null' THEN
            CONTINUE;
        ELSIF seen ? (k.backend || ' ' || k.key) THEN
            problem := format('key "%s": means the same as "%s"; keep one', item.path, seen ->> (k.backend || ' ' || k.key));
        ELSE
            seen := seen || jsonb_build_object(k.backend || ' ' || k.key, item.path);
            problem := format('key "%s": ', item.path) || coalesce(
                pgtrickle._relay_value_problem(k, item.name, item.value),
                CASE WHEN k.required AND item.value IN ('""', '[]') THEN 'is required: ' || k.doc END);
        END IF;
        problems := problems || problem;
    END LOOP;

    FOR k IN SELECT t.* FROM pgtrickle.relay_backend_keys t
        WHERE t.direction = p_direction AND t.backend IN ('*', own) AND t.required ORDER BY t.backend, t.position
    LOOP
        IF NOT seen ? (k.backend || ' ' || k.key) THEN
            problems := problems || format('key "%s": is required: %s', CASE
                WHEN k.backend = '*' THEN k.key
                WHEN nested THEN far || '.' || k.key
                ELSE prefix || k.key END, k.doc);
        END IF;
    END LOOP;
    IF spelled = 'file' AND NOT seen ? (own || ' path') THEN
        problems := problems || format('key "%s": is required when %s_type is "file"', CASE WHEN nested THEN far || '.' ELSE prefix END || 'path', far);
    END IF;
    RETURN array_remove(problems, NULL);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_config_problems(text, jsonb) IS 'pgtrickle-relay: everything that is wrong with a configuration';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_check_config(text, text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_check_config(p_direction text, p_name text, p_config jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    problems text[];
BEGIN
    IF coalesce(p_name, '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: pipeline name must not be empty';
    END IF;
    IF octet_length(p_config::text) > 262144 THEN
        RAISE EXCEPTION 'relay.invalid_config: the configuration is larger than 256 KiB; refer to files with ${file:...}';
    END IF;
    problems := pgtrickle._relay_config_problems(p_direction, p_config);
    IF problems <> '{}' THEN
        RAISE EXCEPTION 'relay.invalid_config: %', array_to_string(problems, '; ')
            USING HINT = 'SELECT key, type, required, doc FROM pgtrickle.relay_backend_keys lists what each backend accepts.';
    END IF;
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_check_config(text, text, jsonb) IS 'pgtrickle-relay: refuses a pipeline whose configuration is wrong';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (2, 'validation', '8c4caf4f18af4fb1')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

-- Pipelines: the extension's functions with its signatures and error texts, and
-- the documented form set_relay_outbox('name', config => '{...}').
--
-- A pipeline belongs to the role that set it. As with outboxes (005), a SECURITY DEFINER
-- function cannot tell its caller. So the functions run as the caller and insert a row,
-- whose default names the caller, and a trigger does the work.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle.relay_pipeline_owners', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle.relay_pipeline_owners (
    direction text NOT NULL,
    name      text NOT NULL,
    owner     text NOT NULL,
    PRIMARY KEY (direction, name)
);
$sql$;
    COMMENT ON TABLE pgtrickle.relay_pipeline_owners IS 'pgtrickle-relay: the role that a pipeline belongs to; without a row it belongs to the owner of the catalog';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle._relay_pipeline_requests', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON TABLE pgtrickle._relay_pipeline_requests IS 'pgtrickle-relay: what roles ask of pipelines; a trigger does it at once, so no row is ever stored';
END $do$;
ALTER TABLE pgtrickle._relay_pipeline_requests ADD COLUMN IF NOT EXISTS new_name text;
ALTER TABLE pgtrickle._relay_pipeline_requests ADD COLUMN IF NOT EXISTS keys text[];

-- The lock keeps relays from starting the pipeline before the transaction ends. Its identity
-- moves with its cursor, so its deliveries keep their ids.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_rename(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_rename(text, text) IS 'pgtrickle-relay: renames the pipelines of a name, with all that is stored under it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_refuse_rename()', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_refuse_rename() RETURNS trigger
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    RAISE EXCEPTION 'relay: pipeline "%" would lose its checkpoint', OLD.name USING ERRCODE = 'restrict_violation',
        HINT = format('SELECT pgtrickle.rename_relay(%L, %L) renames it with all that is stored.', OLD.name, NEW.name);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_refuse_rename() IS 'pgtrickle-relay: refuses to rename a pipeline in its table alone, as its checkpoint would stay behind';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('trigger', 'pgtrickle.relay_outbox_config', false) THEN
        RETURN;
    END IF;
    DROP TRIGGER IF EXISTS relay_outbox_config_rename ON pgtrickle.relay_outbox_config;
    EXECUTE $sql$
CREATE TRIGGER relay_outbox_config_rename BEFORE UPDATE OF name ON pgtrickle.relay_outbox_config
    FOR EACH ROW WHEN (NEW.name IS DISTINCT FROM OLD.name) EXECUTE FUNCTION pgtrickle._relay_refuse_rename();
$sql$;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('trigger', 'pgtrickle.relay_inbox_config', false) THEN
        RETURN;
    END IF;
    DROP TRIGGER IF EXISTS relay_inbox_config_rename ON pgtrickle.relay_inbox_config;
    EXECUTE $sql$
CREATE TRIGGER relay_inbox_config_rename BEFORE UPDATE OF name ON pgtrickle.relay_inbox_config
    FOR EACH ROW WHEN (NEW.name IS DISTINCT FROM OLD.name) EXECUTE FUNCTION pgtrickle._relay_refuse_rename();
$sql$;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_config_name(jsonb, text[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_config_name(p_config jsonb, p_keys text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT o.object ->> k.key FROM unnest(p_keys) WITH ORDINALITY AS k(key, n),
        (VALUES (1, p_config), (2, p_config -> 'source'), (3, p_config -> 'sink')) AS o(n, object)
        WHERE jsonb_typeof(o.object) = 'object' AND o.object ->> k.key <> '' ORDER BY o.n, k.n LIMIT 1
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_config_name(jsonb, text[]) IS 'pgtrickle-relay: the value of the first of some keys that a configuration has, at its top or in an object of it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_may_use(name, text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_may_use(name, text, jsonb) IS 'pgtrickle-relay: what keeps a role from the outbox or inbox that a configuration names, null if nothing does';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_config_warnings(text, text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_config_warnings(text, text, jsonb) IS 'pgtrickle-relay: what is odd about a configuration, although a relay may run it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_stream_of(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_stream_of(p_outbox text) RETURNS oid
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF p_outbox IS NULL OR to_regclass('pgtrickle.relay_outboxes') IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN pgtrickle._relay_stream_oid(p_outbox);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_stream_of(text) IS 'pgtrickle-relay: the table whose changes an outbox of ours records, null where there is none';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_pipeline_request()', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_pipeline_request() IS 'pgtrickle-relay: does what a row of _relay_pipeline_requests asks for, if the pipeline is its caller''s';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('trigger', 'pgtrickle._relay_pipeline_requests', false) THEN
        RETURN;
    END IF;
    DROP TRIGGER IF EXISTS _relay_pipeline_request ON pgtrickle._relay_pipeline_requests;
    EXECUTE $sql$
CREATE TRIGGER _relay_pipeline_request BEFORE INSERT ON pgtrickle._relay_pipeline_requests
    FOR EACH ROW WHEN (NEW.caller = current_user) EXECUTE FUNCTION pgtrickle._relay_pipeline_request();
ALTER TABLE pgtrickle._relay_pipeline_requests ENABLE ALWAYS TRIGGER _relay_pipeline_request;
$sql$;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_mask(jsonb, boolean)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_mask(jsonb, boolean) IS 'pgtrickle-relay: a configuration with *** for its secrets; references to secrets stay';
END $do$;

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

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_config_notify()', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_config_notify() IS 'pgtrickle-relay: tells running relays that a pipeline has changed';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('trigger', 'pgtrickle.relay_outbox_config', false) THEN
        RETURN;
    END IF;
    DROP TRIGGER IF EXISTS relay_outbox_config_notify ON pgtrickle.relay_outbox_config;
    EXECUTE $sql$
CREATE TRIGGER relay_outbox_config_notify AFTER INSERT OR UPDATE OR DELETE ON pgtrickle.relay_outbox_config
    FOR EACH ROW EXECUTE FUNCTION pgtrickle.relay_config_notify();
$sql$;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('trigger', 'pgtrickle.relay_inbox_config', false) THEN
        RETURN;
    END IF;
    DROP TRIGGER IF EXISTS relay_inbox_config_notify ON pgtrickle.relay_inbox_config;
    EXECUTE $sql$
CREATE TRIGGER relay_inbox_config_notify AFTER INSERT OR UPDATE OR DELETE ON pgtrickle.relay_inbox_config
    FOR EACH ROW EXECUTE FUNCTION pgtrickle.relay_config_notify();
$sql$;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.set_relay_outbox(text, text, text, jsonb, integer, boolean)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.set_relay_outbox(text, text, text, jsonb, integer, boolean) IS 'pgtrickle-relay: creates or replaces a forward pipeline';
END $do$;

-- Reverse pipelines from before id_scope keep the ids that their inboxes have.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_with_id_scope(text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_with_id_scope(p_name text, p_config jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT p_config || CASE WHEN p_config ? 'id_scope' THEN '{}' ELSE jsonb_build_object('id_scope', coalesce(
        (SELECT coalesce(c.config ->> 'id_scope', 'global') FROM pgtrickle.relay_inbox_config c WHERE c.name = p_name), 'far_end')) END
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_with_id_scope(text, jsonb) IS 'pgtrickle-relay: adds the id_scope that a reverse pipeline has, or far_end for a new one';
END $do$;

DO $do$
BEGIN
    IF has_table_privilege('pgtrickle.relay_inbox_config', 'UPDATE') THEN
        UPDATE pgtrickle.relay_inbox_config SET config = config || '{"id_scope": "global"}' WHERE NOT config ? 'id_scope';
    END IF;
END $do$;

-- Kafka pipelines from before kafka_tombstones write none.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_with_tombstones(text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_with_tombstones(p_name text, p_config jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT p_config || CASE
        WHEN coalesce(p_config ->> 'sink_type', p_config #>> '{sink,type}') IS DISTINCT FROM 'kafka'
             OR p_config ? 'kafka_tombstones' OR coalesce(p_config -> 'sink' ?| '{tombstones,kafka_tombstones}', false) THEN '{}'
        ELSE jsonb_build_object('kafka_tombstones', coalesce(
            (SELECT coalesce(c.config ->> 'kafka_tombstones', c.config #>> '{sink,tombstones}', 'never')
             FROM pgtrickle.relay_outbox_config c WHERE c.name = p_name), 'auto')) END
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_with_tombstones(text, jsonb) IS 'pgtrickle-relay: adds the kafka_tombstones that a pipeline to Kafka has, or auto for a new one';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.set_relay_inbox(text, text, jsonb, integer, text, boolean, integer, boolean)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.set_relay_inbox(text, text, jsonb, integer, text, boolean, integer, boolean) IS 'pgtrickle-relay: creates or replaces a reverse pipeline';
END $do$;

-- A new pipeline waits for enable_relay; an existing one keeps its state.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.set_relay_outbox(text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_outbox(p_name text, config jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, direction, name, config) VALUES ('set', 'forward', p_name, set_relay_outbox.config);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.set_relay_outbox(text, jsonb) IS 'pgtrickle-relay: creates or replaces a forward pipeline; a new one is disabled';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.set_relay_inbox(text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.set_relay_inbox(p_name text, config jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
#variable_conflict use_column
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, direction, name, config) VALUES ('set', 'reverse', p_name, set_relay_inbox.config);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.set_relay_inbox(text, jsonb) IS 'pgtrickle-relay: creates or replaces a reverse pipeline; a new one is disabled';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.enable_relay(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.enable_relay(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, enabled) VALUES ('enable', p_name, true);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.enable_relay(text) IS 'pgtrickle-relay: starts the pipelines of a name';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.disable_relay(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.disable_relay(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, enabled) VALUES ('enable', p_name, false);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.disable_relay(text) IS 'pgtrickle-relay: stops the pipelines of a name';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_wake(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_wake(p_name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pg_notify('pgtrickle_relay_config', json_build_object('event', 'RETRY', 'name', p_name)::text)
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_wake(text) IS 'pgtrickle-relay: starts waiting pipelines of a name, or all with an empty name, at once';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_retry(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_retry(text) IS 'pgtrickle-relay: starts the pipelines of a name at once if they wait after an error';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.delete_relay(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.delete_relay(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name) VALUES ('delete', p_name);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.delete_relay(text) IS 'pgtrickle-relay: deletes the pipelines of a name; their checkpoints stay';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.rename_relay(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.rename_relay(p_name text, p_new_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, new_name) VALUES ('rename', p_name, p_new_name);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.rename_relay(text, text) IS 'pgtrickle-relay: renames the pipelines of a name, with their checkpoints and dead letters';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_pipeline_owner(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.relay_pipeline_owner(p_name text, p_role text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name, owner) VALUES ('give', p_name, p_role);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_pipeline_owner(text, text) IS 'pgtrickle-relay: gives the pipelines of a name to a role';
END $do$;

-- A snapshot of a running pipeline. A condition is evaluated in the statement of the role
-- that calls relay_snapshot, with its rights, settings and search path, under its row level
-- security. What travels from there to the relay is a list of primary keys: neither the
-- relay nor the table's owner ever sees the condition.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_snapshot_table(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_snapshot_table(p_name text) RETURNS regclass
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    IF to_regprocedure('pgtrickle._relay_rows_function(text)') IS NULL THEN
        RETURN NULL; -- the extension's outboxes record the changes of stream tables
    END IF;
    RETURN (SELECT pgtrickle._relay_stream_oid(pgtrickle._relay_outbox_table(pgtrickle._relay_config_name(c.config, '{stream_table,outbox}')))
            FROM pgtrickle.relay_outbox_config c WHERE c.name = p_name);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_snapshot_table(text) IS 'pgtrickle-relay: the table whose rows a snapshot of a pipeline reads, null without one';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_snapshot_runs(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_snapshot_runs(p_name text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT EXISTS (SELECT FROM pgtrickle.relay_snapshot_requests r WHERE r.pipeline = p_name AND r.finished_at IS NULL AND NOT r.cancels)
        OR EXISTS (SELECT FROM pgtrickle.relay_cursors c WHERE c.pipeline = p_name AND c.direction = 'forward' AND c.checkpoint ? 'backfill')
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_snapshot_runs(text) IS 'pgtrickle-relay: whether a snapshot of a pipeline runs, or waits for its relay';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_request_snapshot(text, name, boolean)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_request_snapshot(text, name, boolean) IS 'pgtrickle-relay: stores a request for the rows of a pipeline''s table, or for some of them';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_add_snapshot_keys(text, name, text[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_add_snapshot_keys(text, name, text[]) IS 'pgtrickle-relay: adds keys to the request that the same transaction made';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_cancel_snapshot(text, name)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_cancel_snapshot(text, name) IS 'pgtrickle-relay: stores a request to end the snapshot of a pipeline';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_notify_snapshot(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_notify_snapshot(p_name text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pg_notify('pgtrickle_relay_config', json_build_object('direction', 'relay_outbox_config', 'event', 'UPDATE', 'name', p_name, 'enabled', true)::text)
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_notify_snapshot(text) IS 'pgtrickle-relay: tells running relays that a pipeline has another request';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_key_text(anyelement)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_key_text(p_value anyelement) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, MDY' SET "IntervalStyle" = 'postgres'
SET bytea_output = 'hex' SET extra_float_digits = '1' SET lc_monetary = 'C' SET quote_all_identifiers = 'off' AS $fn$
BEGIN
    RETURN format('%s', p_value);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_key_text(anyelement) IS 'pgtrickle-relay: a value of a key as text that does not depend on the session''s settings';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_snapshot(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_snapshot(text, text) IS 'pgtrickle-relay: sends the rows of a pipeline''s table again, or those that a condition selects with the caller''s rights; returns their number, null for all';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_snapshot_rows(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_snapshot_rows(p_name text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT r.rows FROM pgtrickle.relay_snapshot_requests r WHERE r.pipeline = p_name ORDER BY r.id DESC LIMIT 1
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_snapshot_rows(text) IS 'pgtrickle-relay: how many rows the newest request for a pipeline selects';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_snapshot_cancel(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.relay_snapshot_cancel(p_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    INSERT INTO pgtrickle._relay_pipeline_requests (action, name) VALUES ('cancel snapshot', p_name);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_snapshot_cancel(text) IS 'pgtrickle-relay: ends the snapshot of a pipeline; what was sent stays';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.get_relay_config(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.get_relay_config(text) IS 'pgtrickle-relay: the caller''s pipelines of a name, one for each direction, with their secrets';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.list_relay_configs()', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.list_relay_configs() IS 'pgtrickle-relay: the caller''s pipelines, by name, without their secrets';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (3, 'pipelines', '94a1812523d6c6c7')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

-- Dead letters: what cannot be delivered, and what waits behind it. A running
-- relay learns of a retry or discard on channel pgtrickle_relay_dlq.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_dlq_match(pgtrickle.relay_dead_letters, text, text, bigint[], text, text, timestamptz, timestamptz, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_dlq_match(pgtrickle.relay_dead_letters, text, text, bigint[], text, text, timestamptz, timestamptz, text) IS 'pgtrickle-relay: whether a dead letter passes the filters; a null filter passes all';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_dlq_list(text, text, bigint[], text, text, timestamptz, timestamptz, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_dlq_list(text, text, bigint[], text, text, timestamptz, timestamptz, text) IS 'pgtrickle-relay: dead and parked messages, oldest first';
END $do$;

-- Tables of roles that the owner of the catalog has no reason to trust are not read: a
-- policy could run code with the owner's rights.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_row_kept(pgtrickle.relay_dead_letters)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_row_kept(pgtrickle.relay_dead_letters) IS 'pgtrickle-relay: whether the row to which a dead letter refers is still in its outbox; null if unknown';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_dlq_original(bigint[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.relay_dlq_original(p_ids bigint[]) RETURNS TABLE (id bigint, original text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT l.id, CASE pgtrickle._relay_row_kept(l) WHEN true THEN 'kept' WHEN false THEN 'gone' ELSE 'unknown' END
    FROM pgtrickle.relay_dead_letters l WHERE l.id = ANY (p_ids) AND l.by_reference
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_dlq_original(bigint[]) IS 'pgtrickle-relay: of dead letters that refer to an outbox row, whether that is kept, gone or unknown';
END $do$;

-- A row that could not be decoded has no messages yet, and later rows of the keys
-- that it may be about have passed. To publish it now is a decision: replay.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_dlq_retry(text, text, bigint[], text, text, timestamptz, timestamptz, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_dlq_retry(text, text, bigint[], text, text, timestamptz, timestamptz, text) IS 'pgtrickle-relay: delivers dead letters again, and then what is parked behind them; returns how many';
END $do$;

-- Parked messages did nothing wrong: they are discarded only when asked for by id.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_dlq_discard(text, text, bigint[], text, text, timestamptz, timestamptz, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_dlq_discard(text, text, bigint[], text, text, timestamptz, timestamptz, text) IS 'pgtrickle-relay: drops dead letters, so that what is parked behind them is delivered; returns how many';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (4, 'dead_letters', 'dcca51725067bcba')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

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

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_find(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_find(p_schema text, p_name text) RETURNS regclass
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = p_schema AND c.relname = p_name
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_find(text, text) IS 'pgtrickle-relay: the oid of a relation, null when there is none; unlike to_regclass it needs no rights on the schema';
END $do$;

-- The role that owned the table when enable_outbox was called. Null in what was made before.
DO $do$
BEGIN
    IF to_regclass('pgtrickle.relay_outboxes') IS NOT NULL THEN
        ALTER TABLE pgtrickle.relay_outboxes ADD COLUMN IF NOT EXISTS stream_owner text;
    END IF;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('table', 'pgtrickle._relay_requests', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE TABLE pgtrickle._relay_requests (
    caller name NOT NULL DEFAULT current_user,
    action text NOT NULL,
    target text NOT NULL,
    detail jsonb,
    CONSTRAINT caller_must_be_current_user CHECK (false)
);
GRANT INSERT ON pgtrickle._relay_requests TO PUBLIC; -- the trigger says who may what
$sql$;
    COMMENT ON TABLE pgtrickle._relay_requests IS 'pgtrickle-relay: what roles ask of us; a trigger does it at once, so no row is ever stored';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_request()', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_request() IS 'pgtrickle-relay: does what a row of _relay_requests asks for, if its caller owns the table that it is about';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('trigger', 'pgtrickle._relay_requests', true) THEN
        RETURN;
    END IF;
    DROP TRIGGER IF EXISTS _relay_request ON pgtrickle._relay_requests;
    EXECUTE $sql$
CREATE TRIGGER _relay_request BEFORE INSERT ON pgtrickle._relay_requests
    FOR EACH ROW WHEN (NEW.caller = current_user) EXECUTE FUNCTION pgtrickle._relay_request();
ALTER TABLE pgtrickle._relay_requests ENABLE ALWAYS TRIGGER _relay_request;
$sql$;
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_name(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_name(text, text) IS 'pgtrickle-relay: base and suffix as one identifier of at most 63 bytes';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_unique_name(text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_unique_name(p_name text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE WHEN octet_length(p_name) <= 63 THEN p_name
        ELSE pgtrickle._relay_name(p_name, '_' || left(encode(sha256(convert_to(p_name, 'UTF8')), 'hex'), 8)) END
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_unique_name(text) IS 'pgtrickle-relay: a name as an identifier of at most 63 bytes; one that is longer ends in a hash of all of it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_trigger(text, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_trigger(p_outbox text, p_kind text) RETURNS name
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pgtrickle._relay_unique_name('!pgtrickle_' || p_outbox || '_' || p_kind)::name
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_trigger(text, text) IS 'pgtrickle-relay: the name of a trigger of an outbox; p_kind is row or truncate';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_outbox_table(text, name[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_outbox_table(text, name[]) IS 'pgtrickle-relay: the outbox that a user calls by its own name or by its stream table, null when there is none';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_resolve(text, name[])', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_resolve(text, name[]) IS 'pgtrickle-relay: the table that a user calls so, by SQL syntax or as it is';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_table_name(regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_table_name(t regclass) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = t
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_table_name(regclass) IS 'pgtrickle-relay: a table''s name as schema.table, unquoted';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_stream_oid(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_stream_oid(text) IS 'pgtrickle-relay: the oid of the table of an outbox, null when it is gone or never was';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_new_outbox(text, text, text, integer, oid)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_new_outbox(text, text, text, integer, oid) IS 'pgtrickle-relay: creates an outbox table and registers it; returns its name';
END $do$;

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

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_capturing()', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
-- PostgreSQL inlines the function, so that a row pays nothing for it. That needs a
-- function without a SET clause, and the right of everybody to execute it.
CREATE OR REPLACE FUNCTION pgtrickle._relay_capturing() RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $fn$ SELECT true $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_capturing() IS 'pgtrickle-relay: always true; the triggers of captured tables depend on it, so that they go with schema pgtrickle';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_header_problem(text, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_header_problem(text, text) IS 'pgtrickle-relay: why a name and a value cannot be a header, null when they can';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_headers(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_headers(text) IS 'pgtrickle-relay: the headers of a captured row, from setting pgtrickle.headers of its transaction';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_text_settings(regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_text_settings(regclass) IS 'pgtrickle-relay: the settings on which the text of a table''s rows depends, with the values that capture uses';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_row_json(regclass, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
-- Virtual generated columns are left out: a trigger's row has nulls for them.
CREATE OR REPLACE FUNCTION pgtrickle._relay_row_json(t regclass, p_row text) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE WHEN bool_or(a.attgenerated = 'v') IS NOT TRUE THEN format('row_to_json(%s.*)', p_row)
        ELSE format('(SELECT row_to_json(kept.*) FROM (SELECT %s) kept)',
            string_agg(format('%s.%I', p_row, a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attgenerated <> 'v')) END
    FROM pg_attribute a WHERE a.attrelid = t AND a.attnum > 0 AND NOT a.attisdropped
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_row_json(regclass, text) IS 'pgtrickle-relay: the expression that makes JSON of a row of a table; p_row is the row''s name in it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_capture_source(text, regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_capture_source(text, regclass) IS 'pgtrickle-relay: the source of the trigger function of a table with an outbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_capture_truncate(oid, name, text, text, text, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_capture_truncate(oid, name, text, text, text, text) IS 'pgtrickle-relay: what TRUNCATE of a table with an outbox does, with the rights of the table''s owner';
END $do$;

-- Rows that were there before: a function beside the trigger's reads them for startup
-- snapshot, with the rights of the table's owner and as the text that capture makes.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_key_columns(regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_key_columns(regclass) IS 'pgtrickle-relay: the columns of a table''s primary key, with the operators of its index, and what makes a text of array element pos comparable';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_keyed_source(regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_keyed_source(regclass) IS 'pgtrickle-relay: the source of the function that reads the rows of some primary keys of a captured table; null without a primary key';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_rows_source(regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_rows_source(regclass) IS 'pgtrickle-relay: the source of the function that reads the rows of a captured table in chunks, in the order of its primary key; null without one';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_rows_name(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_rows_name(p_capture text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT pgtrickle._relay_unique_name(p_capture || '_rows')
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_rows_name(text) IS 'pgtrickle-relay: the name of the function that reads the rows of a captured table, by that of its trigger function';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_rows_function(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_rows_function(text) IS 'pgtrickle-relay: the function that reads the rows of the table of an outbox; a problem with its cure when a relay cannot call it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_write_capture(text, regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_write_capture(text, regclass) IS 'pgtrickle-relay: makes the trigger function and the triggers of an outbox, or brings them to the present form';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_triggers(text, regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_triggers(p_outbox text, t regclass) RETURNS TABLE (rel regclass, trigger_name name)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT g.tgrelid, g.tgname FROM pg_trigger g
    WHERE g.tgparentid = 0
      AND ((g.tgname IN (pgtrickle._relay_trigger(p_outbox, 'row'), pgtrickle._relay_trigger(p_outbox, 'truncate'))
            AND (g.tgrelid = t OR g.tgrelid IN (SELECT pt.relid FROM pg_partition_tree(t) pt)))
           -- The statement triggers of an older version.
           OR g.tgfoid = (SELECT to_regprocedure(format('pgtrickle.%I()', o.capture_function)) FROM pgtrickle.relay_outboxes o WHERE o.outbox_table_name = p_outbox))
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_triggers(text, regclass) IS 'pgtrickle-relay: the triggers of an outbox on its table and the partitions, but for those that PostgreSQL cloned';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_create_outbox(regclass, integer)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_create_outbox(regclass, integer) IS 'pgtrickle-relay: makes the outbox of a table; returns its name';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_grant_capture(text, oid)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_grant_capture(p_outbox text, p_owner oid) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    EXECUTE format('GRANT SELECT, INSERT (inserted_count, deleted_count, payload, headers, key) ON pgtrickle.%I TO %s', p_outbox, p_owner::regrole);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_grant_capture(text, oid) IS 'pgtrickle-relay: gives the owner of a table what its trigger function needs on the outbox, and nothing else of it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_enable_outbox(text, name[], integer)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_enable_outbox(text, name[], integer) IS 'pgtrickle-relay: enable_outbox with the caller''s search path';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.enable_outbox(text, integer)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
-- Runs with the caller's search path, and so names nothing without its schema.
CREATE OR REPLACE FUNCTION pgtrickle.enable_outbox(p_name text, p_retention_hours integer DEFAULT 24) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_enable_outbox(p_name, pg_catalog.current_schemas(false), p_retention_hours);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.enable_outbox(text, integer) IS 'pgtrickle-relay: records every change of a table in an outbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_drop_outbox(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_drop_outbox(text) IS 'pgtrickle-relay: drops an outbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_drop_capture(text, regclass)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_drop_capture(text, regclass) IS 'pgtrickle-relay: drops the triggers of an outbox and their function, as the owner of the table';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_disable_outbox(text, name[], boolean)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_disable_outbox(text, name[], boolean) IS 'pgtrickle-relay: disable_outbox with the caller''s search path';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.disable_outbox(text, boolean)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.disable_outbox(p_name text, p_if_exists boolean DEFAULT false) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_disable_outbox(p_name, pg_catalog.current_schemas(false), p_if_exists);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.disable_outbox(text, boolean) IS 'pgtrickle-relay: stops recording the changes of a table and drops what is recorded';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_reattach(text, name[], text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_reattach(text, name[], text) IS 'pgtrickle-relay: outbox_upgrade and outbox_truncate_policy with the caller''s search path; p_policy is null to keep it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_describe_outbox(text, regclass, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_describe_outbox(text, regclass, text) IS 'pgtrickle-relay: remembers which table an outbox belongs to, its owner and its TRUNCATE policy; p_policy is null to keep it';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_upgrade_outbox(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_upgrade_outbox(text) IS 'pgtrickle-relay: brings an outbox without its triggers to the present form';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_add_columns(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_add_columns(text) IS 'pgtrickle-relay: gives an outbox the columns for headers, keys and event ids, if it was made before there were any; without a rewrite';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_truncate_policy(text, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.outbox_truncate_policy(p_name text, p_policy text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), p_policy);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_truncate_policy(text, text) IS 'pgtrickle-relay: what TRUNCATE does: delete, refuse or ignore';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_upgrade(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.outbox_upgrade(p_name text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), NULL);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_upgrade(text) IS 'pgtrickle-relay: brings the capture of a table to the present form of its columns, its owner, its partitions and this version';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_attach_partitions(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.outbox_attach_partitions(p_name text) RETURNS void
LANGUAGE plpgsql AS $fn$
BEGIN
    PERFORM pgtrickle._relay_reattach(p_name, pg_catalog.current_schemas(false), NULL);
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_attach_partitions(text) IS 'pgtrickle-relay: captures TRUNCATE of partitions that were added after enable_outbox; the same as outbox_upgrade';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.create_outbox(text, integer)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.create_outbox(text, integer) IS 'pgtrickle-relay: makes an outbox for events that an application writes with outbox_publish; returns its table''s name';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_grant_publish(text, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_grant_publish(text, text) IS 'pgtrickle-relay: lets a role write events with outbox_publish';
END $do$;

-- outbox_publish is made anew whenever there is another outbox, with a statement of its
-- own for each: so a call plans nothing and looks nothing up. An outbox of pg_trickle
-- has no such statement, and takes the one that is planned at each call.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_publish_problem(jsonb, text, jsonb, jsonb, text)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_publish_problem(jsonb, text, jsonb, jsonb, text) IS 'pgtrickle-relay: refuses what cannot be published';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_publish_payload(jsonb, text, jsonb)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_publish_payload(p_payload jsonb, p_op text, p_old jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('{"v":1,"inserted":[%s],"updated":[%s],"deleted":[%s]}',
        string_agg(e.j::text, ',' ORDER BY e.n) FILTER (WHERE p_op = 'insert'),
        string_agg('{"old":' || coalesce(p_old::text, 'null') || ',"new":' || e.j::text || '}', ',' ORDER BY e.n) FILTER (WHERE p_op = 'update'),
        string_agg(e.j::text, ',' ORDER BY e.n) FILTER (WHERE p_op = 'delete'))
    FROM jsonb_array_elements(CASE jsonb_typeof(p_payload) WHEN 'array' THEN p_payload ELSE jsonb_build_array(p_payload) END) WITH ORDINALITY AS e(j, n)
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_publish_payload(jsonb, text, jsonb) IS 'pgtrickle-relay: the payload of an outbox row for one event or a list of them, as text';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_publish_insert(text, text[])', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
-- p_values are the expressions for refresh_id, inserted_count, deleted_count, payload, headers, key and event_id.
CREATE OR REPLACE FUNCTION pgtrickle._relay_publish_insert(p_outbox text, p_values text[]) RETURNS text
LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT format('INSERT INTO pgtrickle.%I (refresh_id, inserted_count, deleted_count, payload%s) VALUES (%s::%s%s) RETURNING id', p_outbox,
        CASE WHEN count(*) > 1 THEN ', headers, key, event_id' END, array_to_string(p_values[1:4], ', '),
        max(a.atttypid::regtype::text) FILTER (WHERE a.attname = 'payload'),
        CASE WHEN count(*) > 1 THEN ', ' || array_to_string(p_values[5:7], ', ') END)
    FROM pg_attribute a WHERE a.attrelid = to_regclass(format('pgtrickle.%I', p_outbox)) AND a.attname IN ('payload', 'headers') AND NOT a.attisdropped
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_publish_insert(text, text[]) IS 'pgtrickle-relay: the statement that writes an event to an outbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_write_publish()', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_write_publish() IS 'pgtrickle-relay: makes outbox_publish anew, with a branch for each outbox that there is';
END $do$;

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

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_add_xid(regclass)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_add_xid(regclass) IS 'pgtrickle-relay: gives an outbox that the caller owns the column that snapshot windows need; returns the statement that makes its index, null when that is there';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_drop_partition(text, bigint)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_drop_partition(text, bigint) IS 'pgtrickle-relay: drops one partition of an outbox of ours of which every row is past its retention and up to an id that all readers have; returns its name and its rows, nothing when there is none';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_outbox_problems(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_outbox_problems(text) IS 'pgtrickle-relay: why changes of a table may not be recorded as they should, with the cure';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_outbox_status(text, name[])', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_outbox_status(text, name[]) IS 'pgtrickle-relay: outbox_status with the caller''s search path';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_status(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.outbox_status(p_name text) RETURNS jsonb
LANGUAGE plpgsql STABLE AS $fn$
BEGIN
    RETURN pgtrickle._relay_outbox_status(p_name, pg_catalog.current_schemas(false));
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_status(text) IS 'pgtrickle-relay: what an outbox holds';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.outbox_rows_consumed(text, bigint)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.outbox_rows_consumed(text, bigint) IS 'pgtrickle-relay: forgets the claim-check rows up to an outbox row, which every consumer must have delivered';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (5, 'outbox', 'cfc31e7acebcbbb5')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

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

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_may_register(name, regclass, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_may_register(name, regclass, text) IS 'pgtrickle-relay: refuses an inbox that is no real table, or of a role without EXECUTE on create_inbox';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_register_inbox(jsonb)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle._relay_register_inbox(p_inbox jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
BEGIN
    DELETE FROM pgtrickle.pgt_inbox_config i
        WHERE i.inbox_schema = p_inbox ->> 'inbox_schema' AND i.inbox_name = p_inbox ->> 'inbox_name';
    INSERT INTO pgtrickle.pgt_inbox_config SELECT (jsonb_populate_record(NULL::pgtrickle.pgt_inbox_config, p_inbox)).*;
END $fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_register_inbox(jsonb) IS 'pgtrickle-relay: stores an inbox''s settings, over those of a table that was dropped';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.create_inbox(text, text, integer, text, boolean, boolean, integer)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.create_inbox(text, text, integer, text, boolean, boolean, integer) IS 'pgtrickle-relay: makes an inbox table with views of what is pending and what has failed';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_inbox(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_inbox(text) IS 'pgtrickle-relay: the registration of an inbox, called by its name or as schema.name';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_inbox_table(pgtrickle.pgt_inbox_config)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_inbox_table(pgtrickle.pgt_inbox_config) IS 'pgtrickle-relay: the quoted table of an inbox; refuses one whose owner''s code the caller should not run';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.drop_inbox(text, boolean, boolean)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.drop_inbox(text, boolean, boolean) IS 'pgtrickle-relay: drops an inbox''s views and registration, and with p_cascade its table';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.inbox_health(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.inbox_health(text) IS 'pgtrickle-relay: numbers of an inbox''s messages';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.inbox_status(text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
CREATE OR REPLACE FUNCTION pgtrickle.inbox_status(p_name text DEFAULT NULL)
RETURNS TABLE (inbox_name text, inbox_schema text, max_retries integer, schedule text, with_dead_letter boolean, with_stats boolean, created_at timestamptz)
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT i.inbox_name, i.inbox_schema, i.max_retries, i.schedule, i.with_dead_letter, i.with_stats, i.created_at
    FROM pgtrickle.pgt_inbox_config i WHERE p_name IS NULL OR p_name IN (i.inbox_name, i.inbox_schema || '.' || i.inbox_name) ORDER BY i.inbox_name, i.inbox_schema
$fn$;
$sql$;
    COMMENT ON FUNCTION pgtrickle.inbox_status(text) IS 'pgtrickle-relay: inboxes and their settings';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.replay_inbox_messages(text, text[])', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.replay_inbox_messages(text, text[]) IS 'pgtrickle-relay: makes messages pending again; returns how many';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (6, 'inbox', '15f071eb9a31ea49')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

-- What the role pgtrickle_relay may do: what a relay does, and nothing more.

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_may(text, text, oid)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_may(text, text, oid) IS 'pgtrickle-relay: whether the relay''s role has a privilege; on a column it is "UPDATE (column)"';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_grant(text, text, oid)', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_grant(text, text, oid) IS 'pgtrickle-relay: grants privileges on a relation to the relay''s role, as far as the caller may; returns what could not be granted';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle._relay_grant_inbox(text, text)', true) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle._relay_grant_inbox(text, text) IS 'pgtrickle-relay: lets the relay write an inbox of the caller';
END $do$;

DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('function', 'pgtrickle.relay_grant_access()', false) THEN
        RETURN;
    END IF;
    EXECUTE $sql$
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
$sql$;
    COMMENT ON FUNCTION pgtrickle.relay_grant_access() IS 'pgtrickle-relay: gives the role pgtrickle_relay what a relay needs on everything that exists now; returns the statements that someone with more rights must run';
END $do$;

INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (7, 'access', '2f115dc420071f49')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;

