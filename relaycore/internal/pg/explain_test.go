package pg_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

func TestExplain(t *testing.T) {
	for name, tc := range map[string]struct{ code, message, want string }{
		"read only":             {"25006", "cannot execute INSERT in a read-only transaction", "connect to the primary; if it is, set default_transaction_read_only to off"},
		"standby":               {"55000", "recovery is in progress", "target_session_attrs=read-write"},
		"another state":         {"55000", "sequence is not yet defined", ""},
		"pooler, transaction":   {"42P05", `prepared statement "stmtcache_1" already exists`, "a pooler in session mode"},
		"pooler, other session": {"26000", `prepared statement "stmtcache_1" does not exist`, "a pooler in session mode"},
		"catalog":               {"42501", "permission denied for table relay_instances", "GRANT pgtrickle_relay TO the role"},
		"function":              {"42501", "permission denied for function relay_dlq_list", "GRANT pgtrickle_relay TO the role"},
		"schema":                {"42501", "permission denied for schema pgtrickle", "SELECT pgtrickle.relay_grant_access()"},
		"table of a user":       {"42501", "permission denied for table orders", ""},
		"another":               {"42601", "syntax error", ""},
	} {
		t.Run(name, func(t *testing.T) {
			plain := fmt.Errorf("read: %w", &pgconn.PgError{Code: tc.code, Message: tc.message})
			err := pg.Explain(plain)
			if !errors.Is(err, plain) || !strings.Contains(err.Error(), tc.want) || (tc.want == "") != (err.Error() == plain.Error()) {
				t.Errorf("Explain = %v, want the cure %q", err, tc.want)
			}
		})
	}
	if pg.Explain(nil) != nil {
		t.Error("Explain(nil) is an error")
	}
}

// The simple protocol, which some poolers need, works whatever the role's settings are.
func TestSettingsOfARole(t *testing.T) {
	pool := pgtest.Pool(t)
	var database string
	if err := pool.QueryRow(t.Context(), `SELECT current_database()`).Scan(&database); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `ALTER DATABASE `+pg.Identifier(database)+` SET standard_conforming_strings = off`); err != nil {
		t.Fatal(err)
	}
	config, err := pg.PoolConfig(pool.Config().ConnString(), "test", 2)
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.Database, config.ConnConfig.DefaultQueryExecMode = database, pgx.QueryExecModeSimpleProtocol
	conn, err := pgx.ConnectConfig(t.Context(), config.ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var got string
	if err := conn.QueryRow(t.Context(), `SELECT $1::text`, `a\'b`).Scan(&got); err != nil || got != `a\'b` {
		t.Errorf("a parameter came back as %q, %v", got, err)
	}
}
