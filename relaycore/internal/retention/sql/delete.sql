-- Deletes rows of {table} from id $1 up to $2, at most up to $3, but not those in $5. It stops in front of
-- the first row that is younger than $4 hours: later rows are younger, or expire soon.
DELETE FROM {table}
WHERE id <> ALL ($5::bigint[]) AND id >= $1 AND id <= least($2::bigint, $3::bigint, (
    SELECT coalesce(min(id) - 1, $3) FROM {table}
    WHERE id >= $1 AND id <= $3 AND created_at >= now() - make_interval(hours => $4)))
