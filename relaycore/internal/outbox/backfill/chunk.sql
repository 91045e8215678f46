-- The next rows after key $1, and the snapshot that they are read by: the function is
-- stable, so it reads by the snapshot of this statement.
SELECT pg_current_snapshot()::text, r.key::text, r.length::text, {row}, NULL, r.key IS NULL
FROM (SELECT) one
LEFT JOIN LATERAL {rows}(nullif($1::text, '')::text[], $2::integer, $3::bigint, $4::bigint) r ON true
