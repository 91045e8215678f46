-- Passes outbox row $2, whose snapshot is lost: the next one is sent as a whole.
UPDATE pgtrickle.relay_snapshots SET compared_id = $2, full_refresh = true WHERE id = $1
