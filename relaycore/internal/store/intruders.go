package store

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	// isRelaySQL is true if session a belongs to a role that may run a relay. Every
	// role of the database can take advisory locks, and sees the keys of ours in pg_locks.
	//go:embed sql/is_relay.sql
	isRelaySQL string

	//go:embed sql/intruders.sql
	intrudersTemplate string
	intrudersSQL      = strings.NewReplacer(":lock_name", lockName, ":is_relay", isRelaySQL).Replace(intrudersTemplate)
)

// Intruder is a session of a role that is no relay, at the lock of a pipeline.
type Intruder struct {
	PID   int // of the session, on the server
	Role  string
	Holds bool // otherwise it waits, and has the lock once the owner releases it
}

func (i *Intruder) Error() string {
	does := "waits for"
	if i.Holds {
		does = "holds"
	}
	return fmt.Sprintf("role %s, which is no relay, %s the pipeline's lock in session %d: run %s",
		pg.Identifier(i.Role), does, i.PID, i.Cure())
}

// Cure returns the statement that ends the session.
func (i *Intruder) Cure() string { return fmt.Sprintf("SELECT pg_terminate_backend(%d)", i.PID) }

// Intruders returns the sessions of other roles at the locks of these pipelines of the
// group. It returns one a pipeline: the holder, or else one that waits.
func (s Store) Intruders(ctx context.Context, keys []Key) (map[Key]*Intruder, error) {
	directions, pipelines := columns(keys)
	// ForEachRow returns the error of Query, too.
	rows, _ := s.db.Query(ctx, intrudersSQL, pgx.StrictNamedArgs{"group": s.group, "directions": directions, "pipelines": pipelines})
	found := make(map[Key]*Intruder)
	var key Key
	var i Intruder
	_, err := pgx.ForEachRow(rows, []any{&key.Direction, &key.Name, &i.PID, &i.Role, &i.Holds}, func() error {
		found[key] = &Intruder{PID: i.PID, Role: i.Role, Holds: i.Holds}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for strangers at the pipelines' locks: %w", err)
	}
	return found, nil
}
