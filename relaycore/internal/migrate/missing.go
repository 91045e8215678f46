package migrate

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/state.sql
	stateSQL string
	//go:embed sql/privileges.sql
	privilegesSQL string
	//go:embed sql/denied.sql
	deniedSQL string
)

const command = "pgtrickle-relay migrate"

// Missing returns what the catalog or the current role lacks for a relay, each with
// the command that cures it. No pipeline runs before it is empty.
func Missing(ctx context.Context, conn pg.Querier) ([]string, error) {
	s, err := load()
	if err != nil {
		return nil, err
	}
	var schema, usage, table, readable, role bool
	var user string
	if err := conn.QueryRow(ctx, stateSQL).Scan(&schema, &usage, &table, &readable, &role, &user); err != nil {
		return nil, fmt.Errorf("look for the relay's catalog: %w", err)
	}
	join := fmt.Sprintf("let the database's owner run: GRANT pgtrickle_relay TO %s", pg.Identifier(user))
	switch {
	case !schema || !table:
		return []string{fmt.Sprintf("the database has no relay catalog: run %q as its owner", command)}, nil
	case !role:
		const missing = "role pgtrickle_relay does not exist: let an administrator run CREATE ROLE pgtrickle_relay NOLOGIN, then run %q again"
		return []string{fmt.Sprintf(missing, command)}, nil
	case !usage || !readable:
		return []string{fmt.Sprintf("role %q may not read the relay's catalog: %s", user, join)}, nil
	}
	var missing []string
	var version int
	if err := conn.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM pgtrickle.relay_migrations`).Scan(&version); err != nil {
		return nil, fmt.Errorf("read the catalog's version: %w", err)
	}
	if version < s.version() {
		missing = append(missing,
			fmt.Sprintf("the relay's catalog is at version %d and this binary needs %d: run %q", version, s.version(), command))
	}
	if version == s.version() {
		ext, err := inspect(ctx, conn)
		if err != nil {
			return nil, err
		}
		gone, err := s.gone(ctx, conn, ext)
		if err != nil {
			return nil, err
		}
		if gone {
			return append(missing, fmt.Sprintf("tables or functions of the relay's catalog were dropped since: run %q", command)), nil
		}
	}
	denied, err := list(ctx, conn, privilegesSQL)
	if err != nil {
		return nil, err
	}
	for _, d := range denied {
		missing = append(missing, fmt.Sprintf("role %q lacks %s: %s", user, d, join))
	}
	return missing, nil
}

// GrantAccess is the cure of everything that Denied returns.
const GrantAccess = "run SELECT pgtrickle.relay_grant_access() as the role that ran migrate, and let the tables' owners run what it returns"

// Denied returns the rights on single outboxes and inboxes that the current role
// lacks. Only the pipelines that use those fail, so it is a warning. The catalog must
// be complete, as [Missing] reports.
func Denied(ctx context.Context, conn pg.Querier) ([]string, error) {
	return list(ctx, conn, deniedSQL)
}

func list(ctx context.Context, conn pg.Querier, sql string) ([]string, error) {
	e, err := inspect(ctx, conn)
	if err != nil {
		return nil, err
	}
	rows, err := conn.Query(ctx, e.rename(sql))
	if err != nil {
		return nil, fmt.Errorf("check privileges: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("check privileges: %w", err)
	}
	return found, nil
}
