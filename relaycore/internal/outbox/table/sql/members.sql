-- Members of the extension's consumer groups that read outbox $1.
SELECT 'consumer ' || o.consumer_id, g.group_name, o.committed_offset
FROM pgtrickle.pgt_consumer_groups g JOIN pgtrickle.pgt_consumer_offsets o USING (group_name)
WHERE g.outbox_name = $1
ORDER BY 1, 2
