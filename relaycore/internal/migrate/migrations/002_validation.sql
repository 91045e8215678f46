-- What is wrong with a configuration, in the words and by the rules of package
-- relaycfg and of the catalog's normaliser. The keys are those of the backends'
-- Go structs, which migrate puts into relay_backend_keys.

-- +function pgtrickle._relay_distance(text, text): insertions, deletions, substitutions and swaps of neighbours between two words
CREATE OR REPLACE FUNCTION pgtrickle._relay_distance(a text, b text) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $fn$
DECLARE
    before integer[];
    prev   integer[] := ARRAY(SELECT generate_series(0, length(b)));
    cur    integer[];
    d      integer;
BEGIN
    FOR i IN 1..length(a) LOOP
        cur := ARRAY[i];
        FOR j IN 1..length(b) LOOP
            d := least(cur[j] + 1, prev[j + 1] + 1,
                       prev[j] + CASE WHEN substr(a, i, 1) = substr(b, j, 1) THEN 0 ELSE 1 END);
            IF i > 1 AND j > 1 AND substr(a, i, 1) = substr(b, j - 1, 1) AND substr(a, i - 1, 1) = substr(b, j, 1) THEN
                d := least(d, before[j - 1] + 1);
            END IF;
            cur[j + 1] := d;
        END LOOP;
        before := prev;
        prev := cur;
    END LOOP;
    RETURN prev[length(b) + 1];
END $fn$;
-- +end

