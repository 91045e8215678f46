package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/instance_register.sql
	registerSQL string

	// endSQL ends an earlier session of the same process. Its record identifies it.
	endSQL = `SELECT pg_terminate_backend(h.pid) FROM pgtrickle.relay_instances i, LATERAL (` + holderSQL + `) AS h
		WHERE h.relay AND i.instance_id = $1 AND i.lock_key = $2 AND i.hostname = $3 AND i.pid = $4 AND i.started_at = $5`

	// heldSQL describes the process that holds the lock, from its record and its session.
	heldSQL = `SELECT coalesce(r.pid, 0), coalesce(host(a.client_addr), r.hostname, ''), coalesce(r.started_at, a.backend_start),
			CASE WHEN NOT h.relay THEN quote_ident(a.usename) ELSE '' END, h.pid
		FROM (VALUES ($2::bigint)) AS i (lock_key), LATERAL (` + holderSQL + `) AS h
		JOIN pg_catalog.pg_stat_activity a ON a.pid = h.pid
		LEFT JOIN pgtrickle.relay_instances r ON r.instance_id = $1 AND r.lock_key = $2`

	// holderSQL finds the session that holds the lock of the instance i, and whether it
	// belongs to a relay.
	//go:embed sql/instance_holder.sql
	holderTemplate string
	holderSQL      = strings.ReplaceAll(holderTemplate, ":is_relay", isRelaySQL)

	// aliveSQL finds that session if it belongs to a relay.
	aliveSQL = `SELECT FROM (` + holderSQL + `) AS h WHERE h.relay`

	//go:embed sql/instance_list.sql
	instancesTemplate string
	instancesSQL      = strings.ReplaceAll(instancesTemplate, ":alive", aliveSQL)
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
	LockKey  int64 // of ID; the process holds an advisory lock on it while it lives
	Draining bool
	Started  time.Time
}

// LockKey returns the key of the advisory lock of an instance. Processes with the same
// id have the same key, so the second one sees the first.
func LockKey(id string) int64 {
	sum := sha256.Sum256([]byte("pgtrickle-relay instance " + id))
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // all 64 bits are the hash
}

// HeldError reports that another process runs with the same instance id.
type HeldError struct {
	ID      string
	PID     int // of the process, on its host; 0 if it has no record
	Address string
	Started time.Time
	Role    string // of a session that belongs to no relay; quoted, "" otherwise
	Session int    // the session's process id on the server
}

func (e *HeldError) Error() string {
	if e.Role != "" {
		return fmt.Sprintf("role %s, which is no relay, holds the lock of instance id %q in session %d: run SELECT pg_terminate_backend(%d)",
			e.Role, e.ID, e.Session, e.Session)
	}
	return fmt.Sprintf("instance id %q is in use by process %d at %s since %s: give each process an --instance-id of its own, or none",
		e.ID, e.PID, cmp.Or(e.Address, "this host"), e.Started.UTC().Format(time.RFC3339))
}

// Register takes the lock of an instance for this connection and records it. It
// returns [ErrNoCatalog] if the table is missing, and a [HeldError] if another process
// has the lock.
func Register(ctx context.Context, db pg.Querier, i Instance) error {
	if err := lock(ctx, db, i); err != nil {
		return err
	}
	if err := Record(ctx, db, i); err != nil {
		return err
	}
	_, err := db.Exec(ctx, `DELETE FROM pgtrickle.relay_instances i WHERE NOT EXISTS (`+aliveSQL+`)`)
	if err != nil {
		return fmt.Errorf("delete dead instances: %w", err)
	}
	return nil
}

func lock(ctx context.Context, db pg.Querier, i Instance) error {
	// An earlier session of this process that the server has not given up yet would
	// keep its pipelines locked for seconds.
	ended, err := db.Exec(ctx, endSQL, i.ID, i.LockKey, i.Hostname, i.PID, i.Started)
	if pg.IsMissing(err) {
		return ErrNoCatalog
	}
	if err != nil {
		return fmt.Errorf("end the earlier session: %w", err)
	}
	if ended.RowsAffected() > 0 { // the server releases its lock when it has ended
		if _, err := db.Exec(ctx, `SELECT pg_advisory_lock($1)`, i.LockKey); err != nil {
			return fmt.Errorf("take the instance's lock: %w", err)
		}
		return nil
	}

	var free bool
	if err := db.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, i.LockKey).Scan(&free); err != nil {
		return fmt.Errorf("take the instance's lock: %w", err)
	}
	if free {
		return nil
	}
	held := &HeldError{ID: i.ID}
	err = db.QueryRow(ctx, heldSQL, i.ID, i.LockKey).Scan(&held.PID, &held.Address, &held.Started, &held.Role, &held.Session)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) { // the holder may have ended just now
		return fmt.Errorf("find the holder of the instance's lock: %w", err)
	}
	return held
}

// Record writes the record of an instance.
func Record(ctx context.Context, db pg.Querier, i Instance) error {
	_, err := db.Exec(ctx, registerSQL, pgx.StrictNamedArgs{
		"id": i.ID, "group": i.Group, "binary": i.Binary, "version": i.Version, "backends": i.Backends,
		"hostname": i.Hostname, "pid": i.PID, "lock_key": i.LockKey, "draining": i.Draining, "started": i.Started, "id_form": idForm,
	})
	if pg.IsMissing(err) {
		return ErrNoCatalog
	}
	if err != nil {
		return fmt.Errorf("register the instance: %w", err)
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

// Instances returns the live instances of the group: those whose lock a relay holds.
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
