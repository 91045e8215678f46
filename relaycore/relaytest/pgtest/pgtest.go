// Package pgtest gives each test a PostgreSQL database of its own.
//
// The server is the one that RELAY_TEST_DATABASE_URL names; its user must be
// allowed to create databases.
package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/relaytest"
)

// Env is the environment variable that names the server.
const Env = "RELAY_TEST_DATABASE_URL"

// patience bounds what is done before and after a test, on a busy machine too.
const patience = time.Minute

// URL creates an empty database and returns its URL. The database is dropped
// when the test ends, even if it still has connections.
func URL(t testing.TB) string {
	t.Helper()
	return URLFrom(t, Env)
}

// URLFrom is [URL] on the server that another environment variable names.
func URLFrom(t testing.TB, env string) string {
	t.Helper()
	return create(t, env, "")
}

// Encoded is [URL] for a database of another encoding than UTF8.
func Encoded(t testing.TB, encoding string) string {
	t.Helper()
	return create(t, Env, " ENCODING '"+encoding+"' TEMPLATE template0 LOCALE 'C'")
}

func create(t testing.TB, env, options string) string {
	t.Helper()
	server, err := url.Parse(relaytest.Endpoint(t, env))
	if err != nil {
		t.Fatalf("parse %s: %v", env, err)
	}
	name := "relay_test_" + suffix()
	for tries := 1; ; tries++ {
		err := onServer(server, "CREATE DATABASE "+name+options)
		if err == nil {
			break
		}
		// A signal can interrupt the server while it opens a file of the template. It
		// does not try again by itself, and the test is not about that.
		if tries == 3 || !strings.Contains(err.Error(), "Interrupted system call") {
			t.Fatalf("create database on %s: %v", server.Host, err)
		}
	}
	t.Cleanup(func() {
		if err := onServer(server, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Errorf("drop database: %v", err)
		}
	})
	fresh := *server
	fresh.Path = "/" + name
	return fresh.String()
}

// Pool returns a pool on a fresh database. It is closed when the test ends.
func Pool(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return Open(t, URL(t))
}

// Open returns a pool on the database at url. It is closed when the test ends.
func Open(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		t.Fatalf("open pool: %v", err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// onServer runs one statement on a connection of its own.
func onServer(server *url.URL, sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.String())
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

func suffix() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
