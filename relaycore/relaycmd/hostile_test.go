package relaycmd

import (
	"os"
	"testing"
)

// twins are functions and operators in schema public that fit the relay's calls better
// than PostgreSQL's own. Any role with CREATE on that schema can make them. Each records
// that it ran.
const twins = `
	CREATE TABLE public.ran (what text);
	GRANT INSERT ON public.ran TO PUBLIC;
	CREATE FUNCTION public.pg_relation_filenode(oid) RETURNS oid LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('pg_relation_filenode'); RETURN pg_catalog.pg_relation_filenode($1::regclass); END $$;
	CREATE FUNCTION public.pg_sequence_last_value(oid) RETURNS bigint LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('pg_sequence_last_value'); RETURN pg_catalog.pg_sequence_last_value($1::regclass); END $$;
	CREATE FUNCTION public.pg_advisory_lock(text) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('pg_advisory_lock'); END $$;
	CREATE FUNCTION public.pg_try_advisory_lock(text) RETURNS boolean LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('pg_try_advisory_lock'); RETURN false; END $$;
	CREATE FUNCTION public.to_regclass(varchar) RETURNS regclass LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('to_regclass'); RETURN pg_catalog.to_regclass($1::text); END $$;
	CREATE FUNCTION public.pg_notify(varchar, varchar) RETURNS void LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('pg_notify'); END $$;
	CREATE FUNCTION public.hashtext(varchar) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
		$$ BEGIN INSERT INTO public.ran VALUES ('hashtext'); RETURN 1; END $$;
	CREATE FUNCTION public.eq(text, varchar) RETURNS boolean LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('='); RETURN $1::text OPERATOR(pg_catalog.=) $2::text; END $$;
	CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = varchar, FUNCTION = public.eq);
	CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('now'); RETURN pg_catalog.now(); END $$;
	CREATE FUNCTION public.unnest(text[], text[], text[], text[], text[]) RETURNS SETOF text LANGUAGE plpgsql AS
		$$ BEGIN INSERT INTO public.ran VALUES ('unnest'); END $$;`

// TestHostileTwins: no session of the relay and of its commands calls a function that
// another role has made in schema public. That holds even where the role's search path
// has that schema before pg_catalog.
func TestHostileTwins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(t, twins)
	w.exec(t, `DO $$ BEGIN EXECUTE pg_catalog.format('ALTER DATABASE %I SET search_path = public, pg_catalog', pg_catalog.current_database()); END $$`)
	w.pipeline(t, "p", "")
	w.exec(t, `SELECT pgtrickle.create_inbox('box'), pgtrickle.set_relay_inbox('r', config => $1::jsonb), pgtrickle.enable_relay('r')`,
		`{"source_type":"spool","spool_path":"`+w.spool("in")+`","inbox_table":"box"}`)
	if err := os.WriteFile(w.spool("in"), []byte(`{"a":1}`+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	startRelay(t, w.url)
	w.insert(t, 1, 5)
	eventually(t, "delivery", patience, count(w.spool("p"))(5))
	eventually(t, "arrival in the inbox", patience, func() bool {
		var n int
		_ = w.pool.QueryRow(t.Context(), `SELECT pg_catalog.count(*) FROM pgtrickle.box`).Scan(&n)
		return n == 1
	})
	for _, args := range [][]string{{"check"}, {"status"}, {"preview", "p"}, {"verify", "p"}, {"dlq", "list"}} {
		w.command(t, args...)
	}

	rows, err := w.pool.Query(t.Context(), `SELECT DISTINCT what FROM public.ran ORDER BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var what string
		if err := rows.Scan(&what); err != nil {
			t.Fatal(err)
		}
		t.Errorf("the relay called public.%s", what)
	}
}
