-- The settings of a connection that reads outboxes do not fit a comparison.
SELECT set_config('enable_seqscan', 'on', true), set_config('enable_bitmapscan', 'on', true), set_config('jit', 'off', true),
	set_config('plan_cache_mode', 'force_custom_plan', true)
