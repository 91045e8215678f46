package migrate

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
)

var (
	//go:embed sql/extension.sql
	extensionSQL string
	//go:embed sql/needed.sql
	neededSQL string
	//go:embed sql/release.sql
	releaseSQL string
)

// extension is the pg_trickle extension of a database.
type extension struct {
	version string // "" = not installed
	modern  bool   // 0.46 or later: pgt_outbox_config is not a catalog of outboxes
	usage   bool   // the current role may name the schema's objects
}

func inspect(ctx context.Context, q pg.Querier) (e extension, err error) {
	if err := q.QueryRow(ctx, extensionSQL).Scan(&e.version, &e.modern, &e.usage); err != nil {
		return e, fmt.Errorf("look for extension pg_trickle: %w", err)
	}
	return e, nil
}

// ownsOutboxes reports whether the extension has the functions and tables of outboxes.
func (e extension) ownsOutboxes() bool { return e.version != "" && !e.modern }

// rename makes the relay's catalog of outboxes one of another name, if the extension uses
// the name for something else.
func (e extension) rename(sql string) string {
	if !e.modern {
		return sql
	}
	return strings.NewReplacer("pgt_outbox_config", pg.OutboxRegistry, "uq_outbox_table_name", "uq_relay_outbox_table_name").Replace(sql)
}

// permits returns an error with the statements to run if the current role may not work
// beside the extension.
func (e extension) permits(ctx context.Context, tx pgx.Tx) error {
	if e.version == "" {
		return nil
	}
	rows, err := tx.Query(ctx, neededSQL)
	if err != nil {
		return fmt.Errorf("check the rights beside the extension: %w", err)
	}
	needed, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("check the rights beside the extension: %w", err)
	}
	if len(needed) == 0 {
		return nil
	}
	return fmt.Errorf("extension pg_trickle keeps rights from this role; let a superuser run:\n%s;", strings.Join(needed, ";\n"))
}

// Release returns the statements that must run before the extension is installed, or
// updated beyond 0.28 or 0.45, with comments that name the database. It is empty if none must.
func Release(ctx context.Context, q pg.Querier) ([]string, error) {
	e, err := inspect(ctx, q)
	if err != nil {
		return nil, err
	}
	rows, err := q.Query(ctx, releaseSQL, e.version)
	if err != nil {
		return nil, fmt.Errorf("find what stands in the way of pg_trickle: %w", err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("find what stands in the way of pg_trickle: %w", err)
	}
	return lines, nil
}

// objects returns the tables and functions that the markers of a file name.
func objects(sql string) (found []object) {
	for line := range strings.Lines(sql) {
		marker, isMarker := strings.CutPrefix(line, "-- +")
		target, _, _ := strings.Cut(marker, ": ")
		kind, name, named := strings.Cut(strings.TrimSpace(target), " ")
		kind, plain := strings.CutPrefix(kind, "plain-")
		if isMarker && named && kind != "trigger" {
			found = append(found, object{kind, name, plain})
		}
	}
	return found
}

// gone reports whether an object of an earlier migration no longer exists. The extension
// was dropped with the schema's contents, or its update dropped them.
func (s script) gone(ctx context.Context, q pg.Querier, e extension) (gone bool, err error) {
	var tables, functions []string
	for _, o := range s.objects {
		switch {
		case o.plain && e.ownsOutboxes():
		case o.kind == "table":
			tables = append(tables, e.rename(o.name))
		case o.kind == "function":
			functions = append(functions, o.name)
		}
	}
	err = q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM unnest($1::text[]) t WHERE to_regclass(t) IS NULL)
		OR EXISTS (SELECT FROM unnest($2::text[]) f WHERE to_regprocedure(f) IS NULL)
		OR NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'pgtrickle_relay')`, tables, functions).Scan(&gone)
	if err != nil {
		return false, fmt.Errorf("look for the catalog's objects: %w", err)
	}
	return gone, nil
}
