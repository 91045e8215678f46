-- Forward pipelines and their stream_table, in each place where a configuration may
-- have it. In the last two, a backend's own keys hide those of the outbox.
SELECT name, coalesce(
	config->>'stream_table', config->>'outbox', config->>'source_outbox',
	config->'source'->>'stream_table', config->'source'->>'outbox',
	config->'sink'->>'stream_table', config->'sink'->>'outbox', '')
FROM {configs}
ORDER BY 1
