-- The sequence of column $2 of table $1, by its default or by its identity; its oid is 0 if
-- there is none. Whether a valid B-tree of the table begins with column $2, is unique on it,
-- begins with column $3.
WITH numbers AS (
	SELECT s.*, pg_relation_filenode(s.seqrelid) AS file, has_sequence_privilege(s.seqrelid, 'SELECT') AS readable
	FROM pg_attribute a
	LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
	JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass
		AND (d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid AND d.deptype = 'n')
		OR (d.classid = 'pg_class'::regclass AND d.deptype = 'i' AND d.refclassid = 'pg_class'::regclass
			AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum)
	JOIN pg_sequence s ON s.seqrelid = CASE WHEN d.deptype = 'n' THEN d.refobjid ELSE d.objid END
	WHERE a.attrelid = $1 AND a.attname = $2
	LIMIT 1
), indexes AS (
	SELECT coalesce(bool_or(a.attname = $2), false) AS indexed,
		coalesce(bool_or(a.attname = $2 AND i.indisunique AND i.indnkeyatts = 1), false) AS is_unique,
		coalesce(bool_or(a.attname = $3), false) AS by_xid
	FROM pg_index i
	JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
	JOIN pg_class ic ON ic.oid = i.indexrelid
	JOIN pg_am am ON am.oid = ic.relam
	WHERE i.indrelid = $1 AND i.indisvalid AND i.indpred IS NULL AND am.amname = 'btree'
)
SELECT coalesce(seqrelid, 0::oid), coalesce(file, 0::oid), coalesce(seqrelid::regclass::text, ''),
	coalesce(seqincrement, 0), coalesce(seqcache, 0), coalesce(seqmin, 0), coalesce(seqcycle, false),
	coalesce(readable, false), indexed, is_unique, by_xid
FROM indexes LEFT JOIN numbers ON true
