SELECT direction, pipeline, count(*) FILTER (WHERE status <> 'parked'), count(*) FILTER (WHERE status = 'parked')
FROM pgtrickle.relay_dead_letters
WHERE relay_group_id = $1
GROUP BY direction, pipeline
