-- Drops the states of pipelines that do not exist.
WITH orphans AS MATERIALIZED (
	SELECT s.id FROM pgtrickle.relay_snapshots s
	WHERE NOT EXISTS (SELECT FROM pgtrickle.list_relay_configs() p WHERE p.direction = 'forward' AND p.name = s.pipeline)
), changes AS (DELETE FROM pgtrickle.relay_snapshot_changes USING orphans WHERE snapshot_id = orphans.id),
rows AS (DELETE FROM pgtrickle.relay_snapshot_rows USING orphans WHERE snapshot_id = orphans.id)
DELETE FROM pgtrickle.relay_snapshots s USING orphans WHERE s.id = orphans.id
