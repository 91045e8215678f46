-- Every object of schema pgtrickle without a comment of the relay, and its privileges
-- other than those of the relay's roles.
WITH ours AS (SELECT objoid, classoid FROM pg_description WHERE description LIKE 'pgtrickle-relay:%' AND objsubid = 0),
acl(oid, text) AS (
    SELECT o.oid, string_agg(a.grantor::regrole || ' ' || CASE a.grantee WHEN 0 THEN 'public' ELSE a.grantee::regrole::text END 
        || ' ' || a.privilege_type, ',' ORDER BY 1)
    FROM (SELECT oid, relacl AS acl FROM pg_class UNION ALL SELECT oid, proacl FROM pg_proc) o, aclexplode(o.acl) a
    WHERE a.grantee NOT IN (SELECT oid FROM pg_roles WHERE rolname IN ('pgtrickle_relay', 'pgtrickle_owner')) AND a.grantee <> a.grantor GROUP BY o.oid)
SELECT format('%s %s %s owner=%s options=%s acl=%s comment=%s', c.relkind, c.oid, c.relname, c.relowner::regrole, c.reloptions,
    (SELECT text FROM acl WHERE acl.oid = c.oid), obj_description(c.oid, 'pg_class'))
FROM pg_class c WHERE c.relnamespace = 'pgtrickle'::regnamespace AND c.relname NOT LIKE 'relay\_%'
    AND c.oid NOT IN (SELECT objoid FROM ours WHERE classoid = 'pg_class'::regclass) OR c.oid IN (
    SELECT to_regclass('pgtrickle.' || n) FROM unnest(ARRAY['relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets']) n)
UNION ALL
SELECT format('column %s.%s %s notnull=%s default=%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'pgtrickle'::regnamespace AND (c.relname LIKE 'pgt\_%' OR c.relname LIKE 'outbox\_%'
    OR c.relname IN ('relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets'))
UNION ALL
SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
WHERE connamespace = 'pgtrickle'::regnamespace AND (conrelid::regclass::text LIKE 'pgtrickle.pgt%'
    OR conrelid::regclass::text IN ('pgtrickle.relay_outbox_config', 'pgtrickle.relay_inbox_config', 'pgtrickle.relay_consumer_offsets'))
UNION ALL
SELECT format('trigger %s %s', tgrelid::regclass, pg_get_triggerdef(g.oid)) FROM pg_trigger g JOIN pg_class c ON c.oid = tgrelid
WHERE c.relnamespace = 'pgtrickle'::regnamespace AND NOT tgisinternal
    AND c.oid NOT IN (SELECT objoid FROM ours WHERE classoid = 'pg_class'::regclass)
UNION ALL
SELECT format('function %s owner=%s acl=%s comment=%s %s', p.oid, p.proowner::regrole, (SELECT text FROM acl WHERE acl.oid = p.oid),
    obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid))
FROM pg_proc p WHERE p.pronamespace = 'pgtrickle'::regnamespace AND p.oid NOT IN (SELECT objoid FROM ours WHERE classoid = 'pg_proc'::regclass)
ORDER BY 1
