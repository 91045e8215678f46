package outbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// Reader is someone who reads an outbox, and the id up to which he has all.
type Reader struct {
	Name   string
	Group  string
	LastID int64
}

func (r Reader) String() string {
	return fmt.Sprintf("%s in group %s at %d", r.Name, r.Group, r.LastID)
}

// Readers lists everyone who reads the outbox called outbox: the pipelines of all
// groups, disabled ones too, those that have never run, which are at the
// beginning, and the members of the extension's consumer groups. table is the
// outbox's qualified name.
//
// Where a pipeline has read from is in its cursor, and where it is to read from in
// its configuration; either makes it a reader. One that was pointed at another outbox
// is a reader of both until its first checkpoint there.
func Readers(ctx context.Context, q Querier, outbox string) (table string, readers []Reader, err error) {
	t, err := find(ctx, q, outbox)
	if err != nil {
		return "", nil, err
	}
	table = t.schema + "." + t.name
	known, err := cursors(ctx, q, t)
	if err != nil {
		return table, nil, err
	}
	pipelines, err := forwardPipelines(ctx, q)
	if err != nil {
		return table, nil, err
	}
	for _, p := range pipelines {
		says, err := p.reads(ctx, q, t)
		if err != nil {
			return table, nil, err
		}
		readers = append(readers, says.readers(p.Name, table, known[p.Name])...)
	}
	inGroups, err := members(ctx, q, t)
	return table, append(readers, inGroups...), err
}

// intent is what a pipeline's configuration says of whether it reads an outbox.
type intent int

const (
	other   intent = iota // it reads another one, or there is none of that name
	unclear               // it depends on who asks, or on what an operator does about it
	here
)

// readers returns a pipeline's places in table, which are in as many groups as have
// run it.
func (says intent) readers(name, table string, cursors []cursor) []Reader {
	var found []Reader
	ran := false
	for _, c := range cursors {
		if says == unclear && c.Source == "" && !c.Started {
			continue // it could not be started there
		}
		ran = true
		switch {
		case c.Source == table, c.Source == "" && says != other:
			found = append(found, c.Reader)
		case says == here:
			found = append(found, Reader{Name: c.Name, Group: c.Group}) // of another table so far
		}
	}
	if !ran && says != other {
		return []Reader{{Name: name, Group: "any"}}
	}
	return found
}

// cursor is how far a pipeline is in a group.
type cursor struct {
	Reader
	Source  string // the table that it has read; "" where that is not known
	Started bool
}

// cursors returns the cursors of all pipelines, by name. Those whose source is t say
// how far they are in t as it is now.
func cursors(ctx context.Context, q Querier, t *table) (map[string][]cursor, error) {
	found := make(map[string][]cursor)
	var c cursor
	for _, sql := range []string{fmt.Sprintf(cursorsSQL, literal(t.qualified())), offsetsSQL} {
		err := each(ctx, q, sql, []any{&c.Name, &c.Group, &c.LastID, &c.Source, &c.Started}, func() error {
			found[c.Name] = append(found[c.Name], c)
			return nil
		})
		if err = ignoreMissing(err); err != nil {
			return nil, fmt.Errorf("read cursors: %w", err)
		}
	}
	return found, nil
}

// members returns the members of the extension's consumer groups that read t.
func members(ctx context.Context, q Querier, t *table) ([]Reader, error) {
	var found []Reader
	var r Reader
	err := each(ctx, q, `SELECT 'consumer ' || o.consumer_id, g.group_name, o.committed_offset FROM pgtrickle.pgt_consumer_groups g
		JOIN pgtrickle.pgt_consumer_offsets o USING (group_name) WHERE g.outbox_name = `+literal(t.name)+` ORDER BY 1, 2`, []any{&r.Name, &r.Group, &r.LastID}, func() error {
		found = append(found, r)
		return nil
	})
	if err = ignoreMissing(err); err != nil {
		return nil, fmt.Errorf("read consumer groups: %w", err)
	}
	return found, nil
}

func each(ctx context.Context, q Querier, sql string, into []any, do func() error) error {
	rows, err := q.Query(ctx, sql)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, into, do)
	return err
}

// cursorsSQL lists how far pipelines are. last_id never falls, so where the ids of
// the table have begun again it is the checkpoint that tells: one made in an earlier
// table, as [Source.compare] would find it, is at the beginning of this one.
const cursorsSQL = `
SELECT c.pipeline, c.relay_group_id, CASE
		WHEN s.safe IS NULL THEN c.last_id
		WHEN s.table <> t.oid OR s.file <> t.file AND s.sequence <> 0 AND NOT EXISTS (SELECT FROM pg_class q WHERE q.relkind = 'S' AND q.relfilenode = s.sequence) THEN 0
		ELSE least(c.last_id, greatest(s.safe, 0)) END, coalesce(c.source, ''), c.epoch > 0
FROM pgtrickle.relay_cursors c
CROSS JOIN LATERAL (SELECT (c.checkpoint->>'safe')::bigint AS safe, (c.checkpoint->'of'->>'table')::oid AS table,
	coalesce((c.checkpoint->'of'->>'file')::oid, 0) AS file, coalesce((c.checkpoint->'of'->>'sequence')::oid, 0) AS sequence) s
CROSS JOIN (SELECT o.oid, coalesce(pg_relation_filenode(o.oid), 0) AS file FROM (SELECT to_regclass(%s)::oid AS oid) o) t
WHERE c.direction = 'forward'
ORDER BY 1, 2`

