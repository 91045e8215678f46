package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

// stranger returns a session of a login without rights, and its role.
func stranger(t *testing.T, url string) (*pgx.Conn, string) {
	t.Helper()
	pool := pgtest.Open(t, url)
	var role string
	if err := pool.QueryRow(t.Context(), `SELECT current_database() || '_mallory'`).Scan(&role); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(t.Context(), `CREATE ROLE `+role+` LOGIN`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = pool.Exec(t.Context(), `DROP ROLE `+role) })
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.User, config.Password = role, ""
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn, role
}

// TestStrangerIsNoInstance: any role can take the advisory lock of an instance whose
// process has died. That must not keep its pipelines assigned to it.
func TestStrangerIsNoInstance(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	conn, role := stranger(t, pool.Config().ConnString())
	i := store.Instance{ID: "a", Group: "default", Backends: []string{"nats"}, LockKey: store.LockKey("a"), PID: 1, Started: time.Now()}
	if err := store.Record(t.Context(), pool, i); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock($1)`, i.LockKey); err != nil {
		t.Fatal(err)
	}
	live, err := store.New(pool, "default").Instances(t.Context())
	if err != nil || len(live) != 0 {
		t.Errorf("Instances = %v, %v; want none", live, err)
	}
	err = store.Register(t.Context(), pool, i)
	if want := "role " + role + ", which is no relay, holds the lock"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Register = %v; want %q", err, want)
	}
}

func TestIntruders(t *testing.T) {
	t.Parallel()
	pool := newDatabase(t)
	s := store.New(pool, "default")
	conn, role := stranger(t, pool.Config().ConnString())
	find := func() *store.Intruder {
		t.Helper()
		found, err := s.Intruders(t.Context(), []store.Key{orders, {Direction: orders.Direction, Name: "other"}})
		if err != nil || len(found) > 1 {
			t.Fatalf("Intruders = %v, %v", found, err)
		}
		return found[orders]
	}
	const lock = `(hashtext('default'), hashtext($1))`

	relay, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Release()
	if epochs, err := store.New(relay, "default").Acquire(t.Context(), []store.Key{orders}, "me"); err != nil || len(epochs) != 1 {
		t.Fatalf("Acquire = %v, %v", epochs, err)
	}
	if got := find(); got != nil {
		t.Errorf("the relay is an intruder: %v", got)
	}

	waited := make(chan error, 1)
	go func() {
		_, err := conn.Exec(t.Context(), `SELECT pg_advisory_lock`+lock, orders.Name)
		waited <- err
	}()
	pid := int(conn.PgConn().PID())
	for deadline := time.Now().Add(10 * time.Second); find() == nil && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	if got := find(); got == nil || got.PID != pid || got.Role != role || got.Holds {
		t.Errorf("with a stranger that waits: %+v", got)
	}
	if err := store.New(relay, "default").Unlock(t.Context(), orders); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	got := find()
	if got == nil || !got.Holds || !strings.Contains(got.Error(), got.Cure()) {
		t.Fatalf("with a stranger that holds the lock: %+v", got)
	}
	if _, err := pool.Exec(t.Context(), got.Cure()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); find() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %+v", got.Cure(), find())
		}
	}
}
