-- Gives outboxes other identities, unless a relay runs. It returns a row for each.
UPDATE pgtrickle.relay_outbox_identities o SET identity = n.identity, made_at = now()
FROM unnest(@outboxes::oid[], @identities::text[]) AS n(outbox, identity)
WHERE o.outbox = n.outbox
    AND NOT EXISTS (SELECT FROM pgtrickle.relay_instances i WHERE EXISTS (:holder))
