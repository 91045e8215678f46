-- The extension's own columns in the snapshot of outbox row $2.
SELECT ARRAY(
	SELECT k FROM (SELECT row FROM ({rows}) s(row) LIMIT 1) f, jsonb_object_keys(CASE jsonb_typeof(f.row) WHEN 'object' THEN f.row ELSE '{}' END) k
	WHERE left(k, 6) = '__pgt_' AND $1::bigint IS NOT NULL)
