package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/catalog"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// ErrPooled says that the connection goes through a pooler that hands one
// server session to many clients, on which a session's lock means nothing.
var ErrPooled = errors.New("the database is reached through a connection pooler in transaction mode, " +
	"where session locks and LISTEN do not work; give the relay a direct connection, or a pooler in session mode")

// ErrStandby says that the server is read-only.
var ErrStandby = errors.New("the server is a standby; give the primary's address, or several hosts with target_session_attrs=read-write")

// pgWire is the session on PostgreSQL.
type pgWire struct {
	conn *pgx.Conn
	self Instance

	mu          sync.Mutex
	idling      bool
	interrupted bool
}

// Connect dials a session of its own, makes sure that it is one, sets its
// timeouts on the server, and registers the instance.
func Connect(ctx context.Context, config *pgx.ConnConfig, self Instance) (Wire, error) {
	config = config.Copy()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	w := &pgWire{conn: conn, self: self}
	if err := w.prepare(ctx, config); err != nil {
		conn.Close(context.WithoutCancel(ctx)) // err says more
		return nil, err
	}
	return w, nil
}

func (w *pgWire) prepare(ctx context.Context, config *pgx.ConnConfig) error {
	if err := refusePooler(ctx, w.conn, config); err != nil {
		return err
	}
	var standby bool
	if err := w.conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return err
	}
	if standby {
		return ErrStandby
	}
	if err := w.setTimeouts(ctx); err != nil {
		return fmt.Errorf("set timeouts of the lease session: %w", err)
	}
	return w.register(ctx)
}

// refusePooler compares the process id that the server gave at connection time
// with that of the backend that answers. They differ behind a pooler. Then, if a
// second client is given the backend that answered the first, backends are
// shared.
func refusePooler(ctx context.Context, conn *pgx.Conn, config *pgx.ConnConfig) error {
	first, err := backendPID(ctx, conn)
	if err != nil || first == conn.PgConn().PID() {
		return err
	}
	for range 3 {
		second, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return err
		}
		pid, err := backendPID(ctx, second)
		second.Close(ctx) // a probe
		if err != nil {
			return err
		}
		if pid == first {
			return ErrPooled
		}
		if first, err = backendPID(ctx, conn); err != nil {
			return err
		}
	}
	return nil
}

// backendPID uses the simple protocol, for poolers that know no prepared statements.
func backendPID(ctx context.Context, conn *pgx.Conn) (uint32, error) {
	var pid uint32
	err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	return pid, err
}

// setTimeouts makes the server notice within serverPatience that we are gone.
func (w *pgWire) setTimeouts(ctx context.Context) error {
	seconds := int(serverPatience / time.Second)
	settings := []struct{ name, value string }{
		{"tcp_keepalives_idle", fmt.Sprint(seconds - 3)},
		{"tcp_keepalives_interval", "1"},
		{"tcp_keepalives_count", "3"},
		{"tcp_user_timeout", fmt.Sprint(serverPatience.Milliseconds())},
		{"idle_session_timeout", fmt.Sprint(serverPatience.Milliseconds())}, // PostgreSQL 14
		{"statement_timeout", "3s"},
		{"lock_timeout", "2s"},
	}
	for _, s := range settings {
		_, err := w.conn.Exec(ctx, `SELECT set_config(name, $2, false) FROM pg_settings WHERE name = $1`, s.name, s.value)
		if err != nil {
			return err
		}
	}
	return nil
}

const registerSQL = `
INSERT INTO pgtrickle.relay_instances AS i (instance_id, relay_group_id, binary_name, version, backends, hostname, pid, lock_key, draining, started_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, false, $9)
ON CONFLICT (instance_id) DO UPDATE SET
	relay_group_id = excluded.relay_group_id, binary_name = excluded.binary_name, version = excluded.version, backends = excluded.backends,
	hostname = excluded.hostname, pid = excluded.pid, lock_key = excluded.lock_key, draining = false, started_at = excluded.started_at`

// alive is true of rows whose advisory lock some session holds.
const alive = `EXISTS (
	SELECT FROM pg_catalog.pg_locks l
	WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
		AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
		AND ((l.classid::bigint << 32) | l.objid::bigint) = i.lock_key)`

func (w *pgWire) register(ctx context.Context) error {
	// A session of ours that the server has not given up yet would keep our
	// pipelines locked for seconds. The key is random, so nobody else has it.
	_, err := w.conn.Exec(ctx, `
		SELECT pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l
		WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
			AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
			AND ((l.classid::bigint << 32) | l.objid::bigint) = $1`, w.self.LockKey)
	if err != nil {
		return fmt.Errorf("end the former session: %w", err)
	}
	if _, err := w.conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, w.self.LockKey); err != nil {
		return fmt.Errorf("take the instance's lock: %w", err)
	}
	_, err = w.conn.Exec(ctx, registerSQL, w.self.ID, w.self.Group, w.self.Binary, w.self.Version, w.self.Backends,
		w.self.Hostname, w.self.PID, w.self.LockKey, w.self.Started)
	if err != nil {
		if pg.IsMissing(err) {
			return catalog.ErrNoCatalog
		}
		return fmt.Errorf("register the instance: %w", err)
	}
	if _, err = w.conn.Exec(ctx, `DELETE FROM pgtrickle.relay_instances i WHERE NOT `+alive); err != nil {
		return fmt.Errorf("forget dead instances: %w", err)
	}
	return nil
}

