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
