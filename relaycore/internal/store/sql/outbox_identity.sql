SELECT identity, legacy_to, origin FROM pgtrickle.relay_outbox_identities WHERE outbox = @outbox
