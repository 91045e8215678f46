-- Table $1 and sequence $2 as they are now, and the timeline. If $4 is set: whether the
-- table has a column that windows can read by, $3 or any.
SELECT coalesce(to_regclass($1)::oid, 0::oid), coalesce(pg_relation_filenode(to_regclass($1)), 0::oid),
	coalesce(pg_relation_filenode($2::oid), 0::oid),
	pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN '' ELSE ({timeline}) END,
	$4 AND EXISTS (
		SELECT FROM pg_attribute a
		JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
		JOIN pg_index i ON i.indrelid = a.attrelid AND i.indkey[0] = a.attnum AND i.indisvalid AND i.indpred IS NULL
		WHERE a.attrelid = to_regclass($1) AND a.atttypid = 'xid8'::regtype AND a.attnotnull
			AND ($3::text IN ('', a.attname::text)) AND pg_get_expr(d.adbin, d.adrelid) LIKE '%pg_current_xact_id()%')
