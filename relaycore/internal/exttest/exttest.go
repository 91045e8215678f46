// Package exttest creates the objects of the pg_trickle extension, 0.37 to 0.45, in a
// database, and writes outbox rows as the extension does. It does so with the real
// extension on the server that [Env] names.
package exttest

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relaytest/pgtest"
)

//go:embed extension.sql
var extensionSQL string

//go:embed real.sql
var realSQL string

//go:embed older.sql
var olderSQL string

//go:embed update.sql
var updateSQL string

// Env names a server that has the real pg_trickle. If it is set, the tests use that in
// place of the imitation; scripts/extension.sh sets it.
const Env = "RELAY_TEST_PGTRICKLE_URL"

// Real reports whether the extension is the real one.
func Real() bool { return os.Getenv(Env) != "" }

// URL returns the URL of an empty database for [Install]. It skips the test if the server
// has a real extension of 0.46 or later, which has no outboxes.
func URL(t testing.TB) string { return urlOf(t, false) }

// NewerURL returns the URL of an empty database for [InstallNewer], and skips the test if
// the server has an older real extension.
func NewerURL(t testing.TB) string { return urlOf(t, true) }

func urlOf(t testing.TB, newer bool) string {
	t.Helper()
	if !Real() {
		return pgtest.URL(t)
	}
	url := pgtest.URLFrom(t, Env)
	var version string
	var is bool
	err := pgtest.Open(t, url).QueryRow(context.Background(), `SELECT default_version, string_to_array(default_version, '.')::int[] >= '{0,46}'
		FROM pg_available_extensions WHERE name = 'pg_trickle'`).Scan(&version, &is)
	if err != nil {
		t.Fatalf("find pg_trickle: %v", err)
	}
	if is != newer {
		t.Skipf("not for pg_trickle %s", version)
	}
	return url
}

// Source returns the table in which the rows of a stream table are changed.
func Source(table string) string {
	if Real() {
		return "fixture_" + table
	}
	return table
}

// Install creates the extension's objects in an empty database.
func Install(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if err := Create(pool); err != nil {
		t.Fatalf("create the extension: %v", err)
	}
}

// Create is CREATE EXTENSION pg_trickle, of version 0.45.
func Create(pool *pgxpool.Pool) error {
	sql := extensionSQL
	if Real() {
		sql = `CREATE EXTENSION pg_trickle; ` + realSQL
	}
	_, err := pool.Exec(context.Background(), sql)
	return err
}

// InstallNewer creates the extension as of version 0.46.
func InstallNewer(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	Install(t, pool)
	if Real() {
		return
	}
	if err := Update(pool, pool.Config().ConnConfig.Database); err != nil {
		t.Fatalf("update the extension: %v", err)
	}
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
	if Real() { // in mode FULL an empty stream table writes no outbox row
		mode := `SELECT pgtrickle.alter_stream_table('` + table + `', refresh_mode => '%s')`
		exec(t, pool, fmt.Sprintf(mode, "DIFFERENTIAL"))
		exec(t, pool, `SELECT pgtrickle.refresh_stream_table('`+table+`')`)
		defer exec(t, pool, fmt.Sprintf(mode, "FULL"))
	}
	exec(t, pool, `TRUNCATE `+Source(table))
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
