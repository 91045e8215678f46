package store

import (
	"context"
	_ "embed"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/instance_register.sql
	registerSQL string

	// endSQL ends the session that holds the lock $1.
	endSQL = `SELECT pg_terminate_backend(h.pid) FROM (VALUES ($1::bigint)) AS i (lock_key), LATERAL (` + holderSQL + `) AS h`

	// holderSQL finds the session that holds the lock of the instance i.
	//go:embed sql/instance_holder.sql
	holderSQL string

	//go:embed sql/instance_list.sql
	instancesTemplate string
	instancesSQL      = strings.ReplaceAll(instancesTemplate, ":holder", holderSQL)
)

// Instance is a process that shares the pipelines of a group.
type Instance struct {
	ID       string
	Group    string
	Binary   string
	Version  string
	Backends []string // names and aliases
	Hostname string
	PID      int
	LockKey  int64 // random; the process holds an advisory lock on it while it lives
	Draining bool
	Started  time.Time
}

// Register takes the lock of an instance for this connection and records it. It
// returns [ErrNoCatalog] if the table is missing.
func Register(ctx context.Context, db pg.Querier, i Instance) error {
	// An earlier session of this process that the server has not given up yet would
	// keep its pipelines locked for seconds. No other process has the random key.
	_, err := db.Exec(ctx, endSQL, i.LockKey)
	if err != nil {
		return fmt.Errorf("end the earlier session: %w", err)
	}
	if _, err := db.Exec(ctx, `SELECT pg_advisory_lock($1)`, i.LockKey); err != nil {
		return fmt.Errorf("take the instance's lock: %w", err)
	}
	_, err = db.Exec(ctx, registerSQL, pgx.StrictNamedArgs{
		"id": i.ID, "group": i.Group, "binary": i.Binary, "version": i.Version, "backends": i.Backends,
		"hostname": i.Hostname, "pid": i.PID, "lock_key": i.LockKey, "started": i.Started,
	})
	if pg.IsMissing(err) {
		return ErrNoCatalog
	}
	if err != nil {
		return fmt.Errorf("register the instance: %w", err)
	}
	if _, err = db.Exec(ctx, `DELETE FROM pgtrickle.relay_instances i WHERE NOT EXISTS (`+holderSQL+`)`); err != nil {
		return fmt.Errorf("delete dead instances: %w", err)
	}
	return nil
}

// Deregister deletes the record of an instance, unless another process has its id.
func Deregister(ctx context.Context, db pg.Querier, i Instance) error {
	_, err := db.Exec(ctx, `DELETE FROM pgtrickle.relay_instances WHERE instance_id = $1 AND lock_key = $2`, i.ID, i.LockKey)
	return err
}

// SetDraining records that an instance releases its pipelines.
func SetDraining(ctx context.Context, db pg.Querier, id string) error {
	_, err := db.Exec(ctx, `UPDATE pgtrickle.relay_instances SET draining = true WHERE instance_id = $1`, id)
	return err
}

// Instances returns the live instances of the group: those whose lock is held.
func (s Store) Instances(ctx context.Context) ([]Instance, error) {
	rows, err := s.db.Query(ctx, instancesSQL, s.group)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (Instance, error) {
		var i Instance
		err := r.Scan(&i.ID, &i.Group, &i.Binary, &i.Version, &i.Backends, &i.Hostname, &i.PID, &i.LockKey, &i.Draining, &i.Started)
		return i, err
	})
}
