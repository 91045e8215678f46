// Package migrate installs and checks what the relay needs in PostgreSQL.
//
// The files in migrations are plain SQL. A statement between "-- +function",
// "-- +table" or "-- +trigger" and "-- +end" runs only if the relay owns the object. An
// object that the pg_trickle extension has created under that name is kept. A "plain-"
// before the kind marks an object that is created only if pg_trickle does not own the
// outboxes. Every migration can run again without a change.
package migrate

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

//go:embed migrations/*.sql
var files embed.FS

// lock serialises migrations of one database.
const lock = `SELECT pg_catalog.pg_advisory_xact_lock(7283460186294519713)`

// settings apply to the transaction of a migration.
const settings = `SET LOCAL client_min_messages = warning;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL check_function_bodies = on;
`

type migration struct {
	version  int
	name     string
	sql      string
	checksum string
}

type script struct {
	prologue, epilogue string
	migrations         []migration
	objects            []object // that the migrations create
}

// object is a table or a function that exists after a migration, ours or the extension's.
type object struct {
	kind, name string
	plain      bool // only where the extension has no outboxes
}

// load reads the embedded files: 000 runs first and 999 last, each time.
func load() (script, error) {
	var s script
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return s, err
	}
	for _, name := range names { // sorted
		raw, err := files.ReadFile(name)
		if err != nil {
			return s, err
		}
		sql, err := expand(string(raw))
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		s.objects = append(s.objects, objects(string(raw))...)
		base := strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")
		number, title, _ := strings.Cut(base, "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
		switch version {
		case 0:
			s.prologue = sql
		case 999:
			s.epilogue = sql
		default:
			sum := sha256.Sum256([]byte(sql))
			s.migrations = append(s.migrations, migration{version, title, sql, hex.EncodeToString(sum[:8])})
		}
	}
	return s, nil
}

// Conn is a connection or a pool.
type Conn interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// Options of a migration.
type Options struct {
	Backends []Backend // those linked into the binary; see [Specs]
	// Owner is the role that owns the schema; it is created if it does not exist. The
	// default is the role that migrates, or pgtrickle_owner if that is a superuser.
	Owner string
}

// Report is what an operator has to know of a migration.
type Report struct {
	Done       string   // what was done to the catalog, as a sentence without a period
	HandedOver []string // statements that gave a superuser's objects to the owner
	ToRun      []string // grants that only another role may run
}

// Up is [Install] without options.
func Up(ctx context.Context, conn Conn, backends []Backend) error {
	_, err := Install(ctx, conn, Options{Backends: backends})
	return err
}

// Install brings the database to the version of this binary, in one transaction. It changes
// nothing if the database has that version, and waits while another Install runs. To a
// newer database it only adds the keys of backends that are unknown there. It fails if the
// schema belongs to another role than the owner.
//
// It is no error if the role may not be created or privileges may not be granted. The
// caller should print the result of [Missing] afterwards.
func Install(ctx context.Context, conn Conn, o Options) (report Report, err error) {
	s, err := load()
	if err != nil {
		return report, err
	}
	keys, err := keysSQL(o.Backends, false)
	if err != nil {
		return report, err
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) {
		report, err = s.install(ctx, tx, o, keys)
		return err
	})
	if err != nil && pg.IsDenied(err) && strings.Contains(err.Error(), "permission denied for database") {
		err = fmt.Errorf("%w; run it as the database's owner, or let that role GRANT CREATE ON DATABASE", err)
	}
	if err != nil {
		return Report{}, fmt.Errorf("migrate: %w", err)
	}
	return report, nil
}

// install is Install within tx. keys is the SQL for the keys of o's backends.
func (s script) install(ctx context.Context, tx pgx.Tx, o Options, keys string) (report Report, err error) {
	if _, err := tx.Exec(ctx, lock); err != nil {
		return report, err
	}
	var refused error
	if report.HandedOver, refused, err = become(ctx, tx, o.Owner); err != nil {
		return report, err
	}
	ext, err := inspect(ctx, tx)
	if err == nil && !ext.usage {
		err = ext.permits(ctx, tx)
	}
	if err != nil {
		return report, err
	}
	done, err := s.applied(ctx, tx, ext)
	if err != nil {
		return report, err
	}
	current := s.upToDate(done) && done[0] == checksum(keys)
	switch {
	case refused != nil && !current:
		return report, refused
	case newer(done, s):
		unknown, err := keysSQL(o.Backends, true)
		if err != nil {
			return report, err
		}
		report.Done = "the catalog is newer than this binary and stays, apart from keys of backends"
		_, err = execute(ctx, tx, ext, migration{name: "backend keys", sql: settings + unknown})
		return report, err
	case !current:
		if err := ext.permits(ctx, tx); err != nil {
			return report, err
		}
		report.Done = "installed the catalog"
		if len(done) > 0 {
			report.Done = "updated the catalog"
		}
		report.ToRun, err = execute(ctx, tx, ext, s.steps(done, keys)...)
		return report, err
	}
	report.Done = "the catalog is up to date"
	return report, nil
}

// applied returns the checksums of the migrations that the database has, by version. It
// is empty if an object of the catalog is gone, unless the database is newer than s.
func (s script) applied(ctx context.Context, tx pgx.Tx, ext extension) (map[int]string, error) {
	done, err := recorded(ctx, tx)
	if err != nil || len(done) == 0 || newer(done, s) {
		return done, err
	}
	gone, err := s.gone(ctx, tx, ext)
	if gone {
		return map[int]string{}, err
	}
	return done, err
}

