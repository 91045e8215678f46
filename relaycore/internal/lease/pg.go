package lease

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
)

// ErrPooled reports a pooler that gives one server session to many clients, so that
// the lock of a session means nothing.
var ErrPooled = errors.New("a connection pooler in transaction mode breaks session locks and LISTEN; " +
	"connect directly, or use session mode")

// ErrStandby reports that the server is read-only.
var ErrStandby = errors.New("the server is a standby; give the primary's address, or several hosts with target_session_attrs=read-write")

// pgConn is the session on PostgreSQL.
type pgConn struct {
	conn  *pgx.Conn
	self  Instance
	store store.Store

	mu          sync.Mutex
	idling      bool
	interrupted bool
}

// Connect dials a session, refuses poolers that share it, sets its timeouts on the
// server, and registers the instance.
func Connect(ctx context.Context, config *pgx.ConnConfig, self Instance) (Conn, error) {
	config = config.Copy()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	c := &pgConn{conn: conn, self: self, store: store.New(conn, self.Group)}
	if err := c.prepare(ctx, config); err != nil {
		_ = conn.Close(context.WithoutCancel(ctx)) // err matters more
		return nil, err
	}
	return c, nil
}

func (c *pgConn) prepare(ctx context.Context, config *pgx.ConnConfig) error {
	if err := refusePooler(ctx, c.conn, config); err != nil {
		return err
	}
	var standby bool
	if err := c.conn.QueryRow(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return err
	}
	if standby {
		return ErrStandby
	}
	if err := c.setTimeouts(ctx); err != nil {
		return fmt.Errorf("set timeouts of the lease session: %w", err)
	}
	return store.Register(ctx, c.conn, c.self)
}

// refusePooler returns [ErrPooled] if server sessions are shared. Behind any pooler,
// the backend that answers has another process id than the one at connection time.
// If a second client then gets the backend of the first, backends are shared.
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

// backendPID uses the simple protocol, because some poolers lack prepared statements.
func backendPID(ctx context.Context, conn *pgx.Conn) (uint32, error) {
	var pid uint32
	err := conn.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeSimpleProtocol).Scan(&pid)
	return pid, err
}

// setTimeouts makes the server end a silent session within serverPatience.
func (c *pgConn) setTimeouts(ctx context.Context) error {
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
		_, err := c.conn.Exec(ctx, `SELECT set_config(name, $2, false) FROM pg_settings WHERE name = $1`, s.name, s.value)
		if err != nil {
			return err
		}
	}
	return nil
}

// Beat implements [Conn]. It puts the record of this instance back if it is gone:
// without it, no instance assigns pipelines to this one.
func (c *pgConn) Beat(ctx context.Context) ([]Instance, error) {
	members, err := c.store.Instances(ctx)
	if err != nil || slices.ContainsFunc(members, func(i Instance) bool { return i.ID == c.self.ID }) {
		return members, err
	}
	if err := store.Record(ctx, c.conn, c.self); err != nil {
		return nil, err
	}
	return c.store.Instances(ctx)
}

// Idle implements [Conn]. It waits for a notification that is never sent, because a
// read sees the connection close. A deadline of the connection ends the read; one of
// a context would start a goroutine at every beat.
func (c *pgConn) Idle(until time.Time) error {
	c.mu.Lock()
	if c.interrupted {
		c.interrupted = false
		c.mu.Unlock()
		return nil
	}
	c.idling = true
	err := c.conn.PgConn().Conn().SetReadDeadline(until)
	c.mu.Unlock()

	for err == nil {
		_, err = c.conn.WaitForNotification(context.Background())
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	c.idling = false
	if c.conn.IsClosed() || !pgconn.Timeout(err) {
		return err
	}
	return c.conn.PgConn().Conn().SetReadDeadline(time.Time{})
}

// Interrupt implements [Conn].
func (c *pgConn) Interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.idling {
		c.interrupted = true // a deadline would cancel the current statement
		return
	}
	_ = c.conn.PgConn().Conn().SetReadDeadline(time.Now()) // fails if the connection is closed, which Idle sees
}

// TryLock implements [Conn].
func (c *pgConn) TryLock(ctx context.Context, keys []store.Key) (epochs map[store.Key]int64, err error) {
	epochs, err = c.store.Acquire(ctx, keys, c.self.ID)
	if err == nil {
		return epochs, nil
	}
	for _, key := range keys {
		err = errors.Join(err, c.Unlock(ctx, key)) // only warns where the lock is not held
	}
	return nil, err
}

// Unlock implements [Conn].
func (c *pgConn) Unlock(ctx context.Context, key store.Key) error { return c.store.Unlock(ctx, key) }

// Drain implements [Conn].
func (c *pgConn) Drain(ctx context.Context) error {
	c.self.Draining = true
	return store.SetDraining(ctx, c.conn, c.self.ID)
}

// Broken implements [Conn].
func (c *pgConn) Broken() bool { return c.conn.IsClosed() }

// Close implements [Conn].
func (c *pgConn) Close(ctx context.Context) {
	if !c.conn.IsClosed() {
		_ = store.Deregister(ctx, c.conn, c.self) // otherwise the next instance that registers deletes the record
	}
	_ = c.conn.Close(ctx) // nothing depends on it
}