-- +function pgtrickle._relay_nearest(text, text[]): the candidate most like a word, null when none is like it
CREATE OR REPLACE FUNCTION pgtrickle._relay_nearest(word text, candidates text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT c FROM (
        SELECT c, n, pgtrickle._relay_distance(left(word, 100), c) AS d, greatest(2, length(word) / 3) AS far
        FROM unnest(candidates) WITH ORDINALITY AS u(c, n)
        WHERE abs(length(c) - length(word)) <= greatest(2, length(word) / 3)
    ) near WHERE d <= far ORDER BY d, n LIMIT 1
$fn$;
-- +end

-- +function pgtrickle._relay_kind(jsonb): a JSON value in words, for errors
CREATE OR REPLACE FUNCTION pgtrickle._relay_kind(v jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT CASE jsonb_typeof(v)
        WHEN 'object' THEN 'an object'
        WHEN 'array' THEN 'a list'
        WHEN 'string' THEN 'the string ' || v::text
        ELSE 'the ' || jsonb_typeof(v) || ' ' || v::text
    END
$fn$;
-- +end

-- +function pgtrickle._relay_template_problem(text): what is wrong with a template, null when nothing is
CREATE OR REPLACE FUNCTION pgtrickle._relay_template_problem(template text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    variables constant text[] := ARRAY['stream_table', 'op', 'outbox_id', 'refresh_id'];
    rest text := regexp_replace(template, '\$\{(env|ENV|file):[^}]*\}', '', 'g');
    open integer;
    name text;
    near text;
BEGIN
    LOOP
        open := strpos(rest, '{');
        EXIT WHEN open = 0;
        IF substr(rest, open, 2) = '{{' THEN
            rest := substr(rest, open + 2);
            CONTINUE;
        END IF;
        rest := substr(rest, open);
        IF strpos(rest, '}') = 0 THEN
            RETURN format('template "%s": no closing brace for "%s"', template, rest);
        END IF;
        name := substr(rest, 2, strpos(rest, '}') - 2);
        IF NOT name = ANY (variables) AND name !~ '^row\..' THEN
            near := pgtrickle._relay_nearest(name, variables);
            RETURN format('template "%s": unknown variable {%s}; ', template, name)
                || CASE WHEN near IS NULL THEN 'there are {stream_table}, {op}, {outbox_id}, {refresh_id} and {row.FIELD}'
                        ELSE format('did you mean {%s}?', near) END;
        END IF;
        rest := substr(rest, strpos(rest, '}') + 1);
    END LOOP;
    RETURN NULL;
END $fn$;
-- +end

-- +function pgtrickle._relay_value_problem(pgtrickle.relay_backend_keys, text, jsonb): what is wrong with the value of a key, null when nothing is
CREATE OR REPLACE FUNCTION pgtrickle._relay_value_problem(k pgtrickle.relay_backend_keys, spelled text, v jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    kind   text := jsonb_typeof(v);
    s      text := CASE WHEN jsonb_typeof(v) = 'string' THEN v #>> '{}' END;
    wants  text := format('wants %s, not %s', k.type, pgtrickle._relay_kind(v));
    near   text;
    member record;
    has_unit constant boolean := coalesce(k.unit, '') <> '' OR spelled ~ '_(ms|seconds)$';
BEGIN
    -- What a reference stands for is known in the relay's process only.
    IF kind = 'null' OR s ~ '\$\{(env|ENV|file):' THEN
        RETURN NULL;
    END IF;
    CASE k.type
    WHEN 'integer', 'number' THEN
        IF kind <> 'number' OR (k.type = 'integer' AND (v #>> '{}')::numeric % 1 <> 0) THEN
            RETURN wants;
        END IF;
    WHEN 'boolean' THEN
        IF kind <> 'boolean' THEN
            RETURN wants;
        END IF;
    WHEN 'duration' THEN
        -- A number has its unit from its key; without one not even 0 is a duration.
        IF kind = 'number' AND NOT has_unit THEN
            RETURN format('wants a duration with a unit, such as "%ss", not the number %s', v, v);
        ELSIF kind = 'number' AND (v #>> '{}')::numeric < 0 THEN
            RETURN format('is %s; must not be negative', v);
        ELSIF kind <> 'number' AND NOT coalesce(
            -- Both signs for micro are written as bytes, which no database encoding changes.
            encode(convert_to(s, 'UTF8'), 'escape') ~ '^([+-]0|\+?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|\\302\\265s|\\316\\274s|ms|s|m|h))+)$'
            OR (has_unit AND s ~ '^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$'), false) THEN
            RETURN format('wants a duration such as "250ms" or "30s", not %s', pgtrickle._relay_kind(v));
        END IF;
    WHEN 'size' THEN
        IF (kind = 'number' AND (v #>> '{}')::numeric < 0)
           OR (kind <> 'number' AND coalesce(s !~* '^[0-9]+(\.[0-9]+)? *([kmg]i?b|b)?$', true)) THEN
            RETURN format('wants a size such as 65536 or "64MiB", not %s', pgtrickle._relay_kind(v));
        END IF;
    WHEN 'list' THEN
        IF jsonb_typeof(k.default_value -> 0) = 'number' THEN
            IF kind NOT IN ('number', 'array') OR jsonb_path_exists(v, '$[*] ? (@.type() != "number")') THEN
                RETURN wants;
            END IF;
        ELSIF kind NOT IN ('string', 'array') OR jsonb_path_exists(v, '$[*] ? (@.type() != "string")') THEN
            RETURN wants;
        END IF;
    WHEN 'object' THEN
        IF kind <> 'object' THEN
            RETURN wants;
        END IF;
        FOR member IN SELECT key, value FROM jsonb_each(v) LOOP
            IF jsonb_typeof(member.value) <> 'string' THEN
                RETURN format('wants strings as values, but %s has %s', member.key, pgtrickle._relay_kind(member.value));
            ELSIF k.backend = '*' AND pgtrickle._relay_template_problem(member.value #>> '{}') IS NOT NULL THEN
                RETURN format('%s: %s', member.key, pgtrickle._relay_template_problem(member.value #>> '{}'));
            END IF;
        END LOOP;
    WHEN 'settings' THEN -- the relay knows the keys inside
        IF kind <> 'object' THEN
            RETURN format('wants an object, not %s', pgtrickle._relay_kind(v));
        END IF;
    WHEN 'secret' THEN
        -- The value stays out of the error.
        IF kind NOT IN ('string', 'array') OR jsonb_path_exists(v, '$[*] ? (@.type() != "string")') THEN
            RETURN 'wants a string';
        END IF;
    ELSE
        IF kind <> 'string' THEN
            RETURN wants;
        ELSIF k.type = 'template' AND pgtrickle._relay_template_problem(s) IS NOT NULL THEN
            RETURN pgtrickle._relay_template_problem(s);
        END IF;
    END CASE;
    IF k.key IN ('url', 'queue_url') AND k.backend IN ('redis', 'rabbitmq', 'webhook', 'sqs')
       AND jsonb_path_exists(v, '$[*] ? (@ != "" && !(@ like_regex "://") && !(@ like_regex "[$][{](env|ENV|file):"))') THEN
        RETURN 'has no scheme; ' || k.doc; -- the value may hold a password
    END IF;
    IF k.type = 'duration' THEN -- its minimum is in nanoseconds; only what no unit makes right is refused here
        IF k.minimum > 0 AND kind = 'number' AND (v #>> '{}')::numeric <= 0 THEN
            RETURN format('is %s; must be greater than 0', v);
        END IF;
    ELSIF k.minimum IS NOT NULL AND kind = 'number' AND (v #>> '{}')::numeric < k.minimum THEN
        RETURN format('is %s; must be at least %s', v, k.minimum);
    END IF;
    IF cardinality(k.enum) > 0 AND s IS NOT NULL AND NOT s = ANY (k.enum) THEN
        near := CASE WHEN length(s) > 1 THEN pgtrickle._relay_nearest(s, k.enum) END; -- short words are like any other
        RETURN format('unknown value "%s"; ', s)
            || CASE WHEN near IS NULL THEN 'must be one of ' || array_to_string(k.enum, ', ')
                    ELSE format('did you mean "%s"?', near) END;
    END IF;
    RETURN NULL;
END $fn$;
-- +end

-- +function pgtrickle._relay_find_key(text, text, text): the key that a configuration spells so, by its name, an alias, or either with a unit
CREATE OR REPLACE FUNCTION pgtrickle._relay_find_key(p_backend text, p_direction text, p_spelled text)
RETURNS SETOF pgtrickle.relay_backend_keys
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT k.* FROM pgtrickle.relay_backend_keys k
    WHERE k.backend = p_backend AND k.direction = p_direction AND k.type <> 'backend'
      AND (p_spelled = k.key OR p_spelled = ANY (k.aliases)
           OR (k.type = 'duration' AND p_spelled ~ '_(ms|seconds)$'
               AND regexp_replace(p_spelled, '_(ms|seconds)$', '') = ANY (k.aliases || k.key)))
    ORDER BY (p_spelled = k.key) DESC, k.position LIMIT 1
$fn$;
-- +end

-- +function pgtrickle._relay_key_names(text, text, text): names and aliases of a backend's keys, each behind a prefix
CREATE OR REPLACE FUNCTION pgtrickle._relay_key_names(p_backend text, p_direction text, p_prefix text) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT coalesce(array_agg(p_prefix || n ORDER BY k.position, u.i), '{}')
    FROM pgtrickle.relay_backend_keys k, unnest(k.key || k.aliases) WITH ORDINALITY AS u(n, i)
    WHERE k.backend = p_backend AND k.direction = p_direction AND k.type <> 'backend'
$fn$;
-- +end

-- +function pgtrickle._relay_prefixed(text, text[]): the candidate that differs from a key by the prefix of a backend alone, null when there is none
CREATE OR REPLACE FUNCTION pgtrickle._relay_prefixed(p_path text, p_candidates text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $fn$
    SELECT c FROM (
        SELECT c, n, regexp_replace(c, '^.*[.]', '') AS theirs, regexp_replace(p_path, '^.*[.]', '') AS ours
        FROM unnest(p_candidates) WITH ORDINALITY AS u(c, n)
    ) named WHERE right(theirs, length(ours) + 1) = '_' || ours OR right(ours, length(theirs) + 1) = '_' || theirs
    ORDER BY abs(length(theirs) - length(ours)), n LIMIT 1
$fn$;
-- +end

-- +function pgtrickle._relay_unknown(text, text[]): the problem of a key that does not exist
CREATE OR REPLACE FUNCTION pgtrickle._relay_unknown(p_path text, p_candidates text[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
    SELECT format('key "%s": unknown key; ', p_path)
        || coalesce('did you mean "' || coalesce(pgtrickle._relay_prefixed(p_path, p_candidates), pgtrickle._relay_nearest(p_path, p_candidates)) || '"?',
                    'valid keys are ' || array_to_string(ARRAY(SELECT unnest(p_candidates) ORDER BY 1), ', '))
$fn$;
-- +end

-- +function pgtrickle._relay_config_problems(text, jsonb): everything that is wrong with a configuration
CREATE OR REPLACE FUNCTION pgtrickle._relay_config_problems(p_direction text, p_config jsonb) RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    far       constant text := CASE p_direction WHEN 'forward' THEN 'sink' ELSE 'source' END;
    near      constant text := CASE p_direction WHEN 'forward' THEN 'source' ELSE 'sink' END;
    near_type constant text[] := CASE p_direction WHEN 'forward' THEN ARRAY['outbox'] ELSE ARRAY['pg-inbox', 'pg_inbox', 'inbox'] END;
    problems  text[] := '{}';
    spelled   text;                        -- the backend as the configuration says it
    own       text;                        -- its own name
    prefix    text;
    type_path text;
    item      record;
    k         pgtrickle.relay_backend_keys;
    rest      text;
    other     text;
    seen      jsonb := '{}';               -- "backend key" -> path
    problem   text;
    nested    boolean;
    candidate text;
BEGIN
    IF p_config IS NULL OR jsonb_typeof(p_config) <> 'object' THEN
        RETURN ARRAY['config is not a JSON object'];
    END IF;
    FOREACH candidate IN ARRAY ARRAY[far, near] LOOP
        IF jsonb_typeof(p_config -> candidate) NOT IN ('object', 'null') THEN
            problems := problems || format('key "%s": wants an object, not %s', candidate, pgtrickle._relay_kind(p_config -> candidate));
        END IF;
        FOREACH type_path IN ARRAY ARRAY[candidate || '_type', candidate || '.type'] LOOP
            IF jsonb_typeof(p_config #> string_to_array(type_path, '.')) NOT IN ('string', 'null') THEN
                problems := problems || format('key "%s": wants string, not %s', type_path,
                                               pgtrickle._relay_kind(p_config #> string_to_array(type_path, '.')));
            END IF;
        END LOOP;
    END LOOP;
    IF problems <> '{}' THEN
        RETURN problems;
    END IF;

    -- The near end is ours; the far end is a backend.
    spelled := coalesce(nullif(p_config ->> (near || '_type'), ''), nullif(p_config -> near ->> 'type', ''));
    IF NOT spelled = ANY (near_type) THEN
        problems := problems || format('key "%s": is "%s"; leave it out, or say "%s"',
            CASE WHEN p_config ? (near || '_type') THEN near || '_type' ELSE near || '.type' END, spelled, near_type[1]);
    END IF;
    nested := coalesce(jsonb_typeof(p_config -> far) = 'object', false);
    spelled := coalesce(nullif(p_config ->> (far || '_type'), ''), nullif(p_config -> far ->> 'type', ''));
    type_path := CASE WHEN p_config ->> (far || '_type') <> '' OR NOT nested THEN far || '_type' ELSE far || '.type' END;
    IF spelled IS NULL THEN
        RETURN problems || format('key "%s": is required; there are %s', type_path,
            (SELECT string_agg(t.backend, ', ' ORDER BY t.backend) FROM pgtrickle.relay_backend_keys t WHERE t.direction = p_direction AND t.type = 'backend'));
    END IF;
    IF nullif(p_config -> far ->> 'type', '') <> spelled THEN
        problems := problems || format('key "%s": is "%s", but %s.type is "%s"', type_path, spelled, far, p_config -> far ->> 'type');
    END IF;
    SELECT t.backend INTO own FROM pgtrickle.relay_backend_keys t
        WHERE t.direction = p_direction AND t.type = 'backend' AND (t.backend = spelled OR spelled = ANY (t.aliases));
    IF own IS NULL THEN
        IF EXISTS (SELECT FROM pgtrickle.relay_backend_keys t WHERE t.type = 'backend' AND (t.backend = spelled OR spelled = ANY (t.aliases))) THEN
            RETURN problems || format('key "%s": backend "%s" has no %s', type_path, spelled, far);
        END IF;
        candidate := pgtrickle._relay_nearest(spelled, ARRAY(
            SELECT unnest(t.backend || t.aliases) FROM pgtrickle.relay_backend_keys t WHERE t.direction = p_direction AND t.type = 'backend'));
        RETURN problems || (format('key "%s": unknown backend "%s"; ', type_path, spelled)
            || coalesce('did you mean "' || candidate || '"?', 'there are ' || (
                SELECT string_agg(t.backend, ', ' ORDER BY t.backend) FROM pgtrickle.relay_backend_keys t
                WHERE t.direction = p_direction AND t.type = 'backend')));
    END IF;
    prefix := replace(own, '-', '_') || '_';

    FOR item IN
        SELECT 'top' AS at, e.key AS name, e.key AS path, e.value FROM jsonb_each(p_config) e
            WHERE e.key NOT IN ('sink', 'source', 'sink_type', 'source_type')
        UNION ALL SELECT 'far', e.key, far || '.' || e.key, e.value
            FROM jsonb_each(CASE WHEN nested THEN p_config -> far ELSE '{}' END) e WHERE e.key <> 'type'
        UNION ALL SELECT 'near', e.key, near || '.' || e.key, e.value
            FROM jsonb_each(CASE WHEN jsonb_typeof(p_config -> near) = 'object' THEN p_config -> near ELSE '{}' END) e WHERE e.key <> 'type'
        ORDER BY 3
    LOOP
        k := NULL;
        other := NULL;
        problem := NULL;
        IF item.at = 'far' THEN            -- the backend's keys go before the common ones
            SELECT f.* INTO k FROM pgtrickle._relay_find_key(own, p_direction, item.name) f;
        END IF;
        IF k.key IS NULL THEN
            SELECT f.* INTO k FROM pgtrickle._relay_find_key('*', p_direction, item.name) f;
        END IF;
        IF k.key IS NULL AND item.at = 'top' THEN
            FOREACH candidate IN ARRAY ARRAY[prefix, replace(spelled, '-', '_') || '_'] || ARRAY(
                SELECT replace(a, '-', '_') || '_' FROM pgtrickle.relay_backend_keys t, unnest(t.aliases) a
                WHERE t.backend = own AND t.direction = p_direction AND t.type = 'backend')
            LOOP
                rest := CASE WHEN starts_with(item.name, candidate) THEN substr(item.name, length(candidate) + 1) END;
                IF rest <> '' THEN
                    SELECT f.* INTO k FROM pgtrickle._relay_find_key(own, p_direction, rest) f;
                    EXIT;
                END IF;
            END LOOP;
            IF k.key IS NULL THEN          -- such as inbox_table of a pg-inbox sink
                SELECT t.* INTO k FROM pgtrickle.relay_backend_keys t
                    WHERE t.backend = own AND t.direction = p_direction AND t.type <> 'backend' AND item.name = ANY (t.aliases);
            END IF;
            IF k.key IS NULL THEN
                SELECT t.backend INTO other FROM pgtrickle.relay_backend_keys t
                    WHERE t.direction = p_direction AND t.type = 'backend' AND t.backend <> own
                      AND starts_with(item.name, replace(t.backend, '-', '_') || '_');
            END IF;
        END IF;

        IF other IS NOT NULL THEN
            problem := format('key "%s": belongs to backend "%s", but %s_type is "%s"', item.path, other, far, spelled);
        ELSIF k.key IS NULL THEN
            problem := pgtrickle._relay_unknown(item.path, CASE item.at
                WHEN 'top' THEN pgtrickle._relay_key_names('*', p_direction, '') || pgtrickle._relay_key_names(own, p_direction, prefix)
                                || ARRAY[far, far || '_type']
                WHEN 'far' THEN pgtrickle._relay_key_names(own, p_direction, far || '.') || pgtrickle._relay_key_names('*', p_direction, far || '.')
                ELSE pgtrickle._relay_key_names('*', p_direction, near || '.') END);
        ELSIF jsonb_typeof(item.value) = 'null' THEN
            CONTINUE;
        ELSIF seen ? (k.backend || ' ' || k.key) THEN
            problem := format('key "%s": means the same as "%s"; keep one', item.path, seen ->> (k.backend || ' ' || k.key));
        ELSE
            seen := seen || jsonb_build_object(k.backend || ' ' || k.key, item.path);
            problem := format('key "%s": ', item.path) || coalesce(
                pgtrickle._relay_value_problem(k, item.name, item.value),
                CASE WHEN k.required AND item.value IN ('""', '[]') THEN 'is required: ' || k.doc END);
        END IF;
        problems := problems || problem;
    END LOOP;

    FOR k IN SELECT t.* FROM pgtrickle.relay_backend_keys t
        WHERE t.direction = p_direction AND t.backend IN ('*', own) AND t.required ORDER BY t.backend, t.position
    LOOP
        IF NOT seen ? (k.backend || ' ' || k.key) THEN
            problems := problems || format('key "%s": is required: %s', CASE
                WHEN k.backend = '*' THEN k.key
                WHEN nested THEN far || '.' || k.key
                ELSE prefix || k.key END, k.doc);
        END IF;
    END LOOP;
    IF spelled = 'file' AND NOT seen ? (own || ' path') THEN
        problems := problems || format('key "%s": is required when %s_type is "file"', CASE WHEN nested THEN far || '.' ELSE prefix END || 'path', far);
    END IF;
    RETURN array_remove(problems, NULL);
END $fn$;
-- +end

-- +function pgtrickle._relay_check_config(text, text, jsonb): refuses a pipeline whose configuration is wrong
CREATE OR REPLACE FUNCTION pgtrickle._relay_check_config(p_direction text, p_name text, p_config jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pgtrickle, pg_catalog, pg_temp AS $fn$
DECLARE
    problems text[];
BEGIN
    IF coalesce(p_name, '') = '' THEN
        RAISE EXCEPTION 'relay.invalid_config: pipeline name must not be empty';
    END IF;
    IF octet_length(p_config::text) > 262144 THEN
        RAISE EXCEPTION 'relay.invalid_config: the configuration is larger than 256 KiB; refer to files with ${file:...}';
    END IF;
    problems := pgtrickle._relay_config_problems(p_direction, p_config);
    IF problems <> '{}' THEN
        RAISE EXCEPTION 'relay.invalid_config: %', array_to_string(problems, '; ')
            USING HINT = 'SELECT key, type, required, doc FROM pgtrickle.relay_backend_keys lists what each backend accepts.';
    END IF;
END $fn$;
-- +end
