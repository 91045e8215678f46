package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

// ErrPooled says that the connection goes through a pooler that hands one
// server session to many clients, on which a session's lock means nothing.
var ErrPooled = errors.New("the database is reached through a connection pooler in transaction mode, " +
	"where session locks and LISTEN do not work; give the relay a direct connection, or a pooler in session mode")

// ErrStandby says that the server is read-only.
var ErrStandby = errors.New("the server is a standby; give the primary's address, or several hosts with target_session_attrs=read-write")

// pgWire is the session on PostgreSQL.
type pgWire struct {
	conn  *pgx.Conn
	self  Instance
	store store.Store

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
	w := &pgWire{conn: conn, self: self, store: store.New(conn, self.Group)}
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
	return store.Register(ctx, w.conn, w.self)
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

// Beat implements [Wire].
func (w *pgWire) Beat(ctx context.Context) ([]Instance, error) { return w.store.Instances(ctx) }

// Live lists the live instances of a group.
func Live(ctx context.Context, db pg.Querier, group string) ([]Instance, error) {
	return store.New(db, group).Instances(ctx)
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

// TryLock implements [Wire].
func (w *pgWire) TryLock(ctx context.Context, key store.Key) (epoch int64, ok bool, err error) {
	ok, err = w.store.TryLock(ctx, key)
	if err != nil || !ok {
		return 0, false, err
	}
	epoch, err = w.store.Acquire(ctx, key, w.self.ID)
	if err != nil {
		return 0, false, errors.Join(err, w.Unlock(ctx, key))
	}
	return epoch, true, nil
}

// Unlock implements [Wire].
func (w *pgWire) Unlock(ctx context.Context, key store.Key) error { return w.store.Unlock(ctx, key) }

// Drain implements [Wire].
func (w *pgWire) Drain(ctx context.Context) error { return store.SetDraining(ctx, w.conn, w.self.ID) }

// Broken implements [Wire].
func (w *pgWire) Broken() bool { return w.conn.IsClosed() }

// Close implements [Wire].
func (w *pgWire) Close(ctx context.Context) {
	if !w.conn.IsClosed() {
		_ = store.Deregister(ctx, w.conn, w.self) // otherwise the next instance that registers deletes the record
	}
	w.conn.Close(ctx) // it is over either way
}
