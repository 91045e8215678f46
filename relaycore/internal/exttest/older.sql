-- From 0.45 back to 0.28, which has outboxes and inboxes and no relay.
DO $do$ DECLARE member text; BEGIN
    FOR member IN
        SELECT format('TABLE pgtrickle.%I CASCADE', n) FROM unnest(ARRAY['relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets']) n
        UNION ALL SELECT format('FUNCTION %s', p.oid::regprocedure) FROM pg_proc p WHERE p.pronamespace = 'pgtrickle'::regnamespace AND p.proname LIKE '%relay%'
    LOOP
        EXECUTE format('ALTER EXTENSION pg_trickle DROP %s', replace(member, ' CASCADE', ''));
        EXECUTE 'DROP ' || member;
    END LOOP;
END $do$;
SET LOCAL allow_system_table_mods = on;
UPDATE pg_extension SET extversion = '0.28.0' WHERE extname = 'pg_trickle';
