-- Table $1 and its file, and the files of all sequences.
SELECT coalesce(o.oid, 0::oid), coalesce(pg_relation_filenode(o.oid), 0::oid),
	ARRAY(SELECT q.relfilenode FROM pg_class q WHERE q.relkind = 'S')
FROM (SELECT to_regclass($1)::oid AS oid) o
