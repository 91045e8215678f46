SELECT a.attname::text
FROM pg_index i
JOIN pg_class c ON c.oid = i.indrelid
JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k(num, pos)
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num
WHERE i.indisprimary AND n.nspname = $1 AND c.relname = $2
ORDER BY k.pos
