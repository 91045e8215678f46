-- What must run before extension pg_trickle of version $1 ("" = not installed) is
-- installed or updated, line by line. Empty if nothing must.
WITH ours AS (
    SELECT c.relname FROM pg_catalog.pg_class c JOIN (VALUES ('relay_outbox_config'), ('relay_inbox_config'), ('relay_consumer_offsets')) t(name) ON t.name = c.relname
    WHERE c.relnamespace = to_regnamespace('pgtrickle')
), state AS (
    SELECT CASE WHEN $1::text = '' THEN 'absent' WHEN string_to_array(substring($1::text FROM '^[0-9.]*[0-9]'), '.')::int[] < '{0,29}' THEN 'old' WHEN string_to_array(substring($1::text FROM '^[0-9.]*[0-9]'), '.')::int[] < '{0,46}' THEN 'own' END AS way
), dependents AS (
    SELECT DISTINCT d.datname FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid
    WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = to_regrole('pgtrickle_relay')
)
SELECT l FROM state, LATERAL (
    SELECT 1, 0, '-- CREATE EXTENSION pg_trickle refuses a schema pgtrickle that it did not make. Stop the relays, and run here:' WHERE way = 'absent'
    UNION ALL SELECT 1, 1, 'ALTER SCHEMA pgtrickle RENAME TO pgtrickle_before;' WHERE way = 'absent'
    UNION ALL SELECT 1, 2, 'CREATE EXTENSION pg_trickle;' WHERE way = 'absent'
    UNION ALL SELECT 1, 3, '-- then: pgtrickle-relay migrate; then:' WHERE way = 'absent'
    UNION ALL SELECT 1, 4, format('INSERT INTO pgtrickle.%1$I SELECT * FROM pgtrickle_before.%1$I;', relname) FROM ours WHERE way = 'absent'
    UNION ALL SELECT 1, 5, '-- Outboxes, inboxes, cursors and dead letters stay in pgtrickle_before; read them to their end first.' WHERE way = 'absent'

    UNION ALL SELECT 2, 0, '-- pg_trickle 0.29 refuses relay objects that it did not make. As superuser, here, before ALTER EXTENSION pg_trickle UPDATE:' WHERE way = 'old'
    UNION ALL SELECT 2, 1, format('ALTER EXTENSION pg_trickle ADD TABLE pgtrickle.%I;', relname) FROM ours WHERE way = 'old'
    UNION ALL SELECT 2, 2, 'DROP VIEW IF EXISTS pgtrickle.relay_pipelines;' WHERE way = 'old'
    UNION ALL SELECT 2, 3, format('ALTER EXTENSION pg_trickle ADD FUNCTION %s;', p.oid::regprocedure) FROM pg_catalog.pg_proc p
        WHERE way = 'old' AND p.pronamespace = to_regnamespace('pgtrickle') AND p.proname IN ('set_relay_outbox', 'set_relay_inbox', 'enable_relay', 'disable_relay',
            'delete_relay', 'get_relay_config', 'list_relay_configs', 'relay_config_notify') AND p.pronargs <> 2 -- not our own overloads

    UNION ALL SELECT 3, 0, '-- pg_trickle 0.46 drops role pgtrickle_relay and its own pipelines. Stop the relays, and run as superuser before ALTER EXTENSION pg_trickle UPDATE:' WHERE way = 'own'
    UNION ALL SELECT 3, 1, format('-- in database %s', quote_ident(current_database())) WHERE way = 'own'
    UNION ALL SELECT 3, 2, format('CREATE TABLE pgtrickle.relay_saved_%1$s AS SELECT * FROM pgtrickle.%1$I;', relname) FROM ours WHERE way = 'own'
    UNION ALL SELECT 3, 3, 'DROP OWNED BY pgtrickle_relay;' WHERE way = 'own'
    UNION ALL SELECT 3, 4, format('-- in database %s', quote_ident(datname)) || E'\nDROP OWNED BY pgtrickle_relay;' FROM dependents WHERE way = 'own' AND datname <> current_database()
    UNION ALL SELECT 3, 5, '-- after the update, in each of these databases: pgtrickle-relay migrate; then:' WHERE way = 'own'
    UNION ALL SELECT 3, 6, format('GRANT pgtrickle_relay TO %I;', m.rolname) FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles m ON m.oid = a.member
        WHERE way = 'own' AND a.roleid = to_regrole('pgtrickle_relay')
) AS a(part, n, l)
WHERE to_regclass('pgtrickle.relay_migrations') IS NOT NULL
ORDER BY part, n, l
