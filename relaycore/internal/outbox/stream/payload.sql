-- The payload of row $1 in slices, if it has no more than $2 bytes, else its length
-- alone. A text of another encoding is converted. Bytes are sliced without a scan from
-- their beginning, which characters would need.
WITH body AS MATERIALIZED (SELECT {payload} AS b FROM {table} WHERE {id} = $1::bigint LIMIT 1)
SELECT octet_length(b), s, CASE WHEN octet_length(b) <= $2::bigint THEN substring(b FROM s FOR {slice}) END
FROM body, generate_series(1, CASE WHEN octet_length(b) <= $2::bigint THEN greatest(octet_length(b), 1) ELSE 1 END, {slice}) s
