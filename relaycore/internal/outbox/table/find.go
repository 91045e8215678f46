package table

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/catalog.sql
	catalogSQL string
	//go:embed sql/find_extension.sql
	findExtensionSQL string
	//go:embed sql/find_relation.sql
	findRelationSQL string
	//go:embed sql/find_plain.sql
	findPlainSQL string
	//go:embed sql/find_table.sql
	findTableSQL string
	//go:embed sql/primary_key.sql
	primaryKeySQL string
)

// entry is an outbox of pgt_outbox_config. Stream is the name that its stream table
// had when the outbox was made; Schema and Table are its present name.
type entry struct{ Outbox, Stream, Schema, Table string }

// unknownError reports that no outbox has a name.
type unknownError struct{ name string }

func (e *unknownError) Error() string {
	return fmt.Sprintf("there is no outbox %q: SELECT pgtrickle.enable_outbox('%s') makes one, or give the name of an outbox table",
		e.name, e.name)
}

// ambiguousError reports that several stream tables have a name.
type ambiguousError struct {
	name  string
	found []entry
}

func (e *ambiguousError) Error() string {
	var names []string
	for _, f := range e.found {
		names = append(names, f.Schema+"."+f.Table+" (outbox "+f.Outbox+")")
	}
	return fmt.Sprintf("stream_table %q means more than one stream table: %s; give the schema or the outbox table's name",
		e.name, strings.Join(names, ", "))
}

func (e *ambiguousError) has(outbox string) bool {
	return slices.ContainsFunc(e.found, func(f entry) bool { return f.Outbox == outbox })
}

// locate finds an outbox and the primary key of its stream table.
func locate(ctx context.Context, q pg.Querier, name string) (*Table, error) {
	t, err := find(ctx, q, name)
	if err == nil && t.stream.Table != "" {
		t.Keys, err = primaryKey(ctx, q, t.stream.Schema, t.stream.Table)
	}
	return t, err
}

// PrimaryKey returns the primary key of the stream table of the outbox called name, nil
// if it is unknown.
func PrimaryKey(ctx context.Context, q pg.Querier, name string) ([]string, error) {
	t, err := locate(ctx, q, name)
	if err != nil {
		return nil, err
	}
	return t.Keys, nil
}

// find looks in pgt_outbox_config first, because a stream table's name is the name of
// a table too. The outbox's name is never derived from it.
func find(ctx context.Context, q pg.Querier, name string) (*Table, error) {
	schema, rel := split(name)
	if rel == "" {
		return nil, relay.Fatal(errors.New("stream_table is empty: name a stream table or an outbox table"))
	}
	found, extension, err := findConfigured(ctx, q, schema, rel)
	if err != nil {
		return nil, fmt.Errorf("find outbox %q in pgtrickle.pgt_outbox_config: %w", name, err)
	}
	if len(found) > 1 && found[0].Outbox != rel {
		return nil, relay.Fatal(&ambiguousError{name, found})
	}
	if len(found) > 0 {
		return &Table{Schema: "pgtrickle", Name: found[0].Outbox, StreamTable: found[0].Stream, stream: found[0], extension: extension}, nil
	}

	t := &Table{}
	err = q.QueryRow(ctx, findTableSQL, schema, rel).Scan(&t.Schema, &t.Name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, relay.Fatal(&unknownError{name})
	}
	if err != nil {
		return nil, fmt.Errorf("find outbox %q: %w", name, err)
	}
	t.StreamTable = strings.TrimPrefix(t.Name, "outbox_")
	return t, nil
}

// Find returns the outbox that a pipeline calls name now. Of the table it knows the
// names alone.
func Find(ctx context.Context, q pg.Querier, name string) (*Table, error) { return find(ctx, q, name) }

// findConfigured returns the entries of pgt_outbox_config that have a name, none if
// there is no such table. streams is whether the extension's stream tables were looked up.
func findConfigured(ctx context.Context, q pg.Querier, schema, rel string) (found []entry, streams bool, err error) {
	var config string
	var extension, plain bool
	if err := q.QueryRow(ctx, catalogSQL).Scan(&config, &streams, &extension, &plain); err != nil || config == "" {
		return nil, false, err
	}
	sql := findRelationSQL
	switch {
	case streams:
		sql = findExtensionSQL
	case plain && !extension:
		sql = findPlainSQL
	}
	rows, err := q.Query(ctx, strings.ReplaceAll(sql, "pgt_outbox_config", config), schema, rel)
	if err != nil {
		return nil, false, err
	}
	found, err = pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	return found, streams, err
}

// primaryKey returns the columns of a table's primary key, nil if it has none or the
// role cannot see it.
func primaryKey(ctx context.Context, q pg.Querier, schema, rel string) ([]string, error) {
	rows, err := q.Query(ctx, primaryKeySQL, schema, rel)
	if err != nil {
		return nil, fmt.Errorf("read primary key of %s.%s: %w", schema, rel, err)
	}
	keys, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read primary key of %s.%s: %w", schema, rel, err)
	}
	// The extension's internal key means nothing to a consumer of the row.
	if len(keys) == 0 || slices.Contains(keys, "__pgt_row_id") {
		return nil, nil
	}
	return keys, nil
}
