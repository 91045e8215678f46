DO $keys$
DECLARE
    list constant jsonb := %s;
    unknown_only constant boolean := %t;
BEGIN
    DELETE FROM pgtrickle.relay_backend_keys k
        WHERE NOT unknown_only AND k.backend IN (SELECT e ->> 'backend' FROM jsonb_array_elements(list) e);
    INSERT INTO pgtrickle.relay_backend_keys
        (backend, direction, key, type, required, aliases, enum, doc, unit, minimum, default_value, position)
    SELECT r.backend, r.direction, r.key, r.type, r.required, r.aliases, r.enum, r.doc, r.unit, r.minimum, r.default_value, r.position
        FROM jsonb_to_recordset(list) AS r(backend text, direction text, key text, type text, required boolean, aliases text[],
            enum text[], doc text, unit text, minimum bigint, default_value jsonb, position integer)
        WHERE NOT EXISTS (SELECT FROM pgtrickle.relay_backend_keys k WHERE k.backend = r.backend);
END $keys$;
