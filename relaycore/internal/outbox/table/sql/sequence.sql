-- The sequence of column $2 of table $1: by its default, or by its identity.
SELECT s.seqrelid, coalesce(pg_relation_filenode(s.seqrelid), 0::oid), s.seqrelid::regclass::text,
	s.seqincrement, s.seqcache, s.seqmin, s.seqcycle,
	coalesce(has_sequence_privilege(s.seqrelid, 'SELECT'), false)
FROM pg_attribute a
LEFT JOIN pg_attrdef ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass
	AND (d.classid = 'pg_attrdef'::regclass AND d.objid = ad.oid AND d.deptype = 'n')
	OR (d.classid = 'pg_class'::regclass AND d.deptype = 'i' AND d.refclassid = 'pg_class'::regclass
		AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum)
JOIN pg_sequence s ON s.seqrelid = CASE WHEN d.deptype = 'n' THEN d.refobjid ELSE d.objid END
WHERE a.attrelid = $1 AND a.attname = $2
LIMIT 1