// steps returns the migrations from the state done to the version of s.
func (s script) steps(done map[int]string, keys string) []migration {
	steps := []migration{{name: "prologue", sql: settings + s.prologue}}
	for _, m := range s.migrations {
		if done[m.version] != m.checksum {
			steps = append(steps, migration{name: m.name, sql: m.sql + m.record()})
		}
	}
	return append(steps, migration{name: "backend keys", sql: keys + keysMigration(keys).record()},
		migration{name: "epilogue", sql: s.epilogue})
}

// execute returns the first column of the last step's last result.
func execute(ctx context.Context, tx pgx.Tx, ext extension, steps ...migration) (last []string, err error) {
	for _, step := range steps {
		// The simple protocol: a file is many statements.
		results, err := tx.Conn().PgConn().Exec(ctx, ext.rename(step.sql)).ReadAll()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
		last = nil
		for _, row := range results[len(results)-1].Rows {
			last = append(last, string(row[0]))
		}
	}
	return last, nil
}

func (m migration) record() string {
	return fmt.Sprintf(`
INSERT INTO pgtrickle.relay_migrations (version, name, checksum) VALUES (%d, '%s', '%s')
    ON CONFLICT (version) DO UPDATE SET name = excluded.name, checksum = excluded.checksum, applied_at = now()
    WHERE relay_migrations.checksum <> excluded.checksum;
`, m.version, m.name, m.checksum)
}

// keysMigration is version 0: it is applied again whenever the keys change.
func keysMigration(sql string) migration {
	return migration{name: "backend keys", checksum: checksum(sql)}
}

func checksum(sql string) string {
	sum := sha256.Sum256([]byte(sql))
	return hex.EncodeToString(sum[:8])
}

// recorded returns the checksum of each version that the database has.
func recorded(ctx context.Context, tx pgx.Tx) (map[int]string, error) {
	done := make(map[int]string)
	var exists bool
	if err := tx.QueryRow(ctx, `SELECT to_regclass('pgtrickle.relay_migrations') IS NOT NULL`).Scan(&exists); err != nil || !exists {
		return done, err
	}
	rows, err := tx.Query(ctx, `SELECT version, checksum FROM pgtrickle.relay_migrations`)
	if err != nil {
		return nil, err
	}
	var version int
	var sum string
	_, err = pgx.ForEachRow(rows, []any{&version, &sum}, func() error {
		done[version] = sum
		return nil
	})
	return done, err
}

// upToDate reports whether the database has every migration of s.
func (s script) upToDate(done map[int]string) bool {
	for _, m := range s.migrations {
		if done[m.version] != m.checksum {
			return false
		}
	}
	return true
}

func newer(done map[int]string, s script) bool {
	for version := range done {
		if version > s.version() {
			return true
		}
	}
	return false
}

func (s script) version() int { return s.migrations[len(s.migrations)-1].version }

// SQL returns the script that [Up] runs on an empty database, for psql or for review.
// It can run again on a migrated one.
func SQL(backends []Backend) (string, error) {
	s, err := load()
	if err != nil {
		return "", err
	}
	keys, err := keysSQL(backends, false)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "-- The catalog of pgtrickle-relay, version %d.\n\nBEGIN;\n%s%s;\n\n%s\n%s",
		s.version(), settings, lock, ownerSQL, s.prologue)
	for _, m := range s.migrations {
		fmt.Fprintf(&b, "\n%s%s", m.sql, m.record())
	}
	fmt.Fprintf(&b, "\n%s%s\n%s\nCOMMIT;\n", keys, keysMigration(keys).record(), s.epilogue)
	return b.String(), nil
}

var errMarker = errors.New("a marker is not closed, or closed twice")

// expand wraps every marked statement into a block that first checks whether the relay
// owns the object.
func expand(sql string) (string, error) {
	var out, body strings.Builder
	var open string
	for line := range strings.Lines(sql) {
		marker, isMarker := strings.CutPrefix(strings.TrimRight(line, "\n"), "-- +")
		switch {
		case !isMarker && open != "":
			body.WriteString(line)
		case !isMarker:
			out.WriteString(line)
		case (marker == "end") != (open != ""):
			return "", fmt.Errorf("%w: %q", errMarker, line)
		case marker == "end":
			out.WriteString(block(open, body.String()))
			body.Reset()
			open = ""
		default:
			open = marker
		}
	}
	if open != "" {
		return "", fmt.Errorf("%w: %q", errMarker, open)
	}
	return out.String(), nil
}

// block returns the statement for a marker such as "plain-function pgtrickle.f(text):
// its doc".
func block(marker, statement string) string {
	target, doc, _ := strings.Cut(marker, ": ")
	kind, name, _ := strings.Cut(target, " ")
	kind, plain := strings.CutPrefix(kind, "plain-")
	before, after := "", fmt.Sprintf("    COMMENT ON %s %s IS %s;\n", strings.ToUpper(kind), name, pg.Literal("pgtrickle-relay: "+doc))
	object := name
	if kind == "trigger" {
		var trigger string
		trigger, object, _ = strings.Cut(name, " on ")
		before, after = fmt.Sprintf("    DROP TRIGGER IF EXISTS %s ON %s;\n", trigger, object), ""
	}
	return fmt.Sprintf(`DO $do$
BEGIN
    IF NOT pgtrickle._relay_claim('%s', '%s', %t) THEN
        RETURN;
    END IF;
%s    EXECUTE $sql$
%s$sql$;
%sEND $do$;
`, kind, object, plain, before, statement, after)
}
