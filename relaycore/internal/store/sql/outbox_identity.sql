SELECT identity, legacy_to, coalesce(name, ''), origin FROM pgtrickle.relay_outbox_identities WHERE outbox = @outbox
