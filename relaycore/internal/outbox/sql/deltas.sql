-- The next $3 deltas of claim check $1, behind row_num $2.
SELECT row_num, {op}, {data} FROM {table}
WHERE outbox_id = $1::bigint AND row_num > $2::bigint
ORDER BY row_num LIMIT $3::int
