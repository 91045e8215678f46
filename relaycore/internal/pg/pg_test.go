package pg_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

func TestClassesOfErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err                          error
		missing, denied, unavailable bool
	}{
		"none":                {err: nil},
		"no server's error":   {err: errors.New("EOF")},
		"another one":         {err: &pgconn.PgError{Code: pgerrcode.UniqueViolation}},
		"error without state": {err: &pgconn.PgError{}},
		"no table":            {err: &pgconn.PgError{Code: "42P01"}, missing: true, unavailable: true},
		"no schema":           {err: &pgconn.PgError{Code: "3F000"}, missing: true, unavailable: true},
		"no function":         {err: &pgconn.PgError{Code: "42883"}, missing: true, unavailable: true},
		"no privilege":        {err: &pgconn.PgError{Code: "42501"}, denied: true, unavailable: true},
		"not on a standby":    {err: &pgconn.PgError{Code: "0A000"}, unavailable: true},
		"wrapped":             {err: fmt.Errorf("load: %w", &pgconn.PgError{Code: "42501"}), denied: true, unavailable: true},
	} {
		if pg.IsMissing(tc.err) != tc.missing || pg.IsDenied(tc.err) != tc.denied || pg.IsUnavailable(tc.err) != tc.unavailable {
			t.Errorf("%s: missing %v, denied %v, unavailable %v; want %v, %v, %v", name,
				pg.IsMissing(tc.err), pg.IsDenied(tc.err), pg.IsUnavailable(tc.err), tc.missing, tc.denied, tc.unavailable)
		}
	}
}

func TestQuoting(t *testing.T) {
	t.Parallel()
	if got, want := pg.Identifier("a", `b"c`), `"a"."b""c"`; got != want {
		t.Errorf("Identifier = %s, want %s", got, want)
	}
	if got, want := pg.Literal("it's"), `'it''s'`; got != want {
		t.Errorf("Literal = %s, want %s", got, want)
	}
}
