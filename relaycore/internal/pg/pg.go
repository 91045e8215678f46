// Package pg holds what several packages need of pgx: the methods of a database
// handle, the classes of its errors, and quoting.
package pg

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jackc/pgerrcode"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is a connection, a transaction or a pool.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// State returns the SQLSTATE of a server's error, or "" for any other error.
func State(err error) string {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code
	}
	return ""
}

// Is reports whether the server refused a statement with one of the SQLSTATEs,
// which [pgerrcode] names.
func Is(err error, states ...string) bool {
	state := State(err)
	return state != "" && slices.Contains(states, state)
}

// IsMissing reports whether the database lacks a schema, table or function.
func IsMissing(err error) bool {
	return Is(err, pgerrcode.InvalidSchemaName, pgerrcode.UndefinedTable, pgerrcode.UndefinedFunction)
}

// IsDenied reports whether the role lacks a privilege.
func IsDenied(err error) bool { return Is(err, pgerrcode.InsufficientPrivilege) }

// IsUnavailable reports whether the role cannot use an object or a feature: it is
// missing, denied, or not supported by the server.
func IsUnavailable(err error) bool {
	return IsMissing(err) || IsDenied(err) || Is(err, pgerrcode.FeatureNotSupported)
}

// Identifier quotes a name and joins it to the schema before it, if any.
func Identifier(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// Literal quotes a string constant.
func Literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// OutboxRegistry is the relay's catalog of outboxes where pg_trickle 0.46 or later uses the
// name pgt_outbox_config for something else.
const OutboxRegistry = "relay_outbox_registry"
