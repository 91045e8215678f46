-- Where pipelines start that have no cursor in a group.
SELECT o.pipeline_id, o.relay_group_id, o.last_change_id, '', true
FROM pgtrickle.relay_consumer_offsets o
WHERE NOT EXISTS (
	SELECT FROM pgtrickle.relay_cursors c
	WHERE c.relay_group_id = o.relay_group_id AND c.pipeline = o.pipeline_id AND c.direction = 'forward')
ORDER BY 1, 2
