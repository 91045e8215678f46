SELECT set_config('enable_seqscan', 'off', {local}), set_config('enable_bitmapscan', 'off', {local}), set_config('jit', 'off', {local}),
	set_config('max_parallel_workers_per_gather', '0', {local}), set_config('plan_cache_mode', 'force_generic_plan', {local})
