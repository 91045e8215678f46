package store

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/grove/pgtrickle-relay/relaycore/internal/pg"
	"github.com/grove/pgtrickle-relay/relaycore/relay"
)

var (
	//go:embed sql/cursors.sql
	cursorsTemplate string
	cursorsSQL      = strings.ReplaceAll(cursorsTemplate, ":lock_name", lockName)

	//go:embed sql/report.sql
	reportSQL string
	//go:embed sql/readers.sql
	readersSQL string
	//go:embed sql/offset_readers.sql
	offsetReadersSQL string
)

// The states of a pipeline as its cursor has them.
const (
	StatusNew      = "new" // no owner has run it
	StatusRunning  = "running"
	StatusRetrying = "retrying"
	StatusFailed   = "failed"
	StatusStopped  = "stopped"
)

// Cursor is the stored state of a pipeline as operators see it.
type Cursor struct {
	Epoch        int64
	Owner        string
	LastID       int64
	Delivered    int64
	Skipped      int64
	Unexpected   int64 // duplicates that the far end should not have had
	Filtered     int64
	DeadLettered int64
	Expired      int64 // of these, deleted for their age
	Missed       int64 // messages that a source's far ends had lost before it read them
	Remade       int64 // how often they were made again with an unknown number of such
	Status       string
	Error        string
	Updated      *time.Time
	Backfill     string // member of the checkpoint, JSON; "" = none
	Held         bool   // a session holds the pipeline's lock
}

// List returns the cursors of the group.
func (s Store) List(ctx context.Context) (map[Key]Cursor, error) {
	rows, err := s.db.Query(ctx, cursorsSQL, s.group)
	if err != nil {
		return nil, fmt.Errorf("read cursors: %w", err)
	}
	found := make(map[Key]Cursor)
	var key Key
	var c Cursor
	_, err = pgx.ForEachRow(rows, []any{
		&key.Direction, &key.Name, &c.Epoch, &c.Owner, &c.LastID,
		&c.Delivered, &c.Skipped, &c.Unexpected, &c.Filtered, &c.DeadLettered, &c.Expired, &c.Missed, &c.Remade,
		&c.Status, &c.Error, &c.Updated, &c.Backfill, &c.Held,
	}, func() error {
		found[key] = c
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read cursors: %w", err)
	}
	return found, nil
}

// SourceAccount is what became of the messages that a reverse pipeline took from its source,
// since it was created. What the source still has is not known.
type SourceAccount struct {
	Delivered int64 `json:"delivered"`
	Dead      int64 `json:"dead"`
	Parked    int64 `json:"parked"`
	Skipped   int64 `json:"skipped"` // whose ids other events in the inbox had already
	Missed    int64 `json:"missed"`  // see [Cursor.Missed]
	Remade    int64 `json:"remade"`  // see [Cursor.Remade]
	Filtered  int64 `json:"filtered"`
	Expired   int64 `json:"expired"`
}

// SourceAccount returns the account of a reverse pipeline.
func (s Store) SourceAccount(ctx context.Context, key Key) (*SourceAccount, error) {
	cursors, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	deadLetters, err := s.CountDeadLetters(ctx)
	if err != nil {
		return nil, err
	}
	c, n := cursors[key], deadLetters[key]
	return &SourceAccount{c.Delivered, n.Dead, n.Parked, c.Unexpected, c.Missed, c.Remade, c.Filtered, c.Expired}, nil
}

// Owners returns the last owner of each pipeline of the group.
func (s Store) Owners(ctx context.Context) (map[Key]string, error) {
	const sql = `SELECT direction, pipeline, owner FROM pgtrickle.relay_cursors WHERE relay_group_id = $1 AND owner IS NOT NULL`
	rows, err := s.db.Query(ctx, sql, s.group)
	if err != nil {
		return nil, fmt.Errorf("read owners: %w", err)
	}
	owners := make(map[Key]string)
	var key Key
	var owner string
	_, err = pgx.ForEachRow(rows, []any{&key.Direction, &key.Name, &owner}, func() error {
		owners[key] = owner
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read owners: %w", err)
	}
	return owners, nil
}

// Report records that a pipeline cannot be started. No lease is needed.
func (s Store) Report(ctx context.Context, key Key, reason string) error {
	if _, err := s.db.Exec(ctx, reportSQL, s.args(key, pgx.StrictNamedArgs{"reason": text(reason)})); err != nil {
		return fmt.Errorf("record status: %w", err)
	}
	return nil
}

// AcceptSkipped counts the duplicates that the far end should not have had from zero again.
func (s Store) AcceptSkipped(ctx context.Context, key Key) error {
	_, err := s.db.Exec(ctx, `
		UPDATE pgtrickle.relay_cursors SET unexpected = 0
		WHERE relay_group_id = @group AND direction = @direction AND pipeline = @pipeline`, s.args(key, nil))
	if err != nil {
		return fmt.Errorf("accept skipped messages of pipeline %q: %w", key.Name, err)
	}
	return nil
}

// Checkpoint returns the stored checkpoint of a forward pipeline. found is false if
// nothing is stored.
func (s Store) Checkpoint(ctx context.Context, pipeline string) (c relay.Checkpoint, found bool, err error) {
	state, _, err := s.load(ctx, Key{relay.Forward, pipeline}, nil, sqlWithoutTimeline)
	switch {
	case errors.Is(err, pgx.ErrNoRows), pg.IsMissing(err):
		return c, false, nil
	case err != nil:
		return c, false, fmt.Errorf("read checkpoint: %w", err)
	}
	return state.Checkpoint, true, nil
}

// Offset returns the public offset of a forward pipeline, where it starts if it has
// no checkpoint. found is false if there is none or if the role may not read it.
func (s Store) Offset(ctx context.Context, pipeline string) (id int64, found bool, err error) {
	const readable = `SELECT coalesce(has_table_privilege(to_regclass('pgtrickle.relay_consumer_offsets'), 'SELECT'), false)`
	if err := s.db.QueryRow(ctx, readable).Scan(&found); err != nil || !found {
		return 0, false, err
	}
	err = s.db.QueryRow(ctx, `SELECT last_change_id FROM pgtrickle.relay_consumer_offsets WHERE relay_group_id = $1 AND pipeline_id = $2`,
		s.group, pipeline).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read relay_consumer_offsets: %w", err)
	}
	return id, true, nil
}

// Reader is a forward pipeline of a group, with what is stored of its progress.
type Reader struct {
	Pipeline   string
	Group      string
	Source     string          // the outbox table it has read; "" if not known
	LastID     int64           // the highest id it has settled, of any outbox
	Checkpoint json.RawMessage // nil if it has none
	Started    bool            // it has had an owner
}

// Readers returns the forward pipelines of all groups that have a cursor or a
// public offset, ordered by name and group; cursors first. Tables that are missing
// or denied have no readers.
func Readers(ctx context.Context, db pg.Querier) ([]Reader, error) {
	var found []Reader
	for _, sql := range []string{readersSQL, offsetReadersSQL} {
		rows, err := db.Query(ctx, sql)
		if err == nil {
			found, err = pgx.AppendRows(found, rows, scanReader)
		}
		if err != nil && !pg.IsMissing(err) && !pg.IsDenied(err) {
			return nil, fmt.Errorf("read cursors: %w", err)
		}
	}
	return found, nil
}

func scanReader(row pgx.CollectableRow) (r Reader, err error) {
	err = row.Scan(&r.Pipeline, &r.Group, &r.Source, &r.LastID, (*[]byte)(&r.Checkpoint), &r.Started)
	return r, err
}
