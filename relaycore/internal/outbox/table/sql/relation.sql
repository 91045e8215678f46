-- What kind of relation $1.$2 is, and whether this role may read all of it. Whether the
-- database is SQL_ASCII; its oid; whether the server is a standby.
SELECT c.oid, coalesce(pg_relation_filenode(c.oid), 0::oid), c.relkind::text, row_security_active(c.oid),
	c.relpersistence = 'u', has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
	current_setting('server_encoding') = 'SQL_ASCII', (SELECT oid FROM pg_database WHERE datname = current_database()),
	pg_is_in_recovery()
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
