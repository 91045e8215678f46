-- Tables of schema $1 that may hold the deltas of stream table $2 or outbox $3. The
-- extension's name is cut at 63 bytes, as the cast to name cuts it.
SELECT c.relname::text, array_agg(a.attname::text)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')
	AND c.relname IN (('outbox_delta_rows_' || $2::text)::name, ('outbox_delta_rows_' || $3::text)::name)
GROUP BY c.relname
ORDER BY c.relname = ('outbox_delta_rows_' || $2::text)::name DESC
