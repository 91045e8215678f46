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
)

//go:embed extension.sql
var extensionSQL string

// Install creates the extension's objects in an empty database.
func Install(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	exec(t, pool, extensionSQL)
}

// Refresh writes the outbox row of a refresh of table (schema.table) that inserted and
// deleted that many rows: a snapshot of all rows, inline (case A) or, with claimCheck,
// in the delta table (case B).
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

// Delta is a row of a claim check's delta table.
type Delta struct {
	Op  string // INSERT or DELETE
	Row string // JSON
}

// Write inserts an outbox row. A nil payload is SQL NULL (case E), one with "v":1 is
// the documented form (case C), and deltas make it the documented claim check (case D).
func Write(t testing.TB, pool *pgxpool.Pool, outbox string, payload *string, deltas ...Delta) (id int64) {
	t.Helper()
	ctx := context.Background()
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, fmt.Sprintf(`INSERT INTO pgtrickle.%s (inserted_count, is_claim_check, payload) VALUES (1, $1, $2::jsonb) RETURNING id`,
			pgx.Identifier{outbox}.Sanitize()), len(deltas) > 0, payload).Scan(&id)
		if err != nil {
			return err
		}
		table := pgx.Identifier{"pgtrickle", "outbox_delta_rows_" + strings.TrimPrefix(outbox, "outbox_")}.Sanitize()
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

// dumpSQL describes every object of schema pgtrickle without a comment of the relay,
// and its privileges other than those of the relay's role.
const dumpSQL = `
WITH ours AS (SELECT objoid, classoid FROM pg_description WHERE description LIKE 'pgtrickle-relay:%' AND objsubid = 0),
acl(oid, text) AS (
    SELECT o.oid, string_agg(a.grantor::regrole || ' ' || CASE a.grantee WHEN 0 THEN 'public' ELSE a.grantee::regrole::text END || ' ' || a.privilege_type, ',' ORDER BY 1)
    FROM (SELECT oid, relacl AS acl FROM pg_class UNION ALL SELECT oid, proacl FROM pg_proc) o, aclexplode(o.acl) a
    WHERE a.grantee <> coalesce(to_regrole('pgtrickle_relay'), 0) AND a.grantee <> a.grantor GROUP BY o.oid)
SELECT format('%s %s %s owner=%s options=%s acl=%s comment=%s', c.relkind, c.oid, c.relname, c.relowner::regrole, c.reloptions,
    (SELECT text FROM acl WHERE acl.oid = c.oid), obj_description(c.oid, 'pg_class'))
FROM pg_class c WHERE c.relnamespace = 'pgtrickle'::regnamespace AND c.relname NOT LIKE 'relay\_%' OR c.oid IN (
    SELECT to_regclass('pgtrickle.' || n) FROM unnest(ARRAY['relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets']) n)
UNION ALL
SELECT format('column %s.%s %s notnull=%s default=%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'pgtrickle'::regnamespace AND (c.relname LIKE 'pgt\_%' OR c.relname LIKE 'outbox\_%'
    OR c.relname IN ('relay_outbox_config', 'relay_inbox_config', 'relay_consumer_offsets'))
UNION ALL
SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
WHERE connamespace = 'pgtrickle'::regnamespace AND (conrelid::regclass::text LIKE 'pgtrickle.pgt%'
    OR conrelid::regclass::text IN ('pgtrickle.relay_outbox_config', 'pgtrickle.relay_inbox_config', 'pgtrickle.relay_consumer_offsets'))
UNION ALL
SELECT format('trigger %s %s', tgrelid::regclass, pg_get_triggerdef(g.oid)) FROM pg_trigger g JOIN pg_class c ON c.oid = tgrelid
WHERE c.relnamespace = 'pgtrickle'::regnamespace AND NOT tgisinternal
UNION ALL
SELECT format('function %s owner=%s acl=%s comment=%s %s', p.oid, p.proowner::regrole, (SELECT text FROM acl WHERE acl.oid = p.oid),
    obj_description(p.oid, 'pg_proc'), pg_get_functiondef(p.oid))
FROM pg_proc p WHERE p.pronamespace = 'pgtrickle'::regnamespace AND p.oid NOT IN (SELECT objoid FROM ours WHERE classoid = 'pg_proc'::regclass)
ORDER BY 1`

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
