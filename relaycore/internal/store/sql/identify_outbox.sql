-- Gives an outbox an identity: its first, or another in place of @instead. Of two readers
-- the first one's stays. As long as an instance runs that does not know identities, there
-- is none. An outbox that such an instance has read keeps the old form of ids up to
-- @highest.
INSERT INTO pgtrickle.relay_outbox_identities AS o (outbox, name, identity, origin, legacy_to)
SELECT @outbox, @name, @identity, @origin::jsonb,
    CASE WHEN @instead = '' AND EXISTS (
        SELECT FROM pgtrickle.relay_cursors c
        WHERE c.direction = 'forward' AND (c.checkpoint -> 'of' ->> 'table')::bigint = @outbox::oid::bigint)
    THEN @highest ELSE -9223372036854775808 END
WHERE NOT EXISTS (SELECT FROM pgtrickle.relay_instances i WHERE i.id_form = 0 AND EXISTS (:holder))
ON CONFLICT (outbox) DO UPDATE
    SET name = excluded.name, identity = excluded.identity, origin = excluded.origin, legacy_to = excluded.legacy_to, made_at = now()
    WHERE o.identity = @instead
