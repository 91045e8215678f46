-- Bytes $2 to $3 of the payload of row $1 in slices, with the version of the row.
WITH body AS MATERIALIZED (SELECT {payload} AS b, {version} AS version FROM {table} WHERE {id} = $1::bigint LIMIT 1)
SELECT version, octet_length(b), s, substring(b FROM s FOR least({slice}, $3::int - s + 1))
FROM body, generate_series($2::int, $3::int, {slice}) s
