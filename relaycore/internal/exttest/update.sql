-- ALTER EXTENSION pg_trickle UPDATE from 0.45 to 0.46. Role pgtrickle_relay belongs to
-- the tests of other databases too: here it is dropped in name only, and only what
-- depends on it in database $1 forbids that.
CREATE FUNCTION pg_temp.fixture_update(p_databases text) RETURNS void LANGUAGE plpgsql AS $fn$
DECLARE member text;
BEGIN
    IF EXISTS (SELECT FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid
               WHERE d.datname = ANY (string_to_array(p_databases, ',')) AND s.refclassid = 'pg_authid'::regclass AND s.refobjid = to_regrole('pgtrickle_relay')) THEN
        RAISE EXCEPTION 'role "pgtrickle_relay" cannot be dropped because some objects depend on it' USING ERRCODE = 'dependent_objects_still_exist';
    END IF;
    FOR member IN
        SELECT format('TABLE pgtrickle.%I', n) FROM unnest(ARRAY['relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets',
            'pgt_consumer_leases', 'pgt_consumer_offsets', 'pgt_consumer_groups', 'pgt_inbox_ordering_config', 'pgt_inbox_priority_config', 'pgt_inbox_config']) n
        UNION ALL SELECT format('FUNCTION %s', p.oid::regprocedure) FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
            WHERE p.pronamespace = 'pgtrickle'::regnamespace AND (p.proname ~ 'relay|outbox|inbox|consumer' OR p.proname = 'commit_offset')
    LOOP
        EXECUTE 'ALTER EXTENSION pg_trickle DROP ' || member;
        EXECUTE format('DROP %s CASCADE', member);
    END LOOP;
    ALTER TABLE pgtrickle.pgt_outbox_config RENAME outbox_table_name TO tide_outbox_name;
    ALTER TABLE pgtrickle.pgt_outbox_config DROP COLUMN last_drained_at, DROP COLUMN last_drained_count, DROP COLUMN retention_hours;
    SET LOCAL allow_system_table_mods = on;
    UPDATE pg_extension SET extversion = '0.46.0' WHERE extname = 'pg_trickle';
END $fn$;
