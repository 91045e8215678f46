package migrate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

const command = "pgtrickle-relay migrate"

// stateSQL reads catalogs that every role may read, because a role without rights on
// the schema may not name its objects.
const stateSQL = `
SELECT n.oid IS NOT NULL,
       coalesce(has_schema_privilege(n.oid, 'USAGE'), false),
       c.oid IS NOT NULL,
       coalesce(has_table_privilege(c.oid, 'SELECT'), false),
       EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgtrickle_relay'),
       current_user::text
FROM (VALUES (1)) one
LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'pgtrickle'
LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = 'relay_migrations'`

// privilegesSQL lists the privileges that a relay needs and the current role lacks.
const privilegesSQL = `
SELECT p.privilege || ' ON pgtrickle.' || quote_ident(c.relname)
FROM (VALUES
    ('relay_cursors', 'SELECT'), ('relay_cursors', 'INSERT'), ('relay_cursors', 'UPDATE'), ('relay_cursors', 'DELETE'),
    ('relay_dead_letters', 'SELECT'), ('relay_dead_letters', 'INSERT'), ('relay_dead_letters', 'UPDATE'), ('relay_dead_letters', 'DELETE'),
    ('relay_instances', 'SELECT'), ('relay_instances', 'INSERT'), ('relay_instances', 'UPDATE'), ('relay_instances', 'DELETE'),
    ('relay_consumer_offsets', 'SELECT'), ('relay_consumer_offsets', 'INSERT'), ('relay_consumer_offsets', 'UPDATE'),
    ('pgt_outbox_config', 'SELECT'), ('pgt_inbox_config', 'SELECT')) p(name, privilege)
JOIN pg_catalog.pg_class c ON c.relname = p.name AND c.relnamespace = 'pgtrickle'::regnamespace
WHERE NOT has_table_privilege(c.oid, p.privilege)
UNION ALL
SELECT 'EXECUTE ON FUNCTION ' || f.oid::regprocedure FROM pg_catalog.pg_proc f
WHERE f.pronamespace = 'pgtrickle'::regnamespace AND f.proname = 'list_relay_configs' AND NOT has_function_privilege(f.oid, 'EXECUTE')`

// deniedSQL lists the outboxes and inboxes that the current role may not use.
const deniedSQL = `
SELECT 'SELECT ON pgtrickle.' || quote_ident(c.relname) FROM pgtrickle.pgt_outbox_config o
JOIN pg_catalog.pg_class c ON c.relname = o.outbox_table_name AND c.relnamespace = 'pgtrickle'::regnamespace
WHERE NOT has_table_privilege(c.oid, 'SELECT')
UNION ALL
SELECT 'INSERT ON ' || quote_ident(n.nspname) || '.' || quote_ident(c.relname) FROM pgtrickle.pgt_inbox_config i
JOIN pg_catalog.pg_namespace n ON n.nspname = i.inbox_schema
JOIN pg_catalog.pg_class c ON c.relname = i.inbox_name AND c.relnamespace = n.oid
WHERE NOT has_table_privilege(c.oid, 'INSERT')`

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
		return []string{fmt.Sprintf("role pgtrickle_relay does not exist: let an administrator run CREATE ROLE pgtrickle_relay NOLOGIN, then run %q again", command)}, nil
	case !usage || !readable:
		return []string{fmt.Sprintf("role %q may not read the relay's catalog: %s", user, join)}, nil
	}
	var missing []string
	var version int
	if err := conn.QueryRow(ctx, `SELECT coalesce(max(version), 0) FROM pgtrickle.relay_migrations`).Scan(&version); err != nil {
		return nil, fmt.Errorf("read the catalog's version: %w", err)
	}
	if version < s.version() {
		missing = append(missing, fmt.Sprintf("the relay's catalog is at version %d and this binary needs %d: run %q", version, s.version(), command))
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
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, fmt.Errorf("check privileges: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("check privileges: %w", err)
	}
	return found, nil
}
