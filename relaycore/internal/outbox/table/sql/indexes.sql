-- Whether a valid B-tree of table $1 begins with column $2, is unique on it, begins with column $3.
SELECT coalesce(bool_or(a.attname = $2), false),
	coalesce(bool_or(a.attname = $2 AND i.indisunique AND i.indnkeyatts = 1), false),
	coalesce(bool_or(a.attname = $3), false)
FROM pg_index i
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
JOIN pg_class ic ON ic.oid = i.indexrelid
JOIN pg_am am ON am.oid = ic.relam
WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL AND am.amname = 'btree'
