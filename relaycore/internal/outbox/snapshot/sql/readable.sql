-- Whether the role may read relation $1; no row if there is none.
SELECT has_table_privilege(oid, 'SELECT') AND has_schema_privilege(relnamespace, 'USAGE') FROM pg_class WHERE oid = to_regclass($1)
