-- Gives identities of other databases to the tables that have the outboxes' names here.
-- Without a name, which an older relay does not write, an identity stays where it is. All
-- go before the first comes back, because one may have the oid that another gets.
WITH foreign_ones AS (
    DELETE FROM pgtrickle.relay_outbox_identities
    WHERE (origin ->> 'db')::bigint <> @database OR (@system <> '' AND origin ->> 'system' <> @system)
    RETURNING *
)
INSERT INTO pgtrickle.relay_outbox_identities (outbox, name, identity, origin, legacy_to, made_at)
SELECT n.outbox, f.name, f.identity, f.origin, f.legacy_to, f.made_at
FROM foreign_ones f, LATERAL (SELECT CASE WHEN f.name IS NULL THEN f.outbox ELSE to_regclass(f.name)::oid END AS outbox) n
WHERE n.outbox IS NOT NULL
ORDER BY f.made_at
ON CONFLICT DO NOTHING
