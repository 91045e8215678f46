-- Compares the snapshot of outbox row $2 with state $1, stores the changes and the new
-- state. It is one statement, so that claim-check rows which another reader consumes
-- meanwhile do not look deleted. A snapshot without rows changes nothing, unless it is
-- known to be empty: $3, or its outbox row shows it.
--
-- $4: send all rows. $5: store no changes. $6: columns that do not count as changes.
-- $7: columns that the state keeps, null for all.
WITH given AS MATERIALIZED (
	SELECT coalesce(s.row ->> '__pgt_row_id', encode(sha256(convert_to(s.row::text, 'UTF8')), 'hex')) AS row_id, s.row,
		sha256(convert_to(CASE jsonb_typeof(s.row) WHEN 'object' THEN s.row - $6::text[] ELSE s.row END::text, 'UTF8')) AS hash
	FROM ({rows}) s(row)
), known AS MATERIALIZED (
	SELECT $3::boolean OR EXISTS (SELECT FROM given) OR EXISTS (
		SELECT FROM {table} o WHERE o.{id} = $2::bigint AND NOT o.is_claim_check AND jsonb_typeof(o.payload::jsonb) = 'array') AS known
), counted AS (
	SELECT row_id, (row_number() OVER (PARTITION BY row_id ORDER BY hash))::int AS occurrence, hash, row FROM given
), changed AS MATERIALIZED (
	SELECT row_id, occurrence, g.hash, g.row, o.hash AS before_hash, o.row AS before
	FROM counted g
	FULL JOIN (SELECT row_id, occurrence, hash, row FROM pgtrickle.relay_snapshot_rows WHERE snapshot_id = $1::bigint) o USING (row_id, occurrence)
	WHERE ($4::boolean OR g.hash IS DISTINCT FROM o.hash) AND (SELECT known FROM known)
), gone AS (
	DELETE FROM pgtrickle.relay_snapshot_rows r USING changed c
	WHERE r.snapshot_id = $1::bigint AND r.row_id = c.row_id AND r.occurrence = c.occurrence AND c.hash IS NULL
), kept AS (
	INSERT INTO pgtrickle.relay_snapshot_rows AS r (snapshot_id, row_id, occurrence, hash, row)
	SELECT $1::bigint, row_id, occurrence, hash, CASE
		WHEN $7::text[] IS NULL OR jsonb_typeof(row) <> 'object' THEN row
		ELSE (SELECT coalesce(jsonb_object_agg(f.key, f.value), '{}') FROM jsonb_each(row) f WHERE f.key = ANY ($7::text[])) END
	FROM changed WHERE hash IS NOT NULL
	ON CONFLICT (snapshot_id, row_id, occurrence) DO UPDATE SET hash = excluded.hash, row = excluded.row
	WHERE r.hash <> excluded.hash OR $4::boolean
), stored AS (
	INSERT INTO pgtrickle.relay_snapshot_changes (snapshot_id, outbox_id, n, op, row_id, occurrence, full_refresh, row, before)
	SELECT $1::bigint, $2::bigint, row_number() OVER (ORDER BY hash IS NOT NULL, row_id, occurrence) - 1,
		CASE WHEN hash IS NULL THEN 'delete' WHEN before_hash IS NULL OR $4::boolean THEN 'insert' ELSE 'update' END,
		row_id, occurrence, hash IS NOT NULL AND $4::boolean, coalesce(row, before),
		CASE WHEN hash IS NOT NULL AND NOT $4::boolean AND $7::text[] IS NULL THEN before END
	FROM changed WHERE NOT $5::boolean
)
UPDATE pgtrickle.relay_snapshots SET compared_id = $2::bigint, full_refresh = false
WHERE id = $1::bigint AND (SELECT known FROM known)
RETURNING (SELECT count(*) FROM changed)
