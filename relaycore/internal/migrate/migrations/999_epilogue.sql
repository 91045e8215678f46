-- Runs after every migration.

-- Functions are executable by everybody when they are made. These stay so: they
-- work with the caller's own rights. enable_outbox and create_inbox are not among them:
-- the schema's owner decides which roles may have outboxes and inboxes (docs/sql.md, Rights).
DO $do$
DECLARE
    everybody constant text[] := ARRAY[
        'disable_outbox', 'outbox_status', 'outbox_publish', 'outbox_truncate_policy', 'outbox_attach_partitions', 'outbox_upgrade', 'outbox_add_xid',
        'drop_inbox', 'inbox_health', 'inbox_status', 'replay_inbox_messages',
        '_relay_name', '_relay_unique_name', '_relay_table_name', '_relay_resolve', '_relay_stream_oid', '_relay_outbox_table', '_relay_find',
        '_relay_enable_outbox', '_relay_disable_outbox', '_relay_outbox_status', '_relay_outbox_problems', '_relay_reattach', '_relay_inbox', '_relay_inbox_table',
        '_relay_capturing', '_relay_trigger', '_relay_triggers', '_relay_row_json', '_relay_text_settings', '_relay_capture_source',
        '_relay_rows_source', '_relay_keyed_source', '_relay_key_columns', '_relay_rows_name', '_relay_rows_function',
        '_relay_snapshot_table', '_relay_snapshot_rows', '_relay_key_text',
        '_relay_write_capture', '_relay_drop_capture', '_relay_capture_truncate', '_relay_headers', '_relay_header_problem',
        '_relay_publish_problem', '_relay_publish_payload', '_relay_publish_insert',
        '_relay_mask', '_relay_may', '_relay_grant', '_relay_grant_inbox', '_relay_wake'];
    fn regprocedure;
BEGIN
    FOR fn IN
        SELECT p.oid FROM pg_proc p
        WHERE p.pronamespace = to_regnamespace('pgtrickle') AND NOT p.proname = ANY (everybody)
          AND obj_description(p.oid, 'pg_proc') LIKE 'pgtrickle-relay:%'
          AND has_function_privilege('public', p.oid, 'EXECUTE')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', fn);
    END LOOP;
    IF pgtrickle._relay_claim('function', 'pgtrickle.enable_outbox(text, integer)', true) THEN
        GRANT USAGE ON SCHEMA pgtrickle TO PUBLIC;
        GRANT SELECT ON pgtrickle.pgt_outbox_config, pgtrickle.relay_outboxes, pgtrickle.pgt_inbox_config TO PUBLIC;
    END IF;
END $do$;

-- Outboxes that an older version made get the columns of this one. Their payload and
-- their triggers stay as they are until outbox_upgrade is called.
DO $do$
BEGIN
    IF to_regclass('pgtrickle.relay_outboxes') IS NOT NULL THEN
        PERFORM pgtrickle._relay_add_columns(o.outbox_table_name) FROM pgtrickle.relay_outboxes o
            WHERE to_regclass(format('pgtrickle.%I', o.outbox_table_name)) IS NOT NULL;
        UPDATE pgtrickle.relay_outboxes o SET stream_owner = r.rolname
            FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
            WHERE o.stream_owner IS NULL AND c.oid = pgtrickle._relay_stream_oid(o.outbox_table_name);
    END IF;
END $do$;

-- What migrate --release-extension had saved before an update of the extension dropped it.
DO $do$
DECLARE
    saved text;
BEGIN
    FOREACH saved IN ARRAY ARRAY['relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets'] LOOP
        IF to_regclass('pgtrickle.relay_saved_' || saved) IS NOT NULL THEN
            EXECUTE format('INSERT INTO pgtrickle.%1$I SELECT * FROM pgtrickle.%2$I ON CONFLICT DO NOTHING', saved, 'relay_saved_' || saved);
            EXECUTE format('DROP TABLE pgtrickle.%I', 'relay_saved_' || saved);
        END IF;
    END LOOP;
END $do$;

SELECT pgtrickle.relay_grant_access();
