package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// schema is the part of the migrations that leases live on.
const schema = `
CREATE SCHEMA pgtrickle;
CREATE TABLE pgtrickle.relay_cursors (
	relay_group_id text, direction text, pipeline text, epoch bigint NOT NULL DEFAULT 0, owner text, identity text, updated_at timestamptz NOT NULL DEFAULT now(),
	PRIMARY KEY (relay_group_id, direction, pipeline));
CREATE TABLE pgtrickle.relay_instances (
	instance_id text PRIMARY KEY, relay_group_id text NOT NULL, binary_name text, version text, backends text[] NOT NULL, hostname text, pid int,
	lock_key bigint NOT NULL, draining boolean DEFAULT false, started_at timestamptz DEFAULT now(),
	id_form smallint NOT NULL DEFAULT 0);`

func database(t *testing.T) (*pgxpool.Pool, *pgx.ConnConfig) {
	t.Helper()
	url := pgtest.URL(t)
	pool := pgtest.Open(t, url)
	if _, err := pool.Exec(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return pool, config
}

func instance(id string) Instance {
	return Instance{ID: id, Group: "g", Backends: []string{"nats"}, LockKey: store.LockKey(id), PID: 1, Started: time.Now()}
}

func runKeeper(t *testing.T, config *pgx.ConnConfig, self Instance) (k *Keeper, stop func()) {
	t.Helper()
	k = New(Config{
		Logger:  slog.New(slog.DiscardHandler),
		Connect: func(ctx context.Context) (Conn, error) { return Connect(ctx, config, self) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.Run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	eventually(t, "session", func() bool { _, err := k.Members(); return err == nil })
	return k, stop
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10s", what)
		}
	}
}

func TestPostgresLeases(t *testing.T) {
	t.Parallel()
	pool, config := database(t)
	a, _ := runKeeper(t, config, instance("a"))
	b, stopB := runKeeper(t, config, instance("b"))
	eventually(t, "a sees b", func() bool { m, _ := a.Members(); return len(m) == 2 })

	reverse := store.Key{Direction: relay.Reverse, Name: orders.Name}
	err := a.Hold(t.Context(), orders, func(ctx context.Context, l *Lease) error {
		if err := b.Hold(ctx, orders, nil); !errors.Is(err, ErrHeld) {
			t.Errorf("b holds what a has: %v", err)
		}
		// The documented lock, for fleets with other relays.
		var free bool
		if err := pool.QueryRow(ctx, `SELECT pg_try_advisory_lock(hashtext('g'), hashtext('orders'))`).Scan(&free); err != nil || free {
			t.Errorf("lock (hashtext(group), hashtext(pipeline)) is free while held, %v", err)
		}
		return b.Hold(ctx, reverse, func(_ context.Context, r *Lease) error {
			if l.Epoch != 1 || r.Epoch != 1 {
				t.Errorf("epochs %d and %d, want 1 and 1", l.Epoch, r.Epoch)
			}
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Hold(t.Context(), orders, func(_ context.Context, l *Lease) error {
		if l.Epoch != 2 {
			t.Errorf("epoch %d, want 2", l.Epoch)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	if err := b.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a sees b drain", func() bool { m, _ := a.Members(); return len(m) == 2 && m[1].Draining })
	stopB()
	eventually(t, "a sees b leave", func() bool { m, _ := a.Members(); return len(m) == 1 })
	var rows int
	if err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pgtrickle.relay_instances`).Scan(&rows); err != nil || rows != 1 {
		t.Errorf("%d rows in relay_instances, want 1; %v", rows, err)
	}
}

func TestTerminatedSessionStopsItsOwner(t *testing.T) {
	t.Parallel()
	pool, config := database(t)
	a, _ := runKeeper(t, config, instance("a"))
	b, _ := runKeeper(t, config, instance("b"))
	held, lost := make(chan struct{}), make(chan time.Time, 1)
	go func() {
		_ = a.Hold(t.Context(), orders, func(ctx context.Context, _ *Lease) error {
			close(held)
			<-ctx.Done()
			lost <- time.Now()
			return nil
		})
	}()
	<-held
	killed := time.Now()
	if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); err != nil {
		t.Fatal(err)
	}
	var taken time.Time
	eventually(t, "takeover", func() bool {
		return b.Hold(t.Context(), orders, func(context.Context, *Lease) error { taken = time.Now(); return nil }) == nil
	})
	noticed := <-lost
	t.Logf("owner stopped %s after the kill, rival took over after %s", noticed.Sub(killed), taken.Sub(killed))
	if noticed.Sub(killed) > defaultTrust/2 { // by the close that it saw, not by the end of its trust
		t.Errorf("owner noticed after %s", noticed.Sub(killed))
	}
	eventually(t, "a comes back", func() bool { m, _ := a.Members(); return len(m) == 2 })
}

// A session that the server has not given up is ended by the one that follows.
func TestSuccessorEndsItsFormerSession(t *testing.T) {
	t.Parallel()
	_, config := database(t)
	self := instance("a")
	first, err := Connect(t.Context(), config, self)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close(t.Context())
	if epochs, err := first.TryLock(t.Context(), []store.Key{orders}); len(epochs) != 1 || err != nil {
		t.Fatal(epochs, err)
	}
	second, err := Connect(t.Context(), config, self)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close(t.Context())
	if epochs, err := second.TryLock(t.Context(), []store.Key{orders}); epochs[orders] != 2 || err != nil {
		t.Errorf("TryLock = %v, %v; want epoch 2", epochs, err)
	}
}

// Another process with the same id gets a description of the holder.
func TestTwinIsRefused(t *testing.T) {
	t.Parallel()
	pool, config := database(t)
	first, err := Connect(t.Context(), config, instance("a"))
	if err != nil {
		t.Fatal(err)
	}
	twin := instance("a")
	twin.PID = 2
	_, err = Connect(t.Context(), config, twin)
	held, ok := errors.AsType[*store.HeldError](err)
	if !ok || held.PID != 1 || held.Started.IsZero() || held.Address == "" {
		t.Fatalf("Connect = %v, want the holder", err)
	}
	// The row may be gone; the lock is still held.
	if _, err := pool.Exec(t.Context(), `DELETE FROM pgtrickle.relay_instances`); err != nil {
		t.Fatal(err)
	}
	if _, err = Connect(t.Context(), config, twin); !errors.As(err, &held) {
		t.Fatalf("Connect = %v, want the holder", err)
	}
	first.Close(t.Context())
	eventually(t, "the twin takes over", func() bool {
		second, err := Connect(t.Context(), config, twin)
		if err == nil {
			second.Close(t.Context())
		}
		return err == nil
	})
}

// A record that another session deleted is written again, as it was.
func TestMissingRowIsPutBack(t *testing.T) {
	t.Parallel()
	pool, config := database(t)
	a, _ := runKeeper(t, config, instance("a"))
	if err := a.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `DELETE FROM pgtrickle.relay_instances`); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the row is back", func() bool {
		var draining bool
		err := pool.QueryRow(t.Context(), `SELECT draining FROM pgtrickle.relay_instances WHERE instance_id = 'a'`).Scan(&draining)
		return err == nil && draining
	})
}

// The server itself ends a session that has gone quiet, so a process that is
// stopped but not dead loses its locks.
func TestServerEndsQuietSession(t *testing.T) {
	t.Parallel()
	_, config := database(t)
	w, err := Connect(t.Context(), config, instance("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(t.Context())
	var version int
	if err := w.(*pgConn).conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 140000 {
		t.Skip("idle_session_timeout came with PostgreSQL 14")
	}
	began := time.Now()
	if err := w.Idle(began.Add(2 * serverPatience)); err == nil {
		t.Fatalf("the session still stands after %s", 2*serverPatience)
	}
	if took := time.Since(began); took <= defaultTrust {
		t.Errorf("the server ended the session after %s, before our trust of %s ended", took, defaultTrust)
	}
}

func TestConnectNeedsTheSchema(t *testing.T) {
	t.Parallel()
	config, err := pgx.ParseConfig(pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Connect(t.Context(), config, instance("a")); !errors.Is(err, store.ErrNoCatalog) {
		t.Errorf("Connect = %v, want ErrNoCatalog", err)
	}
}

func TestPgBouncerIsRefusedInTransactionMode(t *testing.T) {
	t.Parallel()
	path, err := exec.LookPath("pgbouncer")
	if err != nil {
		if path = "/usr/sbin/pgbouncer"; !exists(path) {
			if os.Getenv("RELAY_TEST_REQUIRE") != "" {
				t.Fatal("pgbouncer is not installed (Debian package pgbouncer)")
			}
			t.Skip("pgbouncer is not installed")
		}
	}
	_, config := database(t)
	for mode, refused := range map[string]bool{"transaction": true, "session": false} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pooled := startPgBouncer(t, path, config, mode)
			w, err := Connect(t.Context(), pooled, instance(mode))
			if err == nil {
				w.Close(t.Context())
			}
			if errors.Is(err, ErrPooled) != refused || (!refused && err != nil) {
				t.Errorf("Connect in %s mode = %v, want refused %v", mode, err, refused)
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func startPgBouncer(t *testing.T, path string, server *pgx.ConnConfig, mode string) *pgx.ConnConfig {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := ln.Addr().(*net.TCPAddr).Port
	ln.Close()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	users := filepath.Join(dir, "users.txt")
	if err := os.WriteFile(users, fmt.Appendf(nil, "%q %q\n", server.User, server.Password), 0o644); err != nil {
		t.Fatal(err)
	}
	ini := fmt.Sprintf(`[databases]
%s = host=%s port=%d
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
auth_type = trust
auth_file = %s
pool_mode = %s
unix_socket_dir =
`, server.Database, server.Host, server.Port, port, users, mode)
	file := filepath.Join(dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(ini), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{file}
	if os.Getuid() == 0 {
		args = []string{"-u", "nobody", file}
	}
	cmd := exec.Command(path, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	pooled, err := pgx.ParseConfig((&url.URL{
		Scheme: "postgres", User: url.User(server.User), Host: fmt.Sprintf("127.0.0.1:%d", port), Path: server.Database,
	}).String())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "pgbouncer", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return pooled
}
