-- The next $4 rows of the snapshot in outbox row $2, behind number $3. They are sent as
-- they stand. $1 is the state.
SELECT e.n, 'insert', e.row, NULL, NULL, NULL, 't'
FROM {table} o CROSS JOIN LATERAL jsonb_array_elements(o.payload::jsonb) WITH ORDINALITY e(row, n)
WHERE o.{id} = $2::bigint AND e.n > $3::bigint AND $1::bigint IS NOT NULL
ORDER BY e.n LIMIT $4::int
