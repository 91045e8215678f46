-- The counts of claim check $1, and whether a later row is a snapshot too if $2 is set.
SELECT coalesce(sum(inserted_count), 0)::bigint, coalesce(sum(deleted_count), 0)::bigint,
	$2::boolean AND EXISTS (
		SELECT FROM {table} WHERE {id} > $1::bigint
			AND CASE WHEN is_claim_check THEN payload IS NULL ELSE left(payload::text, 1) = '[' END)
FROM {table} WHERE {id} = $1::bigint
