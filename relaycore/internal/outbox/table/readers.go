package table

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/internal/store"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/files.sql
	filesSQL string
	//go:embed sql/members.sql
	membersSQL string
	//go:embed sql/pipelines.sql
	pipelinesSQL string
)

// Reader is a pipeline or consumer that reads an outbox, and the id up to which it has
// every row.
type Reader struct {
	Name   string
	Group  string
	LastID int64
}

func (r Reader) String() string {
	return fmt.Sprintf("%s in group %s at %d", r.Name, r.Group, r.LastID)
}

// Readers lists the readers of an outbox. These are the forward pipelines of all groups,
// also disabled ones and those that have never run, and the members of the extension's
// consumer groups. The table returned is the outbox's qualified name.
//
// A pipeline's cursor names the table it has read; its configuration names the table
// it is to read. Either makes it a reader. A pipeline that was pointed at another
// outbox is a reader of both until its first checkpoint in the new one.
func Readers(ctx context.Context, q pg.Querier, outbox string) (table string, readers []Reader, err error) {
	t, err := find(ctx, q, outbox)
	if err != nil {
		return "", nil, err
	}
	table = t.String()
	stored, err := cursors(ctx, q, t)
	if err != nil {
		return table, nil, err
	}
	pipelines, err := forwardPipelines(ctx, q)
	if err != nil {
		return table, nil, err
	}
	for _, p := range pipelines {
		in, err := p.reads(ctx, q, t)
		if err != nil {
			return table, nil, err
		}
		readers = append(readers, in.readers(p.Name, table, stored[p.Name])...)
	}
	inGroups, err := members(ctx, q, t)
	return table, append(readers, inGroups...), err
}

// intent is whether a pipeline's configuration makes it read an outbox.
type intent int

const (
	elsewhere intent = iota // it reads another one, or the name is unknown
	unclear                 // it depends on the process that reads, or on an operator
	here
)

// readers returns a pipeline's readers of table: one for each group that has run it.
func (in intent) readers(name, table string, cursors []cursor) []Reader {
	var found []Reader
	ran := false
	for _, c := range cursors {
		if in == unclear && c.Source == "" && !c.Started {
			continue // the group could not start it
		}
		ran = true
		switch {
		case c.Source == table, c.Source == "" && in != elsewhere:
			found = append(found, c.Reader)
		case in == here:
			found = append(found, Reader{Name: c.Name, Group: c.Group}) // it has read another table so far
		}
	}
	if !ran && in != elsewhere {
		return []Reader{{Name: name, Group: "any"}}
	}
	return found
}

// cursor is the stored progress of a pipeline in a group.
type cursor struct {
	Reader
	Source  string // the table that it has read; "" = unknown
	Started bool
}

// cursors returns the cursors of all pipelines, by name. LastID of those that have
// read t is their progress in t as it is now.
func cursors(ctx context.Context, q pg.Querier, t *Table) (map[string][]cursor, error) {
	stored, err := store.Readers(ctx, q)
	if err != nil {
		return nil, err
	}
	now, err := files(ctx, q, t)
	if err != nil {
		return nil, err
	}
	found := make(map[string][]cursor)
	for _, r := range stored {
		id, err := now.progress(r.LastID, r.Checkpoint)
		if err != nil {
			return nil, fmt.Errorf("read the cursor of pipeline %q in group %q: %w", r.Pipeline, r.Group, err)
		}
		found[r.Pipeline] = append(found[r.Pipeline], cursor{Reader{r.Pipeline, r.Group, id}, r.Source, r.Started})
	}
	return found, nil
}

// current is a table and its file, and the files of all sequences, as they are now.
type current struct {
	table, file uint32
	sequences   []uint32
}

func files(ctx context.Context, q pg.Querier, t *Table) (c current, err error) {
	if err := q.QueryRow(ctx, filesSQL, t.Qualified()).Scan(&c.table, &c.file, &c.sequences); err != nil {
		return c, fmt.Errorf("read the files of %s: %w", t.Qualified(), err)
	}
	return c, nil
}

// progress returns how far a cursor is in the table. lastID never falls, even if the
// table's ids restart. A checkpoint of an earlier table, or from before the sequence was
// restarted, has nothing of this table.
func (c current) progress(lastID int64, checkpoint []byte) (int64, error) {
	var cp struct {
		Of   Origin `json:"of"`
		Safe *int64 `json:"safe"`
	}
	if len(checkpoint) == 0 {
		return lastID, nil
	}
	if err := json.Unmarshal(checkpoint, &cp); err != nil {
		return 0, err
	}
	switch restarted := cp.Of.File != c.file && cp.Of.Sequence != 0 && !slices.Contains(c.sequences, cp.Of.Sequence); {
	case cp.Safe == nil:
		return lastID, nil
	case cp.Of.Table != c.table || restarted:
		return 0, nil
	}
	return min(lastID, max(*cp.Safe, 0)), nil
}

// members returns the members of the extension's consumer groups that read t.
func members(ctx context.Context, q pg.Querier, t *Table) ([]Reader, error) {
	var found []Reader
	var r Reader
	err := each(ctx, q, membersSQL, []any{t.Name}, []any{&r.Name, &r.Group, &r.LastID}, func() { found = append(found, r) })
	if err != nil && !pg.IsMissing(err) && !pg.IsDenied(err) {
		return nil, fmt.Errorf("read consumer groups: %w", err)
	}
	return found, nil
}

func each(ctx context.Context, q pg.Querier, sql string, args, into []any, do func()) error {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, into, func() error {
		do()
		return nil
	})
	return err
}

// pipeline is a forward pipeline and its stream_table as it is stored; "" = none.
type pipeline struct{ Name, Stream string }

// forwardPipelines returns all forward pipelines. A role that may not read the table
// may be allowed to call the function, which shows the role's own.
func forwardPipelines(ctx context.Context, q pg.Querier) ([]pipeline, error) {
	var found []pipeline
	var p pipeline
	var err error
	for _, configs := range []string{`pgtrickle.relay_outbox_config`, `pgtrickle.list_relay_configs() WHERE direction = 'forward'`} {
		sql := strings.Replace(pipelinesSQL, "{configs}", configs, 1)
		err = each(ctx, q, sql, nil, []any{&p.Name, &p.Stream}, func() { found = append(found, p) })
		if !pg.IsMissing(err) && !pg.IsDenied(err) {
			break
		}
	}
	if err != nil && !pg.IsMissing(err) {
		return nil, fmt.Errorf("list pipelines: %w", err)
	}
	return found, nil
}

// reads returns whether the pipeline is to read t.
func (p *pipeline) reads(ctx context.Context, q pg.Querier, t *Table) (intent, error) {
	if strings.Contains(p.Stream, "${") {
		return unclear, nil // only the process that runs it knows the value
	}
	// A name that differs without its schema cannot be t's. That spares most look-ups.
	if _, rel := split(p.Stream); rel == "" || !slices.Contains([]string{t.Name, t.stream.Stream, t.stream.Table}, rel) {
		return elsewhere, nil
	}
	found, err := find(ctx, q, p.Stream)
	var unknown *unknownError
	var several *ambiguousError
	switch {
	case errors.As(err, &unknown):
		return elsewhere, nil
	case errors.As(err, &several) && !several.has(t.Name):
		return elsewhere, nil
	case relay.IsFatal(err):
		return unclear, nil
	case err != nil:
		return unclear, err
	case found.Schema != t.Schema || found.Name != t.Name:
		return elsewhere, nil
	}
	return here, nil
}
