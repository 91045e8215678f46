package outbox

import (
	"context"
	"errors"
	"fmt"
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
func Readers(ctx context.Context, q Querier, outbox string) (table string, readers []Reader, err error) {
	t, err := locate(ctx, q, outbox)
	if err != nil {
		return "", nil, err
	}
	table = t.schema + "." + t.name
	cursors := make(map[string][]Reader)
	add := func(sql string, to func(Reader)) error {
		rows, err := q.Query(ctx, sql)
		if err != nil {
			return ignoreMissing(err)
		}
		var r Reader
		var source *string
		_, err = pgx.ForEachRow(rows, []any{&r.Name, &r.Group, &r.LastID, &source}, func() error {
			if source == nil || *source == table {
				to(r)
			}
			return nil
		})
		return ignoreMissing(err)
	}
	known := func(r Reader) { cursors[r.Name] = append(cursors[r.Name], r) }
	if err := add(fmt.Sprintf(cursorsSQL, literal(t.qualified())), known); err != nil {
		return table, nil, fmt.Errorf("read cursors: %w", err)
	}
	if err := add(`SELECT o.pipeline_id, o.relay_group_id, o.last_change_id, NULL FROM pgtrickle.relay_consumer_offsets o
		WHERE NOT EXISTS (SELECT FROM pgtrickle.relay_cursors c WHERE c.relay_group_id = o.relay_group_id AND c.pipeline = o.pipeline_id AND c.direction = 'forward')`, known); err != nil {
		return table, nil, fmt.Errorf("read consumer offsets: %w", err)
	}
	pipelines, err := forwardPipelines(ctx, q)
	if err != nil {
		return table, nil, err
	}
	for name, stream := range pipelines {
		other, err := locate(ctx, q, stream)
		if err != nil {
			if relay.IsFatal(err) {
				continue // its outbox does not exist, so it is not this one
			}
			return table, nil, err
		}
		if other.schema != t.schema || other.name != t.name {
			continue
		}
		if len(cursors[name]) == 0 {
			readers = append(readers, Reader{Name: name, Group: "any"})
		}
		readers = append(readers, cursors[name]...)
	}
	err = add(fmt.Sprintf(`SELECT 'consumer ' || o.consumer_id, g.group_name, o.committed_offset, NULL FROM pgtrickle.pgt_consumer_groups g
		JOIN pgtrickle.pgt_consumer_offsets o USING (group_name) WHERE g.outbox_name = %s`, literal(t.name)), func(r Reader) { readers = append(readers, r) })
	if err != nil {
		return table, nil, fmt.Errorf("read consumer groups: %w", err)
	}
	return table, readers, nil
}

// cursorsSQL lists how far pipelines are. last_id never falls, so where the ids of
// the table have begun again it is the checkpoint that tells: one made in an earlier
// table, as [Source.compare] would find it, is at the beginning of this one.
const cursorsSQL = `
SELECT c.pipeline, c.relay_group_id, CASE
		WHEN s.safe IS NULL THEN c.last_id
		WHEN s.table <> t.oid OR s.file <> t.file AND s.sequence <> 0 AND NOT EXISTS (SELECT FROM pg_class q WHERE q.relkind = 'S' AND q.relfilenode = s.sequence) THEN 0
		ELSE least(c.last_id, greatest(s.safe, 0)) END, c.source
FROM pgtrickle.relay_cursors c
CROSS JOIN LATERAL (SELECT (c.checkpoint->>'safe')::bigint AS safe, (c.checkpoint->'of'->>'table')::oid AS table,
	coalesce((c.checkpoint->'of'->>'file')::oid, 0) AS file, coalesce((c.checkpoint->'of'->>'sequence')::oid, 0) AS sequence) s
CROSS JOIN (SELECT o.oid, coalesce(pg_relation_filenode(o.oid), 0) AS file FROM (SELECT to_regclass(%s)::oid AS oid) o) t
WHERE c.direction = 'forward'`

// forwardPipelines returns the stream table of every forward pipeline.
func forwardPipelines(ctx context.Context, q Querier) (map[string]string, error) {
	rows, err := q.Query(ctx, `SELECT name, coalesce(config->>'stream_table', config->'source'->>'stream_table', config->'source'->>'outbox', config->>'source_outbox', config->>'outbox', '')
		FROM pgtrickle.list_relay_configs() WHERE direction = 'forward'`)
	if err != nil {
		return nil, fmt.Errorf("list pipelines: %w", err)
	}
	found := make(map[string]string)
	var name, stream string
	_, err = pgx.ForEachRow(rows, []any{&name, &stream}, func() error {
		if stream != "" {
			found[name] = stream
		}
		return nil
	})
	if err = ignoreMissing(err); err != nil {
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
	_, readers, err := Readers(ctx, s.pool, s.cfg.Outbox)
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
