-- The state keeps other columns from now on: the next snapshot is sent whole.
UPDATE pgtrickle.relay_snapshots SET full_refresh = true, columns = $2 WHERE id = $1
