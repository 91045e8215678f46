// Package ledger is a pipeline's durable memory in PostgreSQL: its checkpoint,
// its sink's position, its counts and its dead letters.
//
// Every write carries the epoch of the lease under which the pipeline runs, and
// touches nothing when the cursor has a later one. So an owner that lost its
// lease without noticing can move nothing: it gets [engine.ErrFenced]. A standby
// that is promoted has the epochs of the old primary, and may lack rows that the
// owner has delivered. So commits carry the server's timeline, too.
package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/grove/pgtrickle-relay/relaycore/internal/engine"
	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

// ID names a pipeline's ledger.
type ID struct {
	Group     string
	Direction relay.Direction
	Pipeline  string
}

// Ledger belongs to one owner for one epoch. Its methods may be called from
// several goroutines.
type Ledger struct {
	pool  *pgxpool.Pool
	id    ID
	epoch int64
	owner string
	// timeline is that of the server which gave the state; "" where it may not be read.
	timeline string
	// source is the table the checkpoints belong to.
	source string
}

// timelineSQL changes its answer when a standby is promoted.
const timelineSQL = `substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`

// Open loads the state of id, whose cursor the lease has raised to epoch. owner
// is shown to operators. It returns [engine.ErrFenced] when the epoch is not current.
func Open(ctx context.Context, pool *pgxpool.Pool, id ID, epoch int64, owner string) (*Ledger, engine.State, error) {
	l := &Ledger{pool: pool, id: id, epoch: epoch, owner: owner}
	state, err := l.load(ctx, timelineSQL)
	if pg.IsUnavailable(err) {
		state, err = l.load(ctx, `''`)
	}
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, engine.State{}, engine.ErrFenced
	}
	if err != nil {
		return nil, engine.State{}, fmt.Errorf("load cursor: %w", err)
	}
	return l, state, nil
}

// load reads the state and the timeline, in one statement: the next one may come
// to another server.
func (l *Ledger) load(ctx context.Context, timeline string) (state engine.State, err error) {
	var checkpoint []byte
	var source, position, status *string
	err = l.pool.QueryRow(ctx, `
		SELECT checkpoint, last_id, source, sink_position, status, `+timeline+`
		FROM pgtrickle.relay_cursors
		WHERE relay_group_id = $1 AND direction = $2 AND pipeline = $3 AND epoch = $4`,
		l.id.Group, l.id.Direction, l.id.Pipeline, l.epoch,
	).Scan(&checkpoint, &state.Checkpoint.LastID, &source, &position, &status, &l.timeline)
	state.Checkpoint.State = json.RawMessage(checkpoint)
	state.Source, state.Position = deref(source), deref(position)
	state.Clean = deref(status) == StatusStopped
	return state, err
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// SetSource says to which outbox table the checkpoints committed from now on
// belong.
func (l *Ledger) SetSource(table string) { l.source = table }

// A commit is one statement, and so one transaction that is open only while the
// server works: an owner that is stopped, or whose machine is gone, leaves no lock
// on the cursor behind, for which its successor would wait. It changes the cursor,
// for outboxes the public view of progress, and the letters, and returns whether
// the epoch was current.
const (
	moveSQL = `
WITH moved AS (
	UPDATE pgtrickle.relay_cursors SET
		checkpoint    = coalesce($5::jsonb, checkpoint),
		last_id       = greatest(last_id, $6),
		source        = coalesce(nullif($7, ''), source),
		sink_position = coalesce(nullif($8, ''), sink_position),
		delivered     = delivered + $9,
		skipped       = skipped + $10,
		dead_lettered = dead_lettered + $11,
		updated_at    = now()
	WHERE relay_group_id = $1 AND direction = $2 AND pipeline = $3 AND epoch = $4 AND `
	publishSQL = ` = $13
	RETURNING last_id
), published AS (
	INSERT INTO pgtrickle.relay_consumer_offsets AS o (relay_group_id, pipeline_id, last_change_id, worker_id, updated_at)
	SELECT $1, $3, last_id, $12, now() FROM moved WHERE $2 = 'forward' AND $6 > 0
	ON CONFLICT (relay_group_id, pipeline_id) DO UPDATE
		SET last_change_id = greatest(o.last_change_id, excluded.last_change_id), worker_id = excluded.worker_id, updated_at = excluded.updated_at
)`
	movedSQL = `
SELECT count(*) FROM moved`
)

// Commit makes c durable, all of it or nothing.
func (l *Ledger) Commit(ctx context.Context, c engine.Commit) error {
	sql, args, what := publishSQL+movedSQL, l.progress(c), "commit checkpoint"
	if len(c.Letters) > 0 || len(c.Redriven) > 0 {
		sql, args, what = publishSQL+lettersSQL+movedSQL, append(args, l.letters(c)...), "store dead letters"
	}
	timeline := timelineSQL
	if l.timeline == "" {
		timeline = `''`
	}
	var moved int
	if err := l.pool.QueryRow(ctx, moveSQL+timeline+sql, args...).Scan(&moved); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if moved == 0 {
		return engine.ErrFenced
	}
	return nil
}

// progress returns what moveSQL and publishSQL are given.
func (l *Ledger) progress(c engine.Commit) []any {
	var state []byte
	var lastID int64
	source := ""
	if c.Checkpoint != nil {
		state, lastID, source = c.Checkpoint.State, c.Checkpoint.LastID, l.source
	}
	dead := 0
	for i := range c.Letters {
		if !c.Letters[i].Parked() && c.Letters[i].ID == 0 {
			dead++
		}
	}
	return []any{
		l.id.Group, l.id.Direction, l.id.Pipeline, l.epoch, state, lastID, source, c.Position,
		c.Delivered, c.Skipped, dead, l.owner, l.timeline,
	}
}

// The states of a pipeline as its cursor shows them.
const (
	StatusRunning  = "running"
	StatusRetrying = "retrying"
	StatusFailed   = "failed"
	StatusStopped  = "stopped"
)

// SetStatus records what the pipeline is doing, and why it does not when it
// does not.
func (l *Ledger) SetStatus(ctx context.Context, status, reason string) error {
	tag, err := l.pool.Exec(ctx, `
		UPDATE pgtrickle.relay_cursors SET status = $5, error = nullif($6, ''), updated_at = now()
		WHERE relay_group_id = $1 AND direction = $2 AND pipeline = $3 AND epoch = $4`,
		l.id.Group, l.id.Direction, l.id.Pipeline, l.epoch, status, text(reason))
	if err != nil {
		return fmt.Errorf("record status: %w", err)
	}
	if tag.RowsAffected() == 0 {
		return engine.ErrFenced
	}
	return nil
}