// offsetsSQL lists where pipelines are to begin that have no cursor in a group.
const offsetsSQL = `
SELECT o.pipeline_id, o.relay_group_id, o.last_change_id, '', true
FROM pgtrickle.relay_consumer_offsets o
WHERE NOT EXISTS (SELECT FROM pgtrickle.relay_cursors c WHERE c.relay_group_id = o.relay_group_id AND c.pipeline = o.pipeline_id AND c.direction = 'forward')
ORDER BY 1, 2`

// pipeline is a forward pipeline and its stream_table as it is stored, "" for none.
type pipeline struct{ Name, Stream string }

// reads reports whether the pipeline is to read t.
func (p *pipeline) reads(ctx context.Context, q Querier, t *table) (intent, error) {
	if strings.Contains(p.Stream, "${") {
		return unclear, nil // known only to the process that runs it
	}
	// No schema makes another name one of t's, so most pipelines need no look-up.
	if _, rel := split(p.Stream); rel == "" || !slices.Contains([]string{t.name, t.stream.Stream, t.stream.Table}, rel) {
		return other, nil
	}
	found, err := find(ctx, q, p.Stream)
	var none *noOutboxError
	var several *ambiguousError
	switch {
	case errors.As(err, &none):
		return other, nil
	case errors.As(err, &several) && !slices.Contains(several.outboxes(), t.name):
		return other, nil
	case relay.IsFatal(err):
		return unclear, nil
	case err != nil:
		return unclear, err
	case found.schema != t.schema || found.name != t.name:
		return other, nil
	}
	return here, nil
}

// pipelinesSQL finds stream_table wherever a configuration may have it. The last
// places are those where a backend's own keys go before it.
const pipelinesSQL = `
SELECT name, coalesce(config->>'stream_table', config->>'outbox', config->>'source_outbox',
	config->'source'->>'stream_table', config->'source'->>'outbox', config->'sink'->>'stream_table', config->'sink'->>'outbox', '')
FROM `

// forwardPipelines returns all forward pipelines.
func forwardPipelines(ctx context.Context, q Querier) ([]pipeline, error) {
	var found []pipeline
	var p pipeline
	var err error
	for _, from := range []string{
		`pgtrickle.list_relay_configs() WHERE direction = 'forward'`,
		`pgtrickle.relay_outbox_config`, // which a role may be allowed where it is not allowed the function
	} {
		err = each(ctx, q, pipelinesSQL+from+` ORDER BY 1`, []any{&p.Name, &p.Stream}, func() error {
			found = append(found, p)
			return nil
		})
		if err == nil || ignoreMissing(err) != nil {
			break
		}
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42501" || ignoreMissing(err) != nil {
		return nil, fmt.Errorf("list pipelines: %w", err)
	}
	return found, nil
}

// Querier is what a pool, a connection and a transaction have in common.
type Querier = querier

// ignoreMissing passes over tables and functions that this database does not have.
func ignoreMissing(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "42883" || pg.Code == "3F000" || pg.Code == "42501") {
		return nil
	}
	return err
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// consumeEvery is how often claim-check rows are given up, at most.
const consumeEvery = 5 * time.Second

// Committed implements [relay.Checkpointer]. It tells the extension which
// claim-check rows nobody needs any more; these are shared by all readers, so the
// slowest one decides.
func (s *Source) Committed(ctx context.Context, c relay.Checkpoint) error {
	if c.LastID < s.consumed {
		s.consumed = 0 // ids have begun again
	}
	if s.unable || s.shape.Load().delta.name == "" || s.claimed.Load() <= s.consumed || c.LastID <= s.consumed {
		return nil
	}
	if pause := consumeEvery - time.Since(s.consumedAt); pause > 0 {
		s.remind(pause)
		return nil
	}
	s.consumedAt = time.Now()
	if err := s.consume(ctx, c.LastID); err != nil {
		s.remind(consumeEvery)
		return err
	}
	return nil
}

// remind makes something move after a pause, for Committed to be called again: the
// outbox may have fallen idle.
func (s *Source) remind(pause time.Duration) {
	if s.reminder == nil {
		s.reminder = time.AfterFunc(pause, s.signal.ring)
		return
	}
	s.reminder.Reset(pause)
}

// consume gives up claim-check rows up to lastID, or to where the slowest reader is.
func (s *Source) consume(ctx context.Context, lastID int64) error {
	t := s.shape.Load()
	_, readers, err := Readers(ctx, s.pool, t.qualified()) // the name in the configuration may have come to mean several
	if err != nil {
		return fmt.Errorf("find the slowest reader of %s: %w", t.qualified(), err)
	}
	upTo := lastID
	for _, r := range readers {
		if r.Name == s.cfg.Pipeline && r.Group == s.cfg.Group {
			continue // its cursor may be older than the checkpoint
		}
		upTo = min(upTo, r.LastID)
	}
	if upTo <= s.consumed {
		return nil
	}
	_, err = s.pool.Exec(ctx, `SELECT pgtrickle.outbox_rows_consumed($1, $2)`, t.streamTable, upTo)
	if err != nil {
		if ignoreMissing(err) == nil {
			s.unable = true // there is no such function, or it is not for us
			s.log.Warn("claim-check rows are not given up", "err", err)
			return nil
		}
		return fmt.Errorf("give up claim-check rows of %s up to %d: %w", t.qualified(), upTo, err)
	}
	s.consumed = upTo
	return nil
}
