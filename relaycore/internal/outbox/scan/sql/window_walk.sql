-- The next $4 rows of a big window: behind id $1, seen by $2 and not by $3.
SELECT {columns} FROM {table}
WHERE {same} AND {id} > $1::bigint AND pg_visible_in_snapshot({xid}, $2::pg_snapshot) AND NOT pg_visible_in_snapshot({xid}, $3::pg_snapshot)
ORDER BY {id} LIMIT $4::int
