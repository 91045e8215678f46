-- What the tests need beside the real pg_trickle, in place of extension.sql's functions of
-- the same names.

-- fixture_stream_table makes a stream table in place of an existing table, which becomes
-- its source in schema fixture_SCHEMA. Refresh mode FULL writes an outbox row at each
-- refresh, changed or not.
CREATE FUNCTION pgtrickle.fixture_stream_table(p_table regclass) RETURNS void LANGUAGE plpgsql AS $fn$
DECLARE
    s name := (SELECT relnamespace::regnamespace FROM pg_class WHERE oid = p_table);
    n name := (SELECT relname FROM pg_class WHERE oid = p_table);
    c text := (SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute WHERE attrelid = p_table AND attnum > 0 AND attname NOT LIKE '\_\_pgt%');
BEGIN
    EXECUTE format('CREATE SCHEMA IF NOT EXISTS %I', 'fixture_' || s);
    EXECUTE format('DROP TABLE IF EXISTS %I.%I', 'fixture_' || s, n);
    EXECUTE format('ALTER TABLE %s SET SCHEMA %I', p_table, 'fixture_' || s);
    PERFORM pgtrickle.create_stream_table(s || '.' || n, format('SELECT %s FROM %I.%I', c, 'fixture_' || s, n), '1d', 'FULL');
END $fn$;

CREATE FUNCTION pgtrickle.fixture_refresh(p_table regclass, p_inserted bigint, p_deleted bigint, p_threshold bigint DEFAULT 10000, p_truncate bool DEFAULT false)
RETURNS bigint LANGUAGE plpgsql AS $fn$
DECLARE
    s  pgtrickle.pgt_stream_tables;
    id bigint;
BEGIN
    SELECT * INTO STRICT s FROM pgtrickle.pgt_stream_tables WHERE pgt_relid = p_table;
    PERFORM set_config('pg_trickle.outbox_inline_threshold_rows', p_threshold::text, true);
    PERFORM pgtrickle.refresh_stream_table(s.pgt_schema || '.' || s.pgt_name);
    EXECUTE format('SELECT max(id) FROM pgtrickle.%I', (SELECT outbox_table_name FROM pgtrickle.pgt_outbox_config WHERE stream_table_oid::bigint = s.pgt_id))
        INTO id;
    RETURN id;
END $fn$;
