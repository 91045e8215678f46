-- The cursors of the forward pipelines of all groups.
SELECT pipeline, relay_group_id, coalesce(source, ''), last_id, checkpoint, epoch > 0
FROM pgtrickle.relay_cursors
WHERE direction = 'forward'
ORDER BY 1, 2
