-- The state of the catalog. It reads tables that every role may read, because a role
-- without rights on the schema may not name its objects.
SELECT n.oid IS NOT NULL,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       c.oid IS NOT NULL,
       coalesce(has_table_privilege(c.oid, 'SELECT'), false),
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgtrickle_relay'),
       current_user::text
FROM (VALUES (1)) one
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgtrickle'
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'relay_migrations'