const beatSQL = `
SELECT instance_id, relay_group_id, coalesce(binary_name, ''), coalesce(version, ''), backends, coalesce(hostname, ''),
	coalesce(pid, 0), lock_key, coalesce(draining, false), coalesce(started_at, 'epoch')
FROM pgtrickle.relay_instances i
WHERE relay_group_id = $1 AND ` + alive

// Beat implements [Wire].
func (w *pgWire) Beat(ctx context.Context) ([]Instance, error) {
	return Live(ctx, w.conn, w.self.Group)
}

// Live lists the live instances of a group.
func Live(ctx context.Context, db pg.Querier, group string) ([]Instance, error) {
	rows, err := db.Query(ctx, beatSQL, group)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(r pgx.CollectableRow) (Instance, error) {
		var i Instance
		err := r.Scan(&i.ID, &i.Group, &i.Binary, &i.Version, &i.Backends, &i.Hostname, &i.PID, &i.LockKey, &i.Draining, &i.Started)
		return i, err
	})
}

// Idle implements [Wire]. Waiting for a notification that never comes is a read,
// and a read sees the connection close. The connection's own deadline ends it: a
// context's would start goroutines at every beat.
func (w *pgWire) Idle(until time.Time) error {
	w.mu.Lock()
	if w.interrupted {
		w.interrupted = false
		w.mu.Unlock()
		return nil
	}
	w.idling = true
	err := w.conn.PgConn().Conn().SetReadDeadline(until)
	w.mu.Unlock()

	for err == nil {
		_, err = w.conn.WaitForNotification(context.Background())
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	w.idling = false
	if w.conn.IsClosed() || !pgconn.Timeout(err) {
		return err
	}
	return w.conn.PgConn().Conn().SetReadDeadline(time.Time{})
}

// Interrupt implements [Wire].
func (w *pgWire) Interrupt() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.idling {
		w.interrupted = true // the deadline would cut a statement off
		return
	}
	_ = w.conn.PgConn().Conn().SetReadDeadline(time.Now()) // it fails where the connection is closed, which Idle sees
}

// lockName is what is hashed for the second half of the pipeline's lock.
func lockName(key catalog.Key) string {
	if key.Direction == relay.Reverse {
		return "reverse:" + key.Name
	}
	return key.Name
}

const epochSQL = `
INSERT INTO pgtrickle.relay_cursors AS c (relay_group_id, direction, pipeline, epoch, owner)
VALUES ($1, $2, $3, 1, $4)
ON CONFLICT (relay_group_id, direction, pipeline) DO UPDATE SET epoch = c.epoch + 1, owner = excluded.owner, updated_at = now()
RETURNING epoch`

// TryLock implements [Wire].
func (w *pgWire) TryLock(ctx context.Context, key catalog.Key) (epoch int64, ok bool, err error) {
	err = w.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtext($1), hashtext($2))`, w.self.Group, lockName(key)).Scan(&ok)
	if err != nil || !ok {
		return 0, false, err
	}
	err = w.conn.QueryRow(ctx, epochSQL, w.self.Group, key.Direction, key.Name, w.self.ID).Scan(&epoch)
	if err != nil {
		return 0, false, errors.Join(fmt.Errorf("raise the epoch: %w", err), w.Unlock(ctx, key))
	}
	return epoch, true, nil
}

// Unlock implements [Wire].
func (w *pgWire) Unlock(ctx context.Context, key catalog.Key) error {
	_, err := w.conn.Exec(ctx, `SELECT pg_advisory_unlock(hashtext($1), hashtext($2))`, w.self.Group, lockName(key))
	return err
}

// Drain implements [Wire].
func (w *pgWire) Drain(ctx context.Context) error {
	_, err := w.conn.Exec(ctx, `UPDATE pgtrickle.relay_instances SET draining = true WHERE instance_id = $1`, w.self.ID)
	return err
}

// Broken implements [Wire].
func (w *pgWire) Broken() bool { return w.conn.IsClosed() }

// Close implements [Wire].
func (w *pgWire) Close(ctx context.Context) {
	if !w.conn.IsClosed() {
		// Whoever sees the row without its lock deletes it, should this fail.
		_, _ = w.conn.Exec(ctx, `DELETE FROM pgtrickle.relay_instances WHERE instance_id = $1 AND lock_key = $2`, w.self.ID, w.self.LockKey)
	}
	w.conn.Close(ctx) // it is over either way
}
