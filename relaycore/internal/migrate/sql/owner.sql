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
