SELECT e.row FROM {table} o CROSS JOIN LATERAL jsonb_array_elements(o.payload::jsonb) e(row) WHERE o.{id} = $2::bigint
