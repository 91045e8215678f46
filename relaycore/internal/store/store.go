// Package store holds the SQL on cursors, public offsets, dead letters and instances,
// and the names of the relay's advisory locks. The tables of pipelines are read in
// package catalog.
//
// Every write of a running pipeline carries the epoch of its lease, and changes nothing
// if the cursor has a later one. An owner that lost its lease without noticing can
// change nothing: it gets [engine.ErrFenced]. A promoted standby has the epochs of
// the old primary, and may lack rows that the owner has delivered. Therefore commits
// carry the server's timeline too.
//
// SQL stands in the files of sql. An @name in it is an argument, and a :name is
// replaced when the program starts.
package store

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// ErrNoCatalog reports that the database has no tables of the relay.
var ErrNoCatalog = errors.New("the database has no relay catalog; run the migrate command")

// Key identifies a pipeline. A forward and a reverse one may have the same name.
type Key struct {
	Direction relay.Direction
	Name      string
}

func (k Key) String() string { return string(k.Direction) + " " + strconv.Quote(k.Name) }

// Compare orders keys by name, then direction.
func (k Key) Compare(other Key) int {
	return cmp.Or(cmp.Compare(k.Name, other.Name), cmp.Compare(k.Direction, other.Direction))
}

// Store reads and writes what the relay keeps for one group of instances.
type Store struct {
	db    pg.Querier
	group string
}

// New returns the store of a group. With a transaction it reads that one's snapshot;
// locks need a connection of their own.
func New(db pg.Querier, group string) Store { return Store{db, group} }

// args returns the arguments of a statement on one pipeline.
func (s Store) args(key Key, more pgx.StrictNamedArgs) pgx.StrictNamedArgs {
	args := pgx.StrictNamedArgs{"group": s.group, "direction": key.Direction, "pipeline": key.Name}
	maps.Copy(args, more)
	return args
}

// timelineSQL changes its result when a standby is promoted.
const timelineSQL = `substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`

// A pipeline's lock has two keys, the hashes of the group and of this name.
const lockName = `CASE direction WHEN 'reverse' THEN 'reverse:' ELSE '' END || pipeline`

var (
	//go:embed sql/unlock.sql
	unlockTemplate string
	unlockSQL      = strings.ReplaceAll(unlockTemplate, ":lock_name", lockName)

	//go:embed sql/acquire.sql
	acquireTemplate string
	acquireSQL      = strings.ReplaceAll(acquireTemplate, ":lock_name", lockName)
)

// Unlock releases the pipeline's lock.
func (s Store) Unlock(ctx context.Context, key Key) error {
	_, err := s.db.Exec(ctx, unlockSQL, s.args(key, nil))
	return err
}

// Acquire takes the locks of those pipelines that are free, for this connection. It names
// the owner of each and returns its new epoch. If it fails, the connection may hold locks.
func (s Store) Acquire(ctx context.Context, keys []Key, owner string) (epochs map[Key]int64, err error) {
	identities := make([]string, len(keys))
	for i := range identities {
		identities[i] = newIdentity()
	}
	directions, pipelines := columns(keys)
	rows, _ := s.db.Query(ctx, acquireSQL, pgx.StrictNamedArgs{
		"group": s.group, "owner": owner, "directions": directions, "pipelines": pipelines, "identities": identities,
	}) // ForEachRow returns its error
	epochs = make(map[Key]int64)
	var key Key
	var epoch int64
	_, err = pgx.ForEachRow(rows, []any{&key.Direction, &key.Name, &epoch}, func() error {
		epochs[key] = epoch
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("take locks and raise epochs: %w", err)
	}
	return epochs, nil
}

// columns returns keys as the statements take them: as arrays.
func columns(keys []Key) (directions, pipelines []string) {
	directions, pipelines = make([]string, len(keys)), make([]string, len(keys))
	for i, key := range keys {
		directions[i], pipelines[i] = string(key.Direction), key.Name
	}
	return directions, pipelines
}

// A retention sweep holds this lock, so that one instance at a time deletes.
const sweepLock = `(hashtext('pgtrickle-relay'), hashtext('retention'))`

// TryLockSweep takes the lock of retention for this connection, if it is free.
func TryLockSweep(ctx context.Context, db pg.Querier) (ok bool, err error) {
	err = db.QueryRow(ctx, `SELECT pg_try_advisory_lock`+sweepLock).Scan(&ok)
	return ok, err
}

// UnlockSweep releases the lock of retention.
func UnlockSweep(ctx context.Context, db pg.Querier) error {
	_, err := db.Exec(ctx, `SELECT pg_advisory_unlock`+sweepLock)
	return err
}
