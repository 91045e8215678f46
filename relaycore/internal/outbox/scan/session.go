package scan

import (
	"context"
	_ "embed"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// tuneTemplate makes the planner read by an index in its order, whatever number of
// rows it expects. A bitmap or a sort would go through a whole backlog for each read.
// One plan then fits all snapshots and ids, and is made once for a connection.
//
//go:embed sql/tune.sql
var tuneTemplate string

// tuneSQL holds for one transaction.
var tuneSQL = strings.ReplaceAll(tuneTemplate, "{local}", "true")

// tuned marks the connections that Tune has set up, with the name of their server.
const tuned = "outbox reads are tuned"

// serverSQL names the server, the database and the role of a connection. A promoted
// standby has another start than the old primary. A server that has restarted has none of
// the transactions of before but prepared ones.
const serverSQL = `SELECT format('%s %I %I ', pg_postmaster_start_time(), current_database(), current_user)`

// Tune sets up a connection for all its transactions, as each read would do for its
// own. That saves up to nine tenths of a small read. It is for connections that serve
// nothing but outboxes.
func Tune(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.Exec(ctx, strings.ReplaceAll(tuneTemplate, "{local}", "false")); err != nil {
		return err
	}
	var server string
	if err := conn.QueryRow(ctx, serverSQL).Scan(&server); err != nil {
		return err
	}
	conn.PgConn().CustomData()[tuned] = server
	return nil
}

// Session is a connection for the length of one read. It implements [DB].
type Session struct{ Conn *pgx.Conn }

// Server returns a text that connections share if they lead to one server, database and
// role; "" if that is not known.
func (s Session) Server() string {
	name, _ := s.Conn.PgConn().CustomData()[tuned].(string)
	return name
}

// Query implements [DB] with one round trip, prepared statements aside. The rows after
// the one that each declined are skipped, so that the connection can be used again.
func (s Session) Query(ctx context.Context, sql string, formats []int16, args []string, each func(v [][]byte) (bool, error)) error {
	params := make([][]byte, len(args))
	for i := range args {
		params[i] = []byte(args[i])
	}
	name, err := s.prepare(ctx, sql)
	if err != nil {
		return err
	}
	setup, tuneName := 0, ""
	if s.Conn.PgConn().CustomData()[tuned] == nil {
		if tuneName, err = s.prepare(ctx, tuneSQL); err != nil {
			return err
		}
		setup = 1
	}

	p := s.Conn.PgConn().StartPipeline(ctx)
	send := func(name, sql string, params [][]byte, formats []int16) {
		if name == "" {
			p.SendQueryParams(sql, params, nil, nil, formats)
		} else {
			p.SendQueryPrepared(name, params, nil, formats)
		}
	}
	if setup > 0 {
		send(tuneName, tuneSQL, nil, nil)
	}
	send(name, sql, params, formats)
	if err := p.Sync(); err != nil {
		return errors.Join(err, p.Close())
	}
	err = results(p, setup, each)
	if closed := p.Close(); err == nil {
		return closed
	}
	return err
}

// unprepared marks, with a bool, whether a connection prepares no statements.
const unprepared = "outbox reads are not prepared"

// prepare prepares a statement once for a connection, because parsing and planning a
// read costs several times as much as an empty read. If the URL marks sessions as
// unreliable, as behind some poolers, nothing is prepared, and the name is "".
func (s Session) prepare(ctx context.Context, sql string) (name string, err error) {
	data := s.Conn.PgConn().CustomData()
	not, known := data[unprepared].(bool)
	if !known { // once, because Config copies all of the configuration
		mode := s.Conn.Config().DefaultQueryExecMode
		not = mode == pgx.QueryExecModeExec || mode == pgx.QueryExecModeSimpleProtocol
		data[unprepared] = not
	}
	if not {
		return "", nil
	}
	d, err := s.Conn.Prepare(ctx, sql, sql) // a look-up from the second time on
	if err != nil {
		return "", err
	}
	return d.Name, nil
}

// results reads the results of a pipeline, and passes rows to each behind those of the
// first setup statements.
func results(p *pgconn.Pipeline, setup int, each func(v [][]byte) (bool, error)) error {
	for n := 0; ; n++ {
		result, err := p.GetResults()
		if err != nil {
			return err
		}
		r, ok := result.(*pgconn.ResultReader)
		if !ok {
			return nil // all are read
		}
		more := n >= setup
		var failure error
		for r.NextRow() {
			if more {
				more, failure = each(r.Values())
				more = more && failure == nil
			}
		}
		if _, err := r.Close(); err != nil {
			return err
		}
		if failure != nil {
			return failure
		}
	}
}
