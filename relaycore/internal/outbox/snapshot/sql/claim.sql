SELECT d.{data}::jsonb FROM {delta} d WHERE d.outbox_id = $2::bigint
