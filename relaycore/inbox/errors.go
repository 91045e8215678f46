package inbox

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// What the SQLSTATE alone does not show.
const (
	noPartition   = "23514 no partition"     // the code of a violated check, without a constraint
	ofPolicy      = "42501 " + policyRoutine // the code of a missing privilege
	policyRoutine = "ExecWithCheckOptions"   // the server's function, in every language of its messages
)

const (
	checkViolation        = "23514"
	insufficientPrivilege = "42501"
	invalidStatementName  = "26000"
	duplicatePreparedStmt = "42P05"
)

// Refusals are the SQLSTATEs of an insert. The table is always that of the configuration.
var Refusals = relay.Refusals{
	{Kind: relay.KindTooLarge, Blame: relay.BlameMessage, Answer: "54*", Note: "a row or index entry beyond PostgreSQL's limits"},
	{Kind: relay.KindWrongType, Blame: relay.BlamePipeline, Answer: noPartition, Note: "no partition for the row"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "22*", Note: "data that the column's type does not allow"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "23*|44*", Note: "not null, check, unique, foreign key, view"},
	{Kind: relay.KindInvalid, Blame: relay.BlameMessage, Answer: "P0*", Note: "a trigger's exception"},
	{Kind: relay.KindBadName, Note: "the table is that of the configuration"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: invalidStatementName + "|" + duplicatePreparedStmt, Note: "a pooler"},
	{Kind: relay.KindDenied, Blame: relay.BlameMessage, Answer: ofPolicy, Note: "a policy of row-level security"},
	{Kind: relay.KindDenied, Blame: relay.BlamePipeline, Answer: insufficientPrivilege, Note: "a privilege on table or column"},
	{Kind: relay.KindMissing, Blame: relay.BlamePipeline, Answer: "3D*|3F*|42P01|42703", Note: "database, schema, table, column"},
	{Kind: relay.KindFull, Blame: relay.BlameNothing, Answer: "53*", Note: "disk, memory, connections"},
	{Kind: relay.KindUnavailable, Blame: relay.BlameNothing, Answer: "08*|25006|40*|55*|57*", Note: "standby, deadlock, lock, shutdown"},
	{Kind: relay.KindCredentials, Blame: relay.BlamePipeline, Answer: "28*"},
	{Kind: relay.KindSetup, Blame: relay.BlamePipeline, Answer: "0A*|42*", Note: "a table or trigger that the insert does not fit"},
}

// classify marks err by its SQLSTATE.
func classify(err error) error {
	pg, ok := errors.AsType[*pgconn.PgError](err)
	if !ok || relay.IsFatal(err) || len(pg.Code) != 5 {
		return err
	}
	answer := pg.Code
	switch {
	case answer == checkViolation && pg.ConstraintName == "" && pg.DataTypeName == "":
		answer = noPartition
	case answer == insufficientPrivilege && pg.Routine == policyRoutine:
		answer = ofPolicy
	}
	return Refusals.Classify(err, answer, false)
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
