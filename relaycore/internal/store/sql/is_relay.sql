EXISTS (SELECT FROM pg_catalog.pg_roles g WHERE pg_has_role(a.usesysid, g.oid, 'MEMBER')
    AND (g.rolname = 'pgtrickle_relay' OR g.oid = (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'pgtrickle')))
