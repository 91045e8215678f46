-- The small members of row $1's event, from which its key and subject are made, and its
-- operation. Both are null if the row has several events.
SELECT (SELECT coalesce(jsonb_object_agg(m.key, m.value), '{}')::text FROM jsonb_each(e.object) m WHERE pg_column_size(m.value) < 1024),
	e.op
FROM (SELECT {payload}::jsonb AS p FROM {table} WHERE {id} = $1::bigint LIMIT 1) r
CROSS JOIN LATERAL (
	SELECT r.p AS object, NULL AS op WHERE {plain}
	UNION ALL
	SELECT (array_agg(c.object))[1], (array_agg(c.op))[1]
	FROM (
		SELECT jsonb_array_elements(r.p -> 'inserted') AS object, 'insert' AS op
		UNION ALL SELECT jsonb_array_elements(r.p -> 'updated') -> 'new', 'update'
		UNION ALL SELECT jsonb_array_elements(r.p -> 'deleted'), 'delete') c
	WHERE NOT {plain} HAVING count(*) = 1) e
WHERE jsonb_typeof(e.object) = 'object'
