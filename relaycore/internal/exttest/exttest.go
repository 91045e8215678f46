// Package exttest creates the objects of the pg_trickle extension, 0.37 to 0.45, in a
// database, and writes outbox rows as the extension does.
package exttest

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

//go:embed extension.sql
var extensionSQL string

//go:embed older.sql
var olderSQL string

//go:embed update.sql
var updateSQL string

// Install creates the extension's objects in an empty database.
func Install(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if err := Create(pool); err != nil {
		t.Fatalf("create the extension: %v", err)
	}
}

// Create is CREATE EXTENSION pg_trickle, of version 0.45.
func Create(pool *pgxpool.Pool) error {
	_, err := pool.Exec(context.Background(), extensionSQL)
	return err
}

// Install28 creates the extension as of version 0.28.
func Install28(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	Install(t, pool)
	exec(t, pool, olderSQL)
}

// Update updates the extension to version 0.46. It fails if role pgtrickle_relay has
// rights in one of the databases.
func Update(pool *pgxpool.Pool, databases ...string) error {
	return pgx.BeginFunc(context.Background(), pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(context.Background(), updateSQL); err != nil {
			return err
		}
		_, err := tx.Exec(context.Background(), `SELECT pg_temp.fixture_update($1)`, strings.Join(databases, ","))
		return err
	})
}

// EnableOutbox makes existing tables stream tables, and enables their outboxes.
func EnableOutbox(t testing.TB, pool *pgxpool.Pool, tables ...string) {
	t.Helper()
	for _, table := range tables {
		if _, err := pool.Exec(context.Background(), `SELECT pgtrickle.fixture_stream_table($1::text::regclass)`, table); err != nil {
			t.Fatalf("make %s a stream table: %v", table, err)
		}
		if _, err := pool.Exec(context.Background(), `SELECT pgtrickle.enable_outbox($1)`, table); err != nil {
			t.Fatalf("enable the outbox of %s: %v", table, err)
		}
	}
}

// Refresh writes the outbox row of a refresh of table (schema.table) that inserted and
// deleted that many rows. It holds a snapshot of all rows, inline (case A) or, with
// claimCheck, in the delta table (case B).
func Refresh(t testing.TB, pool *pgxpool.Pool, table string, inserted, deleted int64, claimCheck bool) (id int64) {
	t.Helper()
	threshold := int64(10000)
	if claimCheck {
		threshold = 0
	}
	err := pool.QueryRow(context.Background(), `SELECT pgtrickle.fixture_refresh($1::text::regclass, $2, $3, $4)`,
		table, inserted, deleted, threshold).Scan(&id)
	if err != nil {
		t.Fatalf("refresh %s: %v", table, err)
	}
	return id
}

// Truncate empties a stream table of rows rows, and writes the outbox row of its refresh.
func Truncate(t testing.TB, pool *pgxpool.Pool, table string, rows int64, claimCheck bool) (id int64) {
	t.Helper()
	exec(t, pool, `TRUNCATE `+table)
	threshold := int64(10000)
	if claimCheck {
		threshold = 0
	}
	err := pool.QueryRow(context.Background(), `SELECT pgtrickle.fixture_refresh($1::text::regclass, 0, $2, $3, true)`,
		table, rows, threshold).Scan(&id)
	if err != nil {
		t.Fatalf("refresh %s: %v", table, err)
	}
	return id
}

// Delta is a row of a claim check's delta table.
type Delta struct {
	Op  string // INSERT or DELETE
	Row string // JSON
}

// Write inserts an outbox row. A nil payload is SQL NULL (case E), one with "v":1 is
// the documented form (case C). Deltas make it the documented claim check (case D).
func Write(t testing.TB, pool *pgxpool.Pool, outbox string, payload *string, deltas ...Delta) (id int64) {
	t.Helper()
	ctx := context.Background()
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `INSERT INTO `+pg.Identifier("pgtrickle", outbox)+` (inserted_count, is_claim_check, payload)
			VALUES (1, $1, $2::jsonb) RETURNING id`, len(deltas) > 0, payload).Scan(&id)
		if err != nil {
			return err
		}
		table := pg.Identifier("pgtrickle", "outbox_delta_rows_"+strings.TrimPrefix(outbox, "outbox_"))
		for i, d := range deltas {
			if _, err := tx.Exec(ctx, `INSERT INTO `+table+` VALUES ($1, $2, $3::jsonb, $4)`, id, d.Op, d.Row, i+1); err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, `SELECT pg_notify('pgtrickle_outbox_new', $1)`, outbox)
		return err
	})
	if err != nil {
		t.Fatalf("write a row of %s: %v", outbox, err)
	}
	return id
}

// RelayRole creates a login role that inherits pgtrickle_relay and has no other rights,
// until the test ends. It returns the role's URL of the database at dbURL.
func RelayRole(t testing.TB, pool *pgxpool.Pool, dbURL string) string {
	t.Helper()
	u, err := url.Parse(dbURL)
	if err != nil {
		t.Fatalf("parse database URL: %v", err)
	}
	role := strings.TrimPrefix(u.Path, "/") + "_relay"
	exec(t, pool, fmt.Sprintf(`CREATE ROLE %[1]s LOGIN IN ROLE pgtrickle_relay PASSWORD 'relay'`, role))
	t.Cleanup(func() { exec(t, pool, `DROP ROLE `+role) })
	u.User = url.UserPassword(role, "relay")
	return u.String()
}

//go:embed dump.sql
var dumpSQL string

// Dump describes the extension's objects, one a line. Two dumps are equal if no object
// of the extension was altered. Privileges of the relay's role are left out.
func Dump(t testing.TB, pool *pgxpool.Pool) string {
	t.Helper()
	rows, err := pool.Query(context.Background(), dumpSQL)
	if err != nil {
		t.Fatalf("dump: %v", err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("dump: %v", err)
	}
	return strings.Join(lines, "\n")
}

func exec(t testing.TB, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%.80s: %v", sql, err)
	}
}
