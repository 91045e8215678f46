-- Everything that schema pg_catalog has, once more in schema public: functions, aggregates,
-- operators, types and relations. A session that names one of them without a schema, and
-- has public first in its search path, counts in public.ran and fails.
CREATE SEQUENCE public.ran;
GRANT USAGE ON SEQUENCE public.ran TO PUBLIC;
CREATE FUNCTION public.twin_ran(pg_catalog.text) RETURNS pg_catalog.bool LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_catalog.nextval('public.ran'); RAISE EXCEPTION 'called public.%', $1; END $$;

CREATE FUNCTION public.make_twins() RETURNS bigint LANGUAGE plpgsql SET search_path = pg_catalog AS $make$
DECLARE
    -- The attacker's own language takes and returns these, among pseudo-types.
    polymorphic constant regtype[] := '{anyelement,anyarray,anynonarray,anyrange,record,void}';
    statement text;
    made bigint := 0;
BEGIN
    FOR statement IN
        WITH f AS (
            SELECT p.proname AS name, p.prokind AS kind, oidvectortypes(p.proargtypes) AS args, p.oid,
                   CASE WHEN p.proretset THEN 'SETOF ' ELSE '' END || format_type(p.prorettype, NULL) AS result,
                   (SELECT string_agg(format_type(u.t, NULL), ', ' ORDER BY u.n) FROM unnest(p.proargtypes) WITH ORDINALITY u(t, n)) AS types,
                   NOT EXISTS (SELECT FROM unnest(p.proargtypes::oid[] || p.prorettype) u(t) JOIN pg_type y ON y.oid = u.t
                               WHERE y.typtype = 'p' AND NOT u.t = ANY (polymorphic)) AS plain
            FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace)
        SELECT format('CREATE FUNCTION public.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM public.twin_ran(%L); END $f$',
                      name, args, result, name) FROM f WHERE kind IN ('f', 'w') AND plain
        UNION ALL -- they take "any" or are variadic, so a twin fits the number of arguments
        SELECT format('CREATE FUNCTION public.%I(%s) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN PERFORM public.twin_ran(%L); END $f$',
                      v.name, array_to_string(array_fill(a.type, ARRAY[n]), ','), v.name)
            FROM unnest('{format,concat,concat_ws,json_build_object,jsonb_build_object,json_build_array,jsonb_build_array,count,num_nonnulls,to_jsonb,to_json,quote_literal}'::text[]) v(name),
                 unnest('{text,name,oid,bigint,integer,jsonb}'::text[]) a(type), generate_series(1, 6) n
        UNION ALL
        SELECT format('CREATE FUNCTION public.twin_%s(bytea, %s) RETURNS bytea LANGUAGE plpgsql AS $f$ BEGIN PERFORM public.twin_ran(%L); END $f$;'
                      'CREATE AGGREGATE public.%I(%2$s) (SFUNC = public.twin_%1$s, STYPE = bytea)', oid, types, name, name)
            FROM f WHERE kind = 'a' AND types <> '' AND plain
        UNION ALL
        SELECT format('CREATE FUNCTION public.twin_%s(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN PERFORM public.twin_ran(%L); END $f$;'
                      'CREATE OPERATOR public.%s (%sRIGHTARG = %s, FUNCTION = public.twin_%1$s)', o.oid,
                      concat_ws(', ', NULLIF(format_type(o.oprleft, NULL), '-'), format_type(o.oprright, NULL)), format_type(o.oprresult, NULL), o.oprname, o.oprname,
                      CASE WHEN o.oprleft <> 0 THEN format('LEFTARG = %s, ', format_type(o.oprleft, NULL)) ELSE '' END, format_type(o.oprright, NULL))
            FROM pg_operator o WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprcode <> 0 AND o.oprright <> 0
        UNION ALL
        SELECT format('CREATE DOMAIN public.%I AS pg_catalog.%1$I CHECK (public.twin_ran(%L))', typname, 'type ' || typname)
            FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype = 'b' AND typelem = 0
        UNION ALL
        SELECT format('CREATE VIEW public.%I AS SELECT public.twin_ran(%L)', relname, relname)
            FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')
    LOOP
        BEGIN
            EXECUTE statement;
            made := made + 1;
        EXCEPTION WHEN duplicate_function OR duplicate_object OR invalid_function_definition OR datatype_mismatch OR wrong_object_type
               OR feature_not_supported OR undefined_function THEN
            NULL; -- PostgreSQL refuses such a twin to an attacker as well
        END;
    END LOOP;
    RETURN made;
END $make$;
