-- The next rows of block $2 of the keys of request $1, and the snapshot that they are read by.
SELECT pg_current_snapshot()::text, r.key::text, r.length::text, {row}, ($2::bigint * 1000 + r.n)::text, k.block IS NULL
FROM (SELECT) one
LEFT JOIN pgtrickle.relay_snapshot_keys k ON k.request = $1::bigint AND k.block = $2::integer
LEFT JOIN LATERAL {rows}(k.keys, $3::integer, $4::integer, $5::bigint, $6::bigint) r ON true
