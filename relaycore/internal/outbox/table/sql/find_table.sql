-- The table called $1.$2; without a schema, by the search path and then in schema pgtrickle.
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = coalesce(
	to_regclass(CASE WHEN $1 = '' THEN format('%I', $2::text) ELSE format('%I.%I', $1::text, $2::text) END),
	to_regclass(CASE WHEN $1 = '' THEN format('pgtrickle.%I', $2::text) END))
