-- The table called $1.$2; without a schema, that of the role's own schema, of public or
-- of pgtrickle. The search path is no help: the relay's sessions pin it.
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = $2 AND c.relkind NOT IN ('i', 'I', 't', 'c')
	AND n.nspname = ANY (CASE WHEN $1 = '' THEN ARRAY[current_user::text, 'public', 'pgtrickle'] ELSE ARRAY[$1] END)
ORDER BY array_position(ARRAY[current_user::text, 'public', 'pgtrickle'], n.nspname::text)
LIMIT 1
