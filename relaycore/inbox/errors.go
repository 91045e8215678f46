package inbox

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var errClosed = errors.New("the sink is closed")

// SQLSTATEs that differ from others of their class.
const (
	checkViolation        = "23514"
	invalidStatementName  = "26000"
	duplicatePreparedStmt = "42P05"
)

// classify marks err with the class of its SQLSTATE; see the package comment.
func classify(err error) error {
	var pg *pgconn.PgError
	if err == nil || relay.IsFatal(err) || !errors.As(err, &pg) || len(pg.Code) != 5 || statementLost(err) {
		return err
	}
	switch pg.Code[:2] {
	case "23":
		// A row for which there is no partition has the code of a violated check,
		// but no constraint. No message is to blame for it.
		if pg.Code == checkViolation && pg.ConstraintName == "" && pg.DataTypeName == "" {
			return relay.Fatal(err)
		}
		return relay.Permanent(err)
	case "22", "44", "54", "P0":
		return relay.Permanent(err)
	case "0A", "28", "3D", "3F", "42":
		return relay.Fatal(err)
	}
	return err
}

// isConflict reports whether err is about a row that violates a constraint, by which
// a row that is there already shows.
func isConflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && strings.HasPrefix(pg.Code, "23")
}

// statementLost reports whether the server does not know a prepared statement
// that pgx has prepared, or the reverse: a pooler stands between.
func statementLost(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == invalidStatementName || pg.Code == duplicatePreparedStmt)
}
