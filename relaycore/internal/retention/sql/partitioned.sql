-- Whether the table is partitioned by ranges of id or created_at.
SELECT EXISTS (
    SELECT FROM pg_partitioned_table p
    JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    WHERE p.partrelid = to_regclass($1) AND p.partstrat = 'r' AND p.partnatts = 1 AND a.attname IN ('id', 'created_at'))
